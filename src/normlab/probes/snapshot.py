"""Interface of probes: `TrainingSnapshot` is their input, `Measurement` their output, `Probe` their base class.

Letters: K members, B samples of a minibatch, N samples, O outputs, P parameters of a member.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from normlab.data.sampling import Split
from normlab.models.layer_lookup import calls_forward_alone
from normlab.norms.batch_norm import BatchNorm, BatchNorm1d
from normlab.norms.counter_rng import StochasticLayer
from normlab.probes.landscape import BatchedLoss, Params, in_double
from normlab.probes.preconditioning import Preconditioning

MODES = ("batch", "frozen")
"""Statistics that normalizers over the batch use: those of the batch, or the running statistics, unchanged."""

DATA = ("minibatch", "train")
"""Data of the loss: the minibatch of the step, or the whole training split."""

PLAIN_TYPES = (bool, int, float, str, type(None), torch.dtype, torch.device, type)
"""Types of immutable values, which copies share."""


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
        params = {name: state[name] for name in self.trained}
        fixed: Params = {name: tensor for name, tensor in state.items() if name not in params}
        x, y = self.data(data)
        if mode == "batch":
            fixed = updated_corrections(self.net, params, fixed, x)

        def loss(params: Params, fixed: Params, x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(net, {**fixed, **params}, (x,))
            return self.loss(outputs.unsqueeze(0), y.unsqueeze(0)).squeeze(0)

        landscape = BatchedLoss(loss, params, [fixed, x, y], mode=mode)
        return landscape.double() if double else landscape


def side_effect_free_copy(net: nn.Module, mode: str, *, folds: bool = True) -> nn.Module:
    """Return a copy of a net whose forward pass changes no statistics and repeats the same random draws.

    The copy shares the tensors of the net; call it with other tensors through ``functional_call``.

    In mode ``batch`` the copy is in training mode, but tracks no running statistics. In mode ``frozen`` it is in
    evaluation mode; with ``folds``, each linear layer also applies the normalizer after it. Layers with an
    attribute ``updates_state`` keep their random draws, or the corrections of batch renormalization.

    Raises:
        ValueError: if the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode}")
    copy: Any = copy_sharing_tensors(net).train(mode == "batch")
    for layer in copy.modules():
        if hasattr(layer, "updates_state"):
            layer.updates_state = False
        if mode == "batch" and hasattr(layer, "track_running_stats"):
            layer.track_running_stats = False
        if isinstance(layer, BatchNorm):
            # The fused kernel has no forward-mode second derivative, and is slower than the formula under vmap.
            layer.fused = False
    if mode == "frozen" and folds:
        fold_normalizers(copy)
    return copy


def copy_sharing_tensors(net: nn.Module) -> nn.Module:
    """Return a copy of a net that shares its tensors.

    ``deepcopy`` would take half of the time of probing a small net.
    """
    return copy_module(net, {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())})


