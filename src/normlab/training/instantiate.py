"""Makes the objects that ``_target_`` nodes describe: :func:`make`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from torch import nn

from normlab.config.validation import parameters_of
from normlab.errors import ConfigError, describe_exception, first_line


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


def make_instance(key: str, node: Mapping[str, Any], kind: type) -> Any:
    """Instantiate a ``_target_`` that must give an instance of a class.

    Raises:
        ConfigError: if an argument is missing, the constructor fails, or something else is made.
    """
    require_target(key, node)
    require_arguments(key, node, 0)
    try:
        made = make(node)
    except Exception as error:
        raise ConfigError(f"{key}: {first_line(error)}") from error
    return require_instance(key, node, kind, made)


def layer_maker(key: str, node: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """Return the function that makes the layers of a node, a normalizer or a weight parametrization.

    Raises:
        ConfigError: if the node lacks ``_partial_: true`` or an argument; by the function: if the target fails, or
            makes something other than a module.
    """
    target, partial, missing = node["_target_"], node.get("_partial_"), missing_arguments(key, node)
    maker = None if missing and not partial else make(node)
    if maker is None or isinstance(maker, nn.Module):
        raise ConfigError(
            f"{key}: the net makes a {target} for each layer; add _partial_: true below its _target_"
        )
    for name in missing[1:]:
        raise ConfigError(f"{key}: {target} needs the argument {name}; add {name}: … below its _target_")

    def layer(*arguments: Any) -> nn.Module:
        try:
            made = maker(*arguments)
        except ConfigError:
            raise
        except Exception as error:  # the code of a user may raise any
            if not accepts(maker, arguments):
                raise ConfigError(f"{key}: {target} must take the number of features as its argument") from error
            reason = describe_exception(error)
            named = reason.startswith(f"{key}.")  # a layer of normlab names the key itself
            raise ConfigError(reason if named else f"{key}: {target}: {reason}") from error
        if not isinstance(made, nn.Module):
            raise ConfigError(
                f"{key}._target_ must make a torch.nn.Module, got {target}, which makes {type(made).__name__}; "
                "derive its class from torch.nn.Module"
            )
        return made

    return layer


def accepts(function: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    """Return True if a function can be called with some arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def require_target(key: str, node: Any) -> str:
    """Return the ``_target_`` of a node; raise ConfigError if it has none."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{key} must be a node with a _target_, got {node}")
    return str(node["_target_"])


def require_instance(key: str, node: Mapping[str, Any], kind: type, made: Any) -> Any:
    """Return an object that a node has made, if it is an instance of a class.

    Raises:
        ConfigError: if it is not.
    """
    if not isinstance(made, kind):
        wanted = f"{kind.__name__} of {kind.__module__.partition('.')[0]}"
        article = "an" if wanted[0] in "AEIOU" else "a"
        target = f"{node['_target_']}, which makes {type(made).__name__}"
        raise ConfigError(f"{key}._target_ must be {article} {wanted}, got {target}")
    return made


def is_class(node: Mapping[str, Any]) -> bool:
    """Return True if the ``_target_`` of a node is a class."""
    return inspect.isclass(get_object(node["_target_"]))
