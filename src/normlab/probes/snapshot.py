"""Interface of probes: `TrainingSnapshot` is their input, `Measurement` their output, `Probe` their base class.

Letters: K members, B samples of a minibatch, N samples, O outputs, P parameters of a member, D units of a layer, R
rows: B samples, at every position of an image.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, count
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map_only

from normlab.data.sampling import Split
from normlab.models.generators import forked_generators
from normlab.models.layer_lookup import NORMALIZERS, activation_slots, call_hooks, mean_std, normalizer_slots
from normlab.probes.landscape import MODES, BatchedLoss, Params, side_effect_free_copy, updated_corrections

DATA = ("minibatch", "train")
"""Data of the loss: the minibatch of the step, or the whole training split."""

Tensors = dict[str, Tensor]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Preconditioning:
    """A diagonal preconditioner P of an optimizer whose steps are along ``P⁻¹(∇f + λθ)``.

    Shapes:
        diagonal ``(K, P)``, decay ``(K,)`` or ``(K, P)``, and limit ``(K,)``, in float64.

    Attributes:
        diagonal: the diagonal of P, NaN before the first update of the optimizer.
        decay: λ, the weight decay that is added to the gradient; of each entry of θ if it differs.
        limit: the largest ``η·λmax(P⁻¹(H + λI))`` at which the optimizer is stable on a quadratic.
    """

    diagonal: Tensor
    decay: Tensor
    limit: Tensor


@dataclass(frozen=True)
class TrainingSnapshot:
    """State of K nets before and after an optimizer step, with the data and settings of that step.

    At the start and at the end of training no step is taken, and ``after`` is the same object as ``before``.

    Attributes:
        net: the architecture; the values of its tensors are not used.
        loss: maps outputs ``(K, B, O)`` and targets ``(K, B, …)`` to the loss of each member, ``(K,)``.
        trained: the names of the parameters that the optimizer updates.
        before, after: parameters and buffers by name, ``(K, …)`` each.
        start: the same tensors at the start of training.
        minibatch: x ``(K, B, …)`` and y ``(K, B, …)``.
        train: the training split, x ``(M, N, …)`` and y ``(M, N, …)``; M is 1 if all members share it, else K.
        lr: each member's learning rate, ``(K,)``, in float64.
        stability: the largest λmax·η at which the optimizer is stable on a quadratic, ``(K,)``. None if it has no
            such limit: adaptive optimizers have one for the preconditioned Hessian instead.
        generators: one random generator for each member.
        epoch, step: training progress; steps count from 0.
        folds: whether frozen normalizers may be folded into the linear layers; see :func:`folds_exactly`.
        preconditioning: the preconditioner of an adaptive optimizer before the step, else None.
        test: the test split in the shapes of ``train``; None if it is empty.
        equilibrium: the angular update at which scale-invariant weights settle, ``(K,)``, 0 without weight decay;
            None if the optimizer has no formula for it.
    """

    net: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    trained: Sequence[str]
    before: Params
    after: Params
    start: Params
    minibatch: Split
    train: Split
    lr: Tensor
    stability: Tensor | None
    generators: Sequence[torch.Generator]
    epoch: int
    step: int
    folds: bool = True
    preconditioning: Preconditioning | None = None
    test: Split | None = None
    equilibrium: Tensor | None = None

    def data(self, which: str) -> Split:
        """Return the inputs and targets of each member, ``(K, B, …)``: of the ``minibatch`` or of ``train``."""
        if which == "minibatch":
            return self.minibatch
        x, y = self.train
        members = len(self.lr)
        return x.expand(members, *x.shape[1:]), y.expand(members, *y.shape[1:])

    def landscape(
        self, mode: str, data: str = "minibatch", state: Params | None = None, *, double: bool = False
    ) -> BatchedLoss:
        """Return the loss as a function of the trained parameters, around ``state``.

        Args:
            mode: ``batch`` or ``frozen``, the statistics of the normalizers.
            data: ``minibatch`` or ``train``.
            state: parameters and buffers; those before the step if None.
            double: whether to compute in float64.

        Raises:
            ValueError: if the mode is unknown.
        """
        net = side_effect_free_copy(self.net, mode, folds=self.folds)
        state = self.before if state is None else state
        x, y = self.data(data)
        params, fixed = self.trained_and_fixed(state)
        if mode == "batch":
            fixed = updated_corrections(self.net, params, fixed, x)

        def forward(state: Tensors, x: Tensor) -> Tensor:
            return functional_call(net, state, (x,))

        return self.loss_of(forward, params, fixed, [x], y, double=double)

    def trained_and_fixed(self, state: Params) -> tuple[Params, Params]:
        """Split parameters and buffers into the trained parameters and all others."""
        params = {name: state[name] for name in self.trained}
        return params, {name: tensor for name, tensor in state.items() if name not in params}

    def loss_of(
        self,
        forward: Callable[..., Tensor],
        params: Params,
        fixed: Params,
        inputs: Sequence[Tensor],
        y: Tensor,
        *,
        double: bool,
    ) -> BatchedLoss:
        """Return the loss of a forward pass, a function of one member's parameters and buffers, and ``inputs``."""

        def loss(params: Params, fixed: Params, y: Tensor, *inputs: Tensor) -> Tensor:
            outputs = forward({**fixed, **params}, *inputs)
            return self.loss(outputs.unsqueeze(0), y.unsqueeze(0)).squeeze(0)

        landscape = BatchedLoss(loss, params, [fixed, y, *inputs])
        return landscape.double() if double else landscape


