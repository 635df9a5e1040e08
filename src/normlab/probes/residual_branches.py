"""Size of the branches of residual blocks relative to the stream they are added to: :class:`ResidualBranches`.

Letters: K members.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from normlab.models.layer_lookup import call_hooks, mean_std
from normlab.models.nets import ResidualBlock
from normlab.probes.snapshot import Measurement, Probe, Tensors, TrainingSnapshot, observe_forward


def residual_blocks(net: nn.Module) -> dict[str, ResidualBlock]:
    """Return the residual blocks of a net by name, in the order of the forward pass."""
    return {name: block for name, block in net.named_modules() if isinstance(block, ResidualBlock)}


def branch_and_skip_std(net: nn.Module, x: Tensor) -> Tensors:
    """Return the standard deviations ``branch_std`` and ``skip_std`` of each block, by ``block/name``.

    The branch includes its scale s and dropout. The deviations are over all entries, of samples and features.

    Shapes:
        x ``(B, …)``; returns ``()`` each.
    """
    blocks, found = residual_blocks(net), Tensors()

    def before(name: str, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found[f"{name}/skip_std"] = overall_std(args[0])

    def after(name: str, layer: nn.Module, args: tuple, kwargs: dict[str, Any], y: Tensor) -> None:
        found[f"{name}/branch_std"] = overall_std(y * blocks[name].branch_scale)

    # The dropout, or the identity in its place, is the last layer of a branch.
    ends = ((name, block.dropout) for name, block in blocks.items())
    with call_hooks(blocks.items(), before=before), call_hooks(ends, after=after):
        net(x)
    return found


def overall_std(x: Tensor) -> Tensor:
    """Return the standard deviation over all entries, in float64."""
    return mean_std(x.double().reshape(1, -1))[1].squeeze(0)


@dataclass(frozen=True, kw_only=True)
class ResidualBranches(Probe):
    """Standard deviations of branch and skip in each block of ``net=resmlp``, and their ratio.

    Numbers: ``block/branch_std`` and ``block/skip_std``, see :func:`branch_and_skip_std`; ``block/branch_ratio``,
    the first divided by the second; and ``branch_ratio``, that of the last block. At initialization, a branch with
    batch normalization has a ratio proportional to ``1/√depth``, so that deep blocks are almost the identity.
    A net without residual blocks yields no measurement.

    Args:
        data: ``minibatch`` or ``train``, the inputs of the net.

    De and Smith (2020), Batch normalization biases residual blocks towards the identity function in deep networks,
    arXiv:2002.10444.
    """

    data: str = "train"
    modes: Sequence[str] = ("batch",)

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield a measurement for each mode."""
        blocks = residual_blocks(snapshot.net)
        if not blocks:
            return
        for mode in self.modes:
            numbers = observe_forward(snapshot, mode, self.data, branch_and_skip_std)
            for name in blocks:
                ratio = numbers[f"{name}/branch_std"] / numbers[f"{name}/skip_std"]
                numbers[f"{name}/branch_ratio"] = numbers["branch_ratio"] = ratio
            yield Measurement(mode, numbers, headline=("branch_ratio",))
