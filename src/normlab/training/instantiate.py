"""Makes the objects that ``_target_`` nodes describe: :func:`make`."""

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from normlab.config.validation import parameters_of
from normlab.errors import ConfigError, first_line


def make(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate a ``_target_``.

    Raises:
        ConfigError: with the first line of the message, if the target raises ValueError or TypeError.
    """
    try:
        return instantiate(dict(node), **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError | TypeError | InstantiationException):
            raise ConfigError(first_line(cause)) from error
        raise cause from None


def missing_arguments(key: str, node: Mapping[str, Any]) -> list[str]:
    """Return the required arguments of a ``_target_`` that its node lacks, in order."""
    parameters = parameters_of(key, node["_target_"])
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in variable and name not in node
    ]


def require_arguments(key: str, node: Mapping[str, Any], passed: int) -> None:
    """Raise ConfigError if a node lacks a required argument, besides the first ``passed`` ones."""
    for name in missing_arguments(key, node)[passed:]:
        raise ConfigError(f"{key}: {node['_target_']} needs the argument {name}; write {key}.{name}=…")


def is_class(node: Mapping[str, Any]) -> bool:
    """Return True if the ``_target_`` of a node is a class."""
    return inspect.isclass(get_object(node["_target_"]))