@dataclass(frozen=True)
class Measurement:
    """Result of a probe at one snapshot, in one mode.

    Attributes:
        mode: the statistics of the normalizers, ``batch`` or ``frozen``.
        numbers: scalars of each member by name, ``(K,)``; per-layer names have the form ``layer/name``. NaN where
            the quantity is undefined.
        arrays: arrays of each member by name, ``(K, …)``, of the same shape at every snapshot.
        headline: the names of the numbers to print in tables.
        histograms: values whose distribution is shown, by name, ``(K, …)``.
    """

    mode: str
    numbers: Mapping[str, Tensor]
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    headline: Sequence[str] = ()
    histograms: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Base class of probes: the schedule and the modes; subclasses implement ``__call__``.

    Args:
        at_start: measure before training.
        every_n_epochs: measure at the last step of every n-th epoch.
        every_n_steps: measure at every n-th step, including the first.
        at_end: measure after training.
        modes: ``batch``, ``frozen`` or both.

    Raises:
        ValueError: if an interval is below 1, or a mode is unknown.
    """

    at_start: bool = False
    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    at_end: bool = False
    modes: Sequence[str] = MODES

    def __post_init__(self) -> None:
        for name in ("every_n_epochs", "every_n_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be null or at least 1, got {value}")
        for mode in self.modes:
            if mode not in MODES:
                raise ValueError(f"modes must be of {', '.join(MODES)}, got {mode}")
        for option in fields(self):
            if option.name == "data" and getattr(self, option.name) not in DATA:
                raise ValueError(f"data must be {' or '.join(DATA)}, got {getattr(self, option.name)}")

    def check(self, net: nn.Module) -> None:
        """Check before training that the net has the layers that this probe measures.

        Raises:
            ValueError: if it does not.
        """

    def __call__(self, snapshot: TrainingSnapshot) -> Iterable[Measurement]:
        """Yield one measurement of a snapshot for each mode."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(snapshot)")


class ForwardBackward(NamedTuple):
    """Activations and gradients of one forward and backward pass.

    Attributes:
        inputs: the input of each activation, by layer, ``(K, R, D)``. Further calls of an activation have the keys
            ``layer.2``, ``layer.3`` and so on.
        outputs: the output of each activation, by the same keys.
        activations: the module of each activation, by the same keys.
        normalized: mean and standard deviation over all entries of each normalizer's output, by layer, ``(K, 2)``.
        gradients: the gradient of the loss with respect to each weight, by its name, ``(K, …)``.
    """

    inputs: Tensors
    outputs: Tensors
    activations: dict[str, nn.Module]
    normalized: Tensors
    gradients: Tensors


def forward_backward(
    snapshot: TrainingSnapshot, mode: str, weights: Sequence[str], data: str = "minibatch"
) -> ForwardBackward:
    """Run a forward and a backward pass of each member at the parameters before the step.

    Args:
        snapshot: the nets and their data.
        mode: ``batch`` or ``frozen``, the statistics of the normalizers.
        weights: the names of the parameters to differentiate with respect to.
        data: ``minibatch`` or ``train``.

    Raises:
        ValueError: if the mode is unknown.
    """
    modules: dict[str, nn.Module] = {}

    def call(state: Tensors, x: Tensor) -> tuple[Tensor, Tensors, Tensors, Tensors]:
        net = side_effect_free_copy(snapshot.net, mode, state, folds=snapshot.folds, corrections=True)
        if len(snapshot.lr) == 1:
            use_fused_kernels(net, snapshot.net)
        inputs, outputs, normalized = Tensors(), Tensors(), Tensors()

        # Tensors are cloned, because later layers may modify them in place.
        def before(layer: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            add_call(inputs, layer, args[0].detach().clone())

        def after(layer: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], y: Tensor) -> None:
            modules[add_call(outputs, layer, y.detach().clone())] = module

        def after_norm(layer: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], y: Tensor) -> None:
            add_call(normalized, layer, torch.cat(mean_std(y.detach().reshape(1, -1))))

        with (
            call_hooks(activation_slots(net), before=before, after=after),
            call_hooks(normalizer_slots(net), after=after_norm),
        ):
            return net(x), inputs, outputs, normalized

    names = [name for name, _ in chain(snapshot.net.named_parameters(), snapshot.net.named_buffers())]
    # Clones, because layers may update buffers in place.
    state = {name: snapshot.before[name].detach().clone() for name in names}
    leaves, (x, y) = [state[name].requires_grad_() for name in weights], snapshot.data(data)
    with forked_generators(x), torch.enable_grad():
        predictions, inputs, outputs, normalized = map_members(call, state, x)
        loss = snapshot.loss(predictions, y).sum()
        back = torch.autograd.grad(loss, leaves, materialize_grads=True) if leaves else ()
    inputs, outputs = (
        {name: flatten_positions(h) for name, h in tensors.items()} for tensors in (inputs, outputs)
    )
    return ForwardBackward(inputs, outputs, modules, normalized, dict(zip(weights, back, strict=True)))


