"""kerntune: kernel tuning for AI hosts as a system service. For programs: `kerntune.hold` and `KerntuneError`."""

from typing import TYPE_CHECKING, Any

from kerntune.errors import KerntuneError

if TYPE_CHECKING:
    from kerntune.api.document import Outcome
    from kerntune.holding import AsyncHold, Hold, Holding, hold

__all__ = ["AsyncHold", "Hold", "Holding", "KerntuneError", "Outcome", "hold"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the names for programs when they are used: the daemon and the command line do without them."""
    if name in __all__:
        from kerntune import holding  # noqa: PLC0415

        return getattr(holding, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names, also those for programs that are not imported yet."""
    return sorted({*globals(), *__all__})
