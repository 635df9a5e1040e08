"""Imports Lightning without Dynamo and SciPy's signal package, a second faster; see :func:`stand_ins`.

Lightning and torchmetrics import both, and a training that is not compiled needs nothing of them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _OptimizedModuleType(type):
    """Makes instances of Dynamo's class, which exist once Dynamo is imported, instances of its stand-in."""

    def __instancecheck__(cls, instance: object) -> bool:
        dynamo = sys.modules.get("torch._dynamo")
        return dynamo is not None and isinstance(instance, dynamo.OptimizedModule)


class OptimizedModule(metaclass=_OptimizedModuleType):
    """Stands for ``torch._dynamo.OptimizedModule``, the result of ``torch.compile``."""


def disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    """Return the function, in place of ``torch._dynamo.disable``."""
    return function


STAND_INS: dict[str, dict[str, Any]] = {
    "torch._dynamo": {"OptimizedModule": OptimizedModule, "disable": disable},
    "scipy.signal": {"hamming": None},  # torchmetrics adds this name where it is missing
}
"""The names that are read of each module while Lightning is imported."""


@contextmanager
def stand_ins() -> Iterator[None]:
    """Context manager that puts stand-ins in the place of modules that are not imported yet."""
    added = {name: ModuleType(name) for name in STAND_INS if name not in sys.modules}
    for name, module in added.items():
        vars(module).update(STAND_INS[name])
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


with stand_ins():
    import pytorch_lightning  # noqa: F401
    import torch

uncompiled: list[Any] = [torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.zero_grad]
for method in uncompiled:
    # The first call of a method that torch excludes from compiling would import Dynamo, to store this attribute.
    vars(method.__wrapped__).setdefault("__dynamo_disable", method.__wrapped__)
