"""Compiling the steps of a population."""

import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from normlab.config import first_line
from normlab.training.machine import is_out_of_memory

log = logging.getLogger("normlab")
Step = Callable[[Tensor, Tensor], Tensor]


def materialized(x: Tensor) -> Tensor:
    """Return x as it is; in compiled code it is written out once, and not computed anew wherever it is read.

    Inductor puts what it takes for cheap, such as a root of a number for each feature, into the loop over samples.
    """
    return x.as_strided(x.shape, x.stride())


class Compiled:
    """A step in one compiled piece for minibatches of certain sizes, and another step for those of other sizes.

    Compiled code is for one size of its tensors; it is made when the first minibatch of a size comes, and kept on
    disk by Inductor. Where that fails it is said, and the training goes on with the other step.

    Attributes:
        seconds: the time that compiling took, with the first step of each size.
    """

    def __init__(self, step: Step, uncompiled: Step, sizes: Iterable[int]) -> None:
        # What earlier populations left would count against the limit of variants that one function may have.
        torch.compiler.reset()
        self.whole: Step = torch.compile(step, dynamic=False, fullgraph=True)
        self.uncompiled = uncompiled
        self.sizes, self.ready = set(sizes), set[int]()
        self.seconds = 0.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step."""
        size = x.shape[1]
        if size in self.ready:
            return self.whole(x, y)
        return self.first(x, y) if size in self.sizes else self.uncompiled(x, y)

    def first(self, x: Tensor, y: Tensor) -> Tensor:
        """Compile for the size of this minibatch, and take the step."""
        started = time.perf_counter()
        try:
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                losses = self.whole(x, y)
        except Exception as error:  # whatever Dynamo, Inductor and the C++ compiler may raise
            if is_out_of_memory(error):
                raise
            log.warning("trainer.compile: %s; the training goes on uncompiled", first_line(error))
            self.sizes.clear()
            return self.uncompiled(x, y)
        finally:
            self.seconds += time.perf_counter() - started
        self.ready.add(x.shape[1])
        return losses