def copy_module(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Return a copy of a module that shares the objects in ``memo``, which is keyed by id as in ``deepcopy``."""
    custom_copy = hasattr(module, "__deepcopy__") or type(module).__setstate__ is not nn.Module.__setstate__
    if custom_copy or id(module) in memo:
        return deepcopy(module, memo)
    copy = memo[id(module)] = module.__new__(type(module))
    for name, value in vars(module).items():
        if name == "_modules":
            vars(copy)[name] = {key: child and copy_module(child, memo) for key, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            vars(copy)[name] = dict(value)
        elif type(value) in (dict, OrderedDict, set, list) and not value:
            vars(copy)[name] = type(value)()
        else:
            vars(copy)[name] = value if isinstance(value, PLAIN_TYPES) else deepcopy(value, memo)
    return copy


def updated_corrections(net: nn.Module, params: Params, fixed: Params, x: Tensor) -> Params:
    """Return the buffers after layers such as batch renormalization have updated their corrections.

    The corrections r and d are computed for these parameters and inputs; the stored ones belong to the previous
    minibatch.
    """
    copy = side_effect_free_copy(net, "batch")
    correcting: list[Any] = [
        m for m in copy.modules() if hasattr(m, "updates_state") and not isinstance(m, StochasticLayer)
    ]
    if not correcting:
        return fixed
    for layer in correcting:
        layer.updates_state = True
    state = {name: tensor.detach().clone() for name, tensor in {**fixed, **params}.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        vmap(partial(functional_call, copy), randomness="same")(state, x)
    return {name: state[name] for name in fixed}


def fold_normalizers(net: nn.Module) -> None:
    """Fold each frozen normalizer of a sequence into the linear layer before it, which halves the time.

    With frozen statistics ``γ (W x + b − μ)/√(σ² + ε) + β = (a W) x + a (b − μ) + β``, ``a = γ/√(σ² + ε)``.
    Layers that occur in several places, or have hooks, are not folded.
    """
    places = Counter(id(layer) for _, layer in net.named_modules(remove_duplicate=False))
    for container in net.modules():
        if type(container).forward is not nn.Sequential.forward:
            continue
        for linear, norm in pairwise(filter(None, container._modules.values())):
            frozen = type(norm) in (BatchNorm1d, nn.BatchNorm1d) and norm._buffers["running_mean"] is not None
            alone = all(places[id(layer)] == 1 and calls_forward_alone(layer) for layer in (linear, norm))
            if type(linear) is nn.Linear and frozen and alone:
                linear.forward = partial(folded_forward, linear, norm)  # type: ignore[method-assign]
                norm.forward = nn.Identity().forward


def folds_exactly(net: nn.Module, state: Params, x: Tensor) -> bool:
    """Return True if a folded copy of a net has the outputs of the net itself in evaluation mode.

    Shapes:
        state: tensors of one member, by name; x ``(B, …)``.
    """
    copies = copy_sharing_tensors(net).eval(), side_effect_free_copy(net, "frozen")

    def agree(state: Params, x: Tensor, tolerance: float) -> bool:
        with torch.no_grad():
            expected, got = (functional_call(copy, dict(state), (x,)) for copy in copies)
        size = float(expected.abs().max())
        return torch.allclose(got, expected, rtol=tolerance, atol=tolerance * size, equal_nan=True)

    try:
        return agree({name: in_double(tensor) for name, tensor in state.items()}, in_double(x), 1e-6)
    except (RuntimeError, TypeError):  # a net with casts of its own may accept a single precision
        return agree(state, x, 1e-3)


def folded_forward(linear: nn.Linear, norm: Any, x: Tensor) -> Tensor:
    """Apply a linear layer and its frozen normalizer to x as one linear map."""
    rate = torch.rsqrt(norm.running_var + norm.eps)
    a = rate if norm.weight is None else rate * norm.weight
    bias = -norm.running_mean if linear.bias is None else linear.bias - norm.running_mean
    shift = a * bias if norm.bias is None else a * bias + norm.bias
    return F.linear(x, linear.weight * a.unsqueeze(1), shift)


@dataclass(frozen=True)
class Measurement:
    """Result of a probe at one snapshot, in one mode.

    Attributes:
        probe: the name of the probe.
        mode: the statistics of the normalizers, ``batch`` or ``frozen``.
        numbers: scalars of each member by name, ``(K,)``; per-layer names have the form ``layer/name``. NaN where
            the quantity is undefined.
        arrays: arrays of each member by name, ``(K, …)``, of the same shape at every snapshot.
        headline: the names of the numbers to print in tables.
        histograms: values whose distribution is shown, by name, ``(K, …)``.
    """

    probe: str
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

    @property
    def name(self) -> str:
        """The name of the probe in records: its class name in snake case."""
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(self).__name__)[1:]

    def check(self, net: nn.Module) -> None:
        """Check before training that the net has the layers that this probe measures.

        Raises:
            ValueError: if it does not.
        """

    def __call__(self, snapshot: TrainingSnapshot) -> Iterable[Measurement]:
        """Yield one measurement of a snapshot for each mode."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(snapshot)")


def parameters_by_layer(net: nn.Module) -> dict[str, list[str]]:
    """Return the names of a net's parameters, grouped by its outermost layers.

    Layers are in order of construction, which in all nets of normlab is the order of the forward pass.
    """
    layers: dict[str, list[str]] = {}
    path = ""
    while True:
        module = net.get_submodule(path)
        children = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
        if len(children) != 1 or any(True for _ in module.parameters(recurse=False)):
            break
        path = f"{path}.{children[0]}".lstrip(".")
    for name, _ in net.named_parameters():
        rest = name.removeprefix(f"{path}.") if path else name
        layer = rest.partition(".")[0] if "." in rest else "net"
        layers.setdefault(layer, []).append(name)
    return layers


def member_normal(generators: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    """Draw from N(0, 1) for each member with its own generator: ``(S, K, …)`` for a shape ``(S, …)``.

    Numbers are always drawn in float64, so that a probe repeated in float64 gets the same ones.
    """
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(draws, dim=1).to(like)


def named_layers(net: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a net with these names.

    Raises:
        ValueError: if the net has no layer of that name; the message lists its layers.
    """
    known = {name: layer for name, layer in net.named_modules() if name}
    for name in names:
        if name not in known:
            raise ValueError(f"layer must be in the net, got {name}; available: {', '.join(known)}")
        yield name, known[name]
