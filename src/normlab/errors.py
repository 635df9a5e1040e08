"""ConfigError, and functions that raise and format errors about the configuration."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """An error of the user's configuration, with a message of one line.

    Attributes:
        written: the interpolation at fault, as written in a configuration file.
    """

    written: str | None = None


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the choice a person most likely meant by ``name``.

    >>> nearest("modle", ["data", "model", "seed"])
    'model'
    >>> nearest("learning_rate", ["betas", "eps", "lr"])
    'lr'
    """

    return max(choices, key=lambda choice: likeness(name, choice))


def is_near(name: str, choice: str) -> bool:
    """Return whether a name is a mistyped form of a choice, or its initials are.

    >>> is_near("learnin_rate", "lr"), is_near("momentun", "momentum"), is_near("betas", "params")
    (True, True, False)
    """
    return likeness(name, choice) > 0.6


def likeness(name: str, choice: str) -> float:
    """Return the similarity of a name and a choice, from 0 to 1; initials count as equal."""
    initials = "".join(word[0] for word in name.split("_") if word)
    return 1.0 if initials == choice else difflib.SequenceMatcher(None, name, choice).ratio()


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Raise :class:`ConfigError` in the one form that every limit is reported in.

    >>> require(False, "optimizer.lr", "a number > 0", -1)
    Traceback (most recent call last):
    normlab.errors.ConfigError: optimizer.lr must be a number > 0, got -1
    """
    if not condition:
        raise ConfigError(f"{key} must be {expected}, got {got}")


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Raise what is raised within as a :class:`ConfigError` that begins with a key, unless it is one already."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
