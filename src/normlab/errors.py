"""Errors about the configuration: :class:`ConfigError`, and helpers that raise and format it."""

import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = (
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
    Path(__file__).parents[1],
)
"""Folders with code that is not the user's: Python, installed packages, and normlab."""


class ConfigError(ValueError):
    """A mistake in the user's configuration, with a one-line message.

    Attributes:
        interpolation: the faulty interpolation as it stands in a configuration file, if there is one.
    """

    interpolation: str | None = None


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the choice most similar to ``name``, for "did you mean" hints.

    >>> nearest("modle", ["data", "model", "seed"])
    'model'
    >>> nearest("learning_rate", ["betas", "eps", "lr"])
    'lr'
    """

    return max(choices, key=lambda choice: similarity(name, choice))


def is_near(name: str, choice: str) -> bool:
    """Return True if ``name`` looks like a misspelling of ``choice``, or its initials equal it.

    >>> is_near("learnin_rate", "lr"), is_near("momentun", "momentum"), is_near("betas", "params")
    (True, True, False)
    """
    return similarity(name, choice) > 0.6


def similarity(name: str, choice: str) -> float:
    """Return the similarity of two names in [0, 1]; 1 if the initials of ``name`` equal ``choice``.

    Names with the same letters in another order are nearly as similar, however many are exchanged.

    >>> similarity("modle", "model") > similarity("modle", "module")
    True
    """
    initials = "".join(word[0] for word in name.split("_") if word)
    ratio = difflib.SequenceMatcher(None, name, choice).ratio()
    return 1.0 if initials == choice else max(ratio, 0.95 * (sorted(name) == sorted(choice)))


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Raise :class:`ConfigError` ``<key> must be <expected>, got <got>`` unless ``condition`` holds.

    >>> require(False, "optimizer.lr", "a number > 0", -1)
    Traceback (most recent call last):
    normlab.errors.ConfigError: optimizer.lr must be a number > 0, got -1
    """
    if not condition:
        raise ConfigError(f"{key} must be {expected}, got {got}")


def require_net_sizes(sizes: Mapping[str, Sequence[int]], dropout: float) -> None:
    """Raise :class:`ConfigError` for layer sizes below 1, or dropout outside [0, 1).

    Both the schema and the nets check them: the schema before torch is imported, the nets for other callers.
    """
    for name, values in sizes.items():
        require(all(size >= 1 for size in values), f"net.{name}", "a list of sizes of at least 1", list(values))
    require(0 <= dropout < 1, "net.dropout", "a number in [0, 1)", dropout)


@contextmanager
def prefix_errors(key: str) -> Iterator[None]:
    """Re-raise exceptions of the block as :class:`ConfigError` that begins with ``key``.

    A ConfigError passes unchanged, as it names its key already.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}: {first_line(error)}") from error


def relative_path(path: Path) -> str:
    """Return ``path`` relative to the working directory if it lies below it, otherwise unchanged."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def describe_exception(error: BaseException) -> str:
    """Return the message of an exception in code that may be the user's, with its class, file, line and remedy.

    A ValueError that normlab or a library raises is about an argument, which its message names.
    """
    line = user_line(error)
    if isinstance(error, ValueError) and not line:
        return first_line(error)
    message = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return f"{type(error).__name__}: {message}{line}; HYDRA_FULL_ERROR=1 shows the traceback"


def user_line(error: BaseException) -> str:
    """Return " (file, line N)" of the innermost call in a user's code that led to an error; empty without one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({relative_path(Path(error.filename))}, line {error.lineno})"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if location := user_file(frame.f_code.co_filename):
            return f" ({location}, line {line})"
    return ""


def user_file(name: str | None) -> str:
    """Return the path of a file with a user's code; empty for a file of :data:`LIBRARIES`, and for none.

    >>> user_file(difflib.__file__), user_file("<frozen importlib>")
    ('', '')
    """
    path = Path(name or "")
    is_library = any(path.is_relative_to(folder) for folder in LIBRARIES)
    return "" if is_library or not path.is_file() else relative_path(path)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