def observe_forward(
    snapshot: TrainingSnapshot, mode: str, data: str, observe: Callable[[nn.Module, Tensor], Tensors]
) -> Tensors:
    """Return measurements of a forward pass of each member at the parameters before the step, ``(K, …)`` each.

    Args:
        snapshot: the nets and their data.
        mode: ``batch`` or ``frozen``, the statistics of the normalizers.
        data: ``minibatch`` or ``train``.
        observe: calls one net on its inputs ``(B, …)``, and returns measurements by name.
    """

    def call(state: Tensors, x: Tensor) -> Tensors:
        return observe(side_effect_free_copy(snapshot.net, mode, state, folds=False, corrections=True), x)

    names = [name for name, _ in chain(snapshot.net.named_parameters(), snapshot.net.named_buffers())]
    # Clones, because layers may update buffers in place.
    state = {name: snapshot.before[name].detach().clone() for name in names}
    x, _ = snapshot.data(data)
    with forked_generators(x), torch.no_grad():
        return map_members(call, state, x)


def map_members(function: Callable[..., Result], *arguments: Any) -> Result:
    """Apply a function of one member's tensors to those of K members, ``(K, …)`` to ``(K, …)``.

    A single member is not vmapped, which would double the time.
    """
    if len(arguments[-1]) > 1:
        return vmap(function, randomness="same")(*arguments)
    result = function(*tree_map_only(Tensor, lambda tensor: tensor.squeeze(0), arguments))
    return tree_map_only(Tensor, lambda tensor: tensor.unsqueeze(0), result)


def add_call(calls: Tensors, layer: str, value: Tensor) -> str:
    """Add a value under the name of a layer and the number of the call, such as ``layer.2``; return that name."""
    name = next(name for name in chain([layer], (f"{layer}.{n}" for n in count(2))) if name not in calls)
    calls[name] = value
    return name


def use_fused_kernels(net: nn.Module, like: nn.Module) -> None:
    """Use the fused kernels of the original, which are faster for one net and first derivatives."""
    for layer, original in zip(net.modules(), like.modules(), strict=True):
        if "fused" in vars(original):
            layer.fused = original.fused


def flatten_positions(h: Tensor) -> Tensor:
    """Merge samples and positions into rows, units last: ``(K, B, D, …)`` or ``(K, B)`` to ``(K, R, D)``."""
    return h.unsqueeze(2) if h.dim() == 2 else h.movedim(2, -1).flatten(1, -2)


def weights_by_layer(snapshot: TrainingSnapshot, layers: Collection[str]) -> dict[str, list[str]]:
    """Return the names of the trained weights, grouped by layer, in order of construction.

    Weights are parameters with two or more axes, except those of normalizers and the lengths of weight
    normalization. Weights outside of all ``layers`` are grouped by their own module.
    """
    by_layer: dict[str, list[str]] = {}
    for name in snapshot.trained:
        path, _, original = name.partition(".parametrizations.")
        owner, shape = path if original else name.rpartition(".")[0], snapshot.before[name].shape[1:]
        # original0 of another parametrization may be a factor of the weights, as in a low-rank product.
        is_length = original.endswith("original0") and shape.numel() == max(shape, default=1)
        in_norm = "norm" in owner.split(".") or isinstance(snapshot.net.get_submodule(owner), NORMALIZERS)
        if len(shape) < 2 or is_length or in_norm:
            continue
        enclosing = [layer for layer in layers if owner.startswith(f"{layer}.")]
        by_layer.setdefault(max(enclosing, key=len, default=owner or "net"), []).append(name)
    return by_layer
