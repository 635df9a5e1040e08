"""normlab compares normalization layers in controlled training experiments.

In Python and notebooks, :func:`sweep` trains a sweep, :func:`load_sweep` reads one from its folder, and
:func:`compare` compares paired scores of any origin. They are loaded when they are used, so that
``import normlab`` is quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab.api import Sweep, load_sweep, sweep
    from normlab.stats.paired_scores import Comparison, compare

__version__ = "0.1.0"
__all__ = ["Comparison", "Sweep", "compare", "load_sweep", "sweep"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "normlab.api" if name in ("Sweep", "load_sweep", "sweep") else "normlab.stats.paired_scores"
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'normlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
