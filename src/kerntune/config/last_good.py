"""The last good content of files, kept in the runtime directory, so that neither a typo nor a restart loses it.

Every method blocks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kerntune.config import schema as settings
from kerntune.config.parser import Content
from kerntune.engine.requests import sound
from kerntune.model import Origin
from kerntune.plain_files import put_aside, replace_file
from kerntune.store import Document, dump_claims, load, load_claims
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)
FORMAT: Final = 1


class LastGood:
    """A copy of each file's content, by name; `set_aside` is the copy of a former start that could not be used."""

    def __init__(self, copy: Path | None, tunables: Mapping[str, Tunable], origin: Origin) -> None:
        """Load the `copy` of a former start. Without one, no content outlives the process."""
        self._copy, self._tunables, self._origin = copy, tunables, origin
        self.set_aside: Path | None = None
        self.contents = self._load()

    def keep(self, contents: Mapping[str, Content]) -> None:
        """Keep contents that have no errors. A copy not saved is no failure: only a later error needs it."""
        if contents == self.contents:
            return
        self.contents = dict(contents)
        if self._copy is None:
            return
        rows = {
            name: {
                "claims": dump_claims(content.claims),
                "options": [[*path, value] for path, value in content.options.items()],
                "profile": content.profile,
            }
            for name, content in contents.items()
        }
        try:
            replace_file(self._copy, {"format": FORMAT, "files": rows}, durable=False)
        except OSError as error:
            log.error("what was last in order cannot be saved in %s: %s", self._copy, error.strerror)

    def _load(self) -> dict[str, Content]:
        """Return the contents kept by a former start; nothing if they cannot be used."""
        if self._copy is None:
            return {}
        found: dict[str, Content] = {}

        def check(document: Any) -> Document:
            if document["format"] != FORMAT:
                raise ValueError("another version wrote it")
            found.update({name: self._content(row) for name, row in document["files"].items()})
            return {}

        try:
            _, self.set_aside = load(self._copy, check)
        except OSError as error:
            # The copy is written again as soon as the files have no errors.
            log.error("%s cannot be read (%s)", self._copy, error)
            self.set_aside = self._copy
            with contextlib.suppress(OSError):
                self.set_aside = put_aside(self._copy, "bad")
        return {} if self.set_aside else found

    def _content(self, row: Mapping[str, Any]) -> Content:
        known, profile = settings.by_path(), row.get("profile", "")
        if not isinstance(profile, str):
            raise TypeError("a profile is a name")
        claims = [claim for claim in load_claims(row["claims"], self._origin) if sound(claim, self._tunables)]
        options = {
            path: known[path].checked(value) for *names, value in row["options"] if (path := tuple(names)) in known
        }
        return Content(tuple(claims), options, profile=profile)
