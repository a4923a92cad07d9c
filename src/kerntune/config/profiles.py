"""The profiles on disk: their names, and the content of each with its includes. It blocks, and puts none in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kerntune.config.config_files import Chosen
from kerntune.config.last_good import LastGood
from kerntune.config.parser import Content, Kind, Problem, Reader, parse
from kerntune.config.schema import shown
from kerntune.config.sources import in_order, stale, with_lost
from kerntune.errors import InvalidValue, NoSuchProfile
from kerntune.model import Claim, Origin
from kerntune.paths import files_in
from kerntune.plain_files import contents_of
from kerntune.suggest import there_are
from kerntune.tunables.base import Tunable

COPY: Final = "profile.json"  # in the runtime directory
MAX_LISTED_ERRORS: Final = 3  # mistakes that a caller is told
SUMMARY: Final = 200  # characters
DEEPEST: Final = 16
KEYS: Final = ("summary", "include")  # beside tables


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile with all that it includes. The later claim is stronger; `who` of each is the profile that has it."""

    name: str
    summary: str
    file: Path
    claims: tuple[Claim, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.is_error)


@dataclass(frozen=True, slots=True)
class Page:
    """The content of one file by itself."""

    summary: str = ""
    include: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    problems: tuple[Problem, ...] = ()


class Profiles:
    """The profiles of some folders; one in a later folder replaces another of the same name."""

    def __init__(self, folders: Sequence[Path], tunables: Iterable[Tunable]) -> None:
        self._folders, self._tunables = folders, {tunable.name: tunable for tunable in tunables}

    def files(self) -> dict[str, Path]:
        """Return the path of each profile by its name, in the order of the names."""
        found = {path.stem: path for folder in self._folders for path in files_in(folder)}
        return dict(sorted(found.items()))

    def listing(self) -> list[tuple[str, str]]:
        """Return names and summaries; for a profile with errors, the first error in place of the summary."""
        found = ((name, self.read(name)) for name in self.files())
        return [(name, str(page.errors[0]) if page.errors else page.summary) for name, page in found]

    def read(self, name: str) -> Profile:
        """Return the content of a profile, with its mistakes as problems. Raise NoSuchProfile if none has that name."""
        files = self.files()
        if name not in files:
            raise NoSuchProfile(f"there is no profile {shown(name)}", there_are(files, name))
        return self._walked(name, files)

    def at(self, file: Path) -> Profile:
        """Return the content of a file as the profile of its name, wherever the file lies."""
        return self._walked(file.stem, {**self.files(), file.stem: file})

    def _walked(self, name: str, files: Mapping[str, Path]) -> Profile:
        walk = _Walk(files, self._tunables)
        walk.visit(name, ())
        claims = in_order(claim for page in walk.pages.values() for claim in page.claims)
        return Profile(name, walk.pages[name].summary, files[name], claims, tuple(walk.problems()))


class ProfileInForce:
    """The reader of the profile in force: when the profile has errors, its last good claims stay."""

    def __init__(self, profiles: Profiles, runtime: Path, tunables: Mapping[str, Tunable]) -> None:
        self.profiles, self._last = profiles, LastGood(runtime / COPY, tunables, Origin.PROFILE)

    @property
    def set_aside(self) -> Path | None:
        """The path of the copy from a former start, if that copy could not be used."""
        return self._last.set_aside

    def read(self, name: str, *, keep: bool = True) -> Chosen:
        """Return the content of a profile, or its last good content if it has errors; mistakes are problems.

        Without `keep` the profile is only looked at, and the kept content of another one stays.
        """
        try:
            profile = self.profiles.read(name)
        except NoSuchProfile as error:
            now = Content(problems=(Problem(f"profile {name}", 0, Kind.FILE, error.what, error.hint),))
        else:
            now = Content(profile.claims, problems=profile.problems)
        last = self._last.contents.get(name)
        if last:
            now = with_lost(now, last)
            now = replace(now, claims=in_order(now.claims))
        if last and not now.sound:
            now = replace(now, claims=stale(last.claims))
        elif keep and now.sound:
            self.keep(name, now.claims)
        return Chosen(now.claims, now.problems)

    def checked(self, name: str) -> Chosen:
        """Return the content of a profile that a caller selects. Raise NoSuchProfile, or InvalidValue for mistakes."""
        profile = self.profiles.read(name)
        if profile.errors:
            named = "; ".join(map(str, profile.errors[:MAX_LISTED_ERRORS]))
            raise InvalidValue(f"profile {name} is not in order: {named}", "Correct it and try again")
        return Chosen(profile.claims, profile.problems)

    def keep(self, name: str, claims: tuple[Claim, ...]) -> None:
        """Keep the claims of a profile that is in force and has no errors."""
        self._last.keep({name: Content(claims)})


@dataclass(slots=True)
class _Walk:
    """The files that belong to one profile, each once; included files come before those that include them."""

    files: Mapping[str, Path]
    tunables: Mapping[str, Tunable]
    pages: dict[str, Page] = field(default_factory=dict)
    wrong: list[Problem] = field(default_factory=list)

    def visit(self, name: str, way: tuple[str, ...]) -> None:
        """Read a profile and those it includes; `way` has the profiles that led to it."""
        way = (*way, name)
        page, line = read_page(name, self.files[name], self.tunables)
        for other in page.include:
            if other in way:
                what = f"profiles include each other: {' -> '.join((*way[way.index(other) :], other))}"
                self._complain(name, line, what, "One of them has to do without")
            elif len(way) == DEEPEST:
                self._complain(name, line, f"profiles include each other {DEEPEST} deep", "Include them side by side")
            elif other not in self.files:
                self._complain(name, line, f"there is no profile {shown(other)}", there_are(self.files, other))
            elif other not in self.pages:
                self.visit(other, way)
        self.pages[name] = page

    def problems(self) -> Iterator[Problem]:
        """Yield all problems in the files."""
        for page in self.pages.values():
            yield from page.problems
        yield from self.wrong

    def _complain(self, name: str, line: int, what: str, allowed: str) -> None:
        self.wrong.append(Problem(str(self.files[name]), line, Kind.CLAIM, what, allowed))


def read_page(name: str, path: Path, tunables: Mapping[str, Tunable]) -> tuple[Page, int]:
    """Return the content of one file, and the line of its `include`."""
    try:
        parsed = parse(str(path), contents_of(path))
    except OSError as error:
        parsed = Problem(str(path), 0, Kind.FILE, f"this file cannot be read: {error.strerror}")
    if isinstance(parsed, Problem):
        return Page(problems=(parsed,)), 0
    document, lines = parsed
    summary, include = document.pop("summary", ""), document.pop("include", [])
    reader = Reader(str(path), lines, tunables, origin=Origin.PROFILE, who=name, keys=KEYS)
    content = reader.read(document)
    if not isinstance(summary, str) or len(summary) > SUMMARY:
        hint = f'Give a line of {SUMMARY} characters or less: summary = "..."'
        reader.complain(("summary",), Kind.OPTION, f"summary is {shown(summary)}", hint)
        summary = ""
    if not is_names(include):
        reader.complain(("include",), Kind.CLAIM, f"include is {shown(include)}", 'Give names: include = ["balanced"]')
        include = []
    return Page(summary, tuple(include), content.claims, reader.found), lines.get(("include",), 0)


def is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
