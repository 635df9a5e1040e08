"""What a probe is shown of a training, and what it answers.

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
"""What normalizers over the batch go by: the statistics of the batch, or running ones, which stay as they are."""

DATA = ("minibatch", "train")
"""What the loss is taken over: the step's minibatch, or the whole training split."""

PLAIN_TYPES = (bool, int, float, str, type(None), torch.dtype, torch.device, type)
"""What needs no copy."""


@dataclass(frozen=True)
class TrainingSnapshot:
    """A moment in the training of K nets: before an optimizer step, after it, and what the step was taken on.

    Where no step is taken, at the start and at the end of a training, ``after`` is ``before``.

    Attributes:
        net: the architecture; the numbers in it are not used.
        loss: of outputs ``(K, B, O)`` and targets ``(K, B, …)``, each member's, ``(K,)``.
        trained: the names of the parameters that the optimizer updates.
        before, after: parameters and buffers by name, ``(K, …)`` each.
        start: the same as the training began with.
        minibatch: x ``(K, B, …)`` and y ``(K, B, …)``.
        train: the training split, x ``(M, N, …)`` and y ``(M, N, …)``; M is 1 if members have the same, else K.
        lr: each member's learning rate, ``(K,)``, in float64.
        stability: the largest λmax·η with which the optimizer is stable on a quadratic, ``(K,)``; None where
            there is no such limit, as with adaptive optimizers, which have one for the preconditioned Hessian.
        generators: one for each member, to draw from.
        epoch, step: of the training, the step counted from 0.
        folds: whether frozen normalizers may be folded into the linear layers before them; see ``folds_exactly``.
        preconditioning: of an adaptive optimizer, before the step.
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
        """Return samples as each member sees them, ``(K, B, …)``."""
        if which == "minibatch":
            return self.minibatch
        x, y = self.train
        members = len(self.lr)
        return x.expand(members, *x.shape[1:]), y.expand(members, *y.shape[1:])

    def landscape(
        self, mode: str, data: str = "minibatch", state: Params | None = None, *, double: bool = False
    ) -> BatchedLoss:
        """Return the loss as a function of the trained parameters, at those before the step or of ``state``.

        Raises:
            ValueError: for a mode or data of another name.
        """
        net = side_effect_free_copy(self.net, mode, folds=self.folds)
        state = self.before if state is None else state
        params = {name: state[name] for name in self.trained}
        fixed: Params = {name: tensor for name, tensor in state.items() if name not in params}
        x, y = self.data(data)
        if mode == "batch":
            fixed = corrected(self.net, params, fixed, x)

        def loss(params: Params, fixed: Params, x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(net, {**fixed, **params}, (x,))
            return self.loss(outputs.unsqueeze(0), y.unsqueeze(0)).squeeze(0)

        landscape = BatchedLoss(loss, params, [fixed, x, y], mode=mode)
        return landscape.double() if double else landscape


def side_effect_free_copy(net: nn.Module, mode: str, *, folds: bool = True) -> nn.Module:
    """Return a copy of a net whose forward pass changes nothing: what it normalizes by, and draws, is held.

    It shares the net's tensors, and is to be called with others in their place.

    In mode ``batch`` the copy is in training mode, where layers with ``track_running_stats`` track none, and in
    ``frozen`` in evaluation mode, where each linear layer takes over the normalizer after it if ``folds``. Layers
    with an attribute ``held`` hold what they draw, or correct by.

    Raises:
        ValueError: for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode}")
    copy: Any = structure(net).train(mode == "batch")
    for layer in copy.modules():
        if hasattr(layer, "held"):
            layer.held = True
        if mode == "batch" and hasattr(layer, "track_running_stats"):
            layer.track_running_stats = False
        if isinstance(layer, BatchNorm):
            # The kernel has no second derivative by jvp of jvp, and under vmap takes longer than the formula.
            layer.fused = False
    if mode == "frozen" and folds:
        fold(copy)
    return copy


def structure(net: nn.Module) -> nn.Module:
    """Return a copy of a net that shares its tensors.

    ``deepcopy`` would take half of the time that a small net is looked at for.
    """
    return shell(net, {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())})


