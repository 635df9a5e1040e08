"""Takes steps of populations on a GPU that is not there: tensors without numbers, on a device of their own.

torch checks the devices of all operations, and an operation that returns a number of Python's, such as ``item``,
fails: on a GPU it would wait for all work launched before. Run as a script, as the device is registered for the
process; prints the error of each case, or null, as JSON.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from normlab.config.frozen import FrozenConfig, replaced
from normlab.config.validation import validate
from normlab.population.compiling import PopulationStep
from normlab.population.population import replace, tensors_of
from normlab.training.build import make_data, make_module
from normlab.training.population_module import PopulationModule

CONF = Path(__file__).parents[2] / "conf"
GPU = "fakegpu"
SMALL = {
    "mlp": ["data=random", "data.train=128", "data.batch_size=64", "net.hidden=[8,8]"],
    "resmlp": ["net=resmlp", "net.width=8", "net.blocks=2", "data=random", "data.train=128", "data.batch_size=64"],
    "cnn": ["net=cnn", "net.channels=[4,4]", "data=digits", "data.train=128", "data.batch_size=64"],
}
VARIANTS = {
    "sgd": ["optimizer=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.1"],
    "adamw": ["optimizer=adamw", "+optimizer.no_decay=[norm,bias]"],
    "rmsprop": ["optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"],
    "onecycle": ["scheduler=onecycle"],
    "cosine": ["scheduler=cosine", "+scheduler.interval=step"],
    "clipped": ["trainer.gradient_clip_val=0.1"],
    "trainable": ["trainable=random:norm"],
    "own data": ["replicate=data"],
    "one member": [],
}
WRONG = {"mixed": "FakeTensorDeviceMismatchError", "waiting": "DataDependentOutputException"}
"""Layers that must fail, with the error."""
MEMBERS = 3


class Mixed(nn.Module):
    """Adds numbers that are always on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(x.shape[-1])


class Waiting(nn.Module):
    """Reads a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum() > 0)


def built(words: Sequence[str], members: int) -> PopulationModule:
    """Return the module of a population, with its datamodule."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = FrozenConfig.of(validate(compose("train", overrides=list(words))))
    configs = [FrozenConfig.of(replaced(config, {("seed",): seed})) for seed in range(members)]
    data = make_data(*configs)
    module = make_module(configs, data)
    module.data = data
    split = data.split(0)
    module.population.initialize_layers(next(iter(data.minibatches((split.x, split.y), module.seeds, 0)))[0])
    return module


class FakeGpu:
    """The device: tensors moved to it have no numbers."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.moved: dict[int, tuple[Tensor, Tensor]] = {}

    def move(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device, the same one at every call."""
        if id(tensor) not in self.moved:
            shape, stride = tensor.shape, tensor.stride()
            with self.mode:
                fake = torch.empty_strided(shape, stride, dtype=tensor.dtype, device=GPU)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            self.moved[id(tensor)] = tensor, fake
        return self.moved[id(tensor)][1]

    def move_all(self, owner: Any) -> None:
        """Move the tensors that are attributes of an object."""
        for name, value in vars(owner).items():
            if isinstance(value, Tensor | list | dict):
                setattr(owner, name, tree_map_only(Tensor, self.move, value, is_leaf=is_shape))


def is_shape(value: Any) -> bool:
    """Return True for shapes, which are tuples to torch's trees."""
    return isinstance(value, torch.Size)


def take_steps(words: Sequence[str], members: int = MEMBERS, layer: nn.Module | None = None) -> None:
    """Take steps of a population on the fake GPU, and evaluate it."""
    module, gpu = built(words, members), FakeGpu()
    population, data = module.population, module.data
    if layer is not None:
        population.net = nn.Sequential(layer, population.net)
    optimizer = module.make_optimizer(population.net, members)
    scheduler = module.make_scheduler(optimizer, members) if module.make_scheduler else None
    for name, tensor in list(tensors_of(population.net)):
        replace(population.net, name, gpu.move(tensor))
    gpu.move_all(optimizer)
    if hasattr(optimizer, "inner"):
        gpu.move_all(optimizer.inner)
    split = data.split(0)
    x, y = gpu.move(split.x), gpu.move(split.y)
    with gpu.mode:
        module.optimizer = optimizer
        module.advance = optimizer.advance
        step = (
            PopulationStep(population, module.task.loss, optimizer, module.clipping)
            if members > 1
            else module.take_step
        )
        # FakeTensor gives the gradient of a convolution of this device a wrong shape.
        for minibatch in data.minibatches((x, y), module.seeds, 0) if "net=cnn" not in words else ():
            losses = step(*minibatch)
            assert losses.device.type == GPU
            if scheduler is not None:
                scheduler.step()
        outputs = population.eval()(x.expand(members, *x.shape[1:]))
        assert module.task.loss(outputs, y.expand(members, *y.shape[1:])).device.type == GPU


def cases() -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    """Yield name, overrides and arguments of the cases."""
    for path in sorted((CONF / "model").glob("*.yaml")):
        for net in ("mlp", "cnn") if path.stem != "in" else ("cnn",):
            yield f"{path.stem}, {net}", [f"model={path.stem}", *SMALL[net]], {}
    for name, words in VARIANTS.items():
        arguments = {"members": 1} if name == "one member" else {}
        yield name, ["model=bn_formula", *SMALL["mlp"], *words], arguments
    yield "residual", [*SMALL["resmlp"], "net.dropout=0.2"], {}
    yield "mixed", SMALL["mlp"], {"layer": Mixed()}
    yield "waiting", SMALL["mlp"], {"layer": Waiting(), "members": 1}


def main() -> None:
    """Run the cases."""
    _setup_privateuseone_for_python_backend(GPU)
    errors: dict[str, str | None] = {}
    for name, words, arguments in cases():
        try:
            take_steps(words, **arguments)
            errors[name] = None
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