def shell(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Return a copy of a module, with what is in ``memo`` instead of copies of that, as ``deepcopy`` has it."""
    own_way = hasattr(module, "__deepcopy__") or type(module).__setstate__ is not nn.Module.__setstate__
    if own_way or id(module) in memo:
        return deepcopy(module, memo)
    copy = memo[id(module)] = module.__new__(type(module))
    for name, value in vars(module).items():
        if name == "_modules":
            vars(copy)[name] = {key: child and shell(child, memo) for key, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            vars(copy)[name] = dict(value)
        elif type(value) in (dict, OrderedDict, set, list) and not value:
            vars(copy)[name] = type(value)()
        else:
            vars(copy)[name] = value if isinstance(value, PLAIN_TYPES) else deepcopy(value, memo)
    return copy


def corrected(net: nn.Module, params: Params, fixed: Params, x: Tensor) -> Params:
    """Return buffers in which layers that correct by the batch have done so, at these parameters and this data.

    Those of batch renormalization are otherwise of the minibatch before.
    """
    free = side_effect_free_copy(net, "batch")
    correcting: list[Any] = [
        m for m in free.modules() if hasattr(m, "held") and not isinstance(m, StochasticLayer)
    ]
    if not correcting:
        return fixed
    for layer in correcting:
        layer.held = False
    state = {name: tensor.detach().clone() for name, tensor in {**fixed, **params}.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        vmap(partial(functional_call, free), randomness="same")(state, x)
    return {name: state[name] for name in fixed}


def fold(net: nn.Module) -> None:
    """Let each linear layer of a sequence take over the frozen normalizer that follows it, for half of the time.

    With frozen statistics ``γ (W x + b − μ)/√(σ² + ε) + β = (a W) x + a (b − μ) + β``, ``a = γ/√(σ² + ε)``.
    A layer that stands in several places, or has hooks, is left as it is.
    """
    places = Counter(id(layer) for _, layer in net.named_modules(remove_duplicate=False))
    for container in net.modules():
        if type(container).forward is not nn.Sequential.forward:
            continue
        for linear, norm in pairwise(filter(None, container._modules.values())):
            frozen = type(norm) in (BatchNorm1d, nn.BatchNorm1d) and norm._buffers["running_mean"] is not None
            alone = all(places[id(layer)] == 1 and calls_forward_alone(layer) for layer in (linear, norm))
            if type(linear) is nn.Linear and frozen and alone:
                linear.forward = partial(folded, linear, norm)  # type: ignore[method-assign]
                norm.forward = nn.Identity().forward


def folds_exactly(net: nn.Module, state: Params, x: Tensor) -> bool:
    """Return whether a folded copy of a net gives the outputs of the net itself in evaluation mode.

    Shapes:
        state: of one member; x ``(B, …)``.
    """
    copies = structure(net).eval(), side_effect_free_copy(net, "frozen")

    def agree(state: Params, x: Tensor, tolerance: float) -> bool:
        with torch.no_grad():
            expected, got = (functional_call(copy, dict(state), (x,)) for copy in copies)
        size = float(expected.abs().max())
        return torch.allclose(got, expected, rtol=tolerance, atol=tolerance * size, equal_nan=True)

    try:
        return agree({name: in_double(tensor) for name, tensor in state.items()}, in_double(x), 1e-6)
    except (RuntimeError, TypeError):  # a net that casts by itself may take one precision alone
        return agree(state, x, 1e-3)


def folded(linear: nn.Linear, norm: Any, x: Tensor) -> Tensor:
    """Apply a linear layer and its frozen normalizer to x as one map."""
    rate = torch.rsqrt(norm.running_var + norm.eps)
    a = rate if norm.weight is None else rate * norm.weight
    bias = -norm.running_mean if linear.bias is None else linear.bias - norm.running_mean
    shift = a * bias if norm.bias is None else a * bias + norm.bias
    return F.linear(x, linear.weight * a.unsqueeze(1), shift)


@dataclass(frozen=True)
class Measurement:
    """What a probe found in one scene, by one kind of statistics.

    Attributes:
        probe, mode: who found it, and what normalizers went by: ``batch`` or ``frozen``, always named.
        numbers: by name, ``(K,)`` each; of a layer as ``layer/name``. NaN where there is nothing to measure.
        arrays: by name, ``(K, …)`` each, of the same shape in every scene.
        headline: the numbers that a table has room for.
        histograms: values to show as a distribution, by name, ``(K, …)`` each.
    """

    probe: str
    mode: str
    numbers: Mapping[str, Tensor]
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    headline: Sequence[str] = ()
    histograms: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """When a probe is to look, and by which statistics; a subclass says what it finds.

    Args:
        at_start: before anything has trained.
        every_n_epochs: at the last step of every so manieth epoch.
        every_n_steps: at every so manieth step, the first among them.
        at_end: when all has trained.
        modes: ``batch``, ``frozen`` or both.

    Raises:
        ValueError: for a number below 1, or a mode of another name.
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
        """What the probe is called in records: its class, in lower case with underscores."""
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(self).__name__)[1:]

    def check(self, net: nn.Module) -> None:
        """Refuse a net in which there is nothing for this probe to look at, before anything trains.

        Raises:
            ValueError: the reason.
        """

    def __call__(self, scene: TrainingSnapshot) -> Iterable[Measurement]:
        """Yield the measurements of a snapshot, for each mode."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(scene)")


def parts_of(net: nn.Module) -> dict[str, list[str]]:
    """Return a net's layers in order, each with the names of its parameters: the parts that it is put together of.

    The order is that in which they were made, which in every net here is that of the data.
    """
    parts: dict[str, list[str]] = {}
    path = ""
    while True:
        within = net.get_submodule(path)
        holding = [name for name, child in within.named_children() if any(True for _ in child.parameters())]
        if len(holding) != 1 or any(True for _ in within.parameters(recurse=False)):
            break
        path = f"{path}.{holding[0]}".lstrip(".")
    for name, _ in net.named_parameters():
        rest = name.removeprefix(f"{path}.") if path else name
        layer = rest.partition(".")[0] if "." in rest else "net"
        parts.setdefault(layer, []).append(name)
    return parts


def member_normal(generators: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    """Return draws from N(0, 1), each member's from its own generator: ``(S, K, …)`` for a shape ``(S, …)``.

    They are drawn in float64 whatever the precision, so that a probe repeated in float64 sees the same.
    """
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(draws, dim=1).to(like)


def layers_at(net: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield layers of a net by name.

    Raises:
        ValueError: for a name that the net does not have, with the list of those that it has.
    """
    known = {name: layer for name, layer in net.named_modules() if name}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no layer {name}; the net has {', '.join(known)}")
        yield name, known[name]
