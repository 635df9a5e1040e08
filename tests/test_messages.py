"""Configuration errors name the fault, its location and the remedy."""

import sys
from pathlib import Path

import pytest

SHORT = ["trainer.max_epochs=1", "logger=csv"]
NORM = "norm:\n  _target_: torch.nn.BatchNorm1d\n  _partial_: true\n  momentum: {}\nnorm2d: null\nweight: null\n"
LBFGS = "optimizer._target_=torch.optim.LBFGS"


@pytest.mark.parametrize("how", [["model=mine"], ["-m", "model=bn,mine"]], ids=str)
@pytest.mark.parametrize(
    ("text", "answer"),
    {
        "norm:\n  a: 1\n b: 2\n": "conf/model/mine.yaml, line 3: cannot be read as YAML: ",
        "norm: null\nnorm: null\n": "mine.yaml, line 2: cannot be read as YAML: found duplicate key norm",
        NORM.format("${optimizer.lrr}"): (
            "conf/model/mine.yaml, line 4: model.norm.momentum: ${optimizer.lrr} refers to a missing "
            "key, optimizer.lrr; did you mean ${optimizer.lr}?"
        ),
        NORM.format("${optimizer.lr"): "conf/model/mine.yaml, line 4: an interpolation is ${key}: ",
        NORM.format("${nope:1}"): "mine.yaml, line 4: model.norm.momentum: ${nope:1} cannot be resolved: ",
    }.items(),
)
def test_error_in_user_file_names_file_and_line(run_train, tmp_path, how, text, answer):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(text)
    outcome = run_train("--config-dir", "conf", *how, *SHORT)
    assert outcome.code == 1
    assert answer in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["conf"]


@pytest.mark.parametrize(
    ("word", "answer"),
    {
        "data.seed=${sed}": "data.seed: ${sed} refers to a missing key, sed; did you mean ${seed}",
        "data.seed=${hydra.job.num}": "error: data.seed: ${hydra.job.num} refers to a missing key, "
        "hydra.job.num; outside hydra.…, write Hydra's values as ${hydra:job.num}",
        "data.target_column=median value ($)": ("""is quoted twice: 'data.target_column="median value ($)"'"""),
        "callbacks.extra={x:1}": "callbacks.extra: its keys are fixed; to add one write +callbacks.extra=…",
        LBFGS: "optimizer._target_=torch.optim.LBFGS needs a closure, which a population lacks; use module="
        "lightning",
        "+optimizer.momentun=0.9": "remove the others: '~optimizer.momentun'",
        "optimizer.lr=null": "optimizer.lr must be a number, got None",
    }.items(),
)
def test_faulty_override_gives_the_remedy(run_train, word, answer):
    outcome = run_train(word, *SHORT)
    assert outcome.code == 1
    assert answer in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_suggested_quoting_works(run_train):
    rows = "\n".join(f"{i},{i % 7}.5" for i in range(30))
    Path("t.csv").write_text(f'x,"median value ($)"\n{rows}\n')
    table = ["data=csv", "data.path=t.csv", "data.train=20", "data.val=5", "data.test=5", "data.batch_size=10"]
    outcome = run_train(*table, 'data.target_column="median value ($)"', *SHORT)
    assert outcome.code == 0, outcome.err


LINEAR = """
import torch


class Needy(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr)
"""


@pytest.mark.parametrize(("target", "code"), [("torch.optim.Adam", 0), ("needy.Needy", 1)])
def test_lr_is_required_if_optimizer_has_no_default(run_train, tmp_path, monkeypatch, target, code):
    monkeypatch.syspath_prepend(tmp_path)
    Path("needy.py").write_text(LINEAR)
    Path("conf/optimizer").mkdir(parents=True)
    Path("conf/optimizer/mine.yaml").write_text(f"_target_: {target}\n_partial_: true\n")
    outcome = run_train("--config-dir", "conf", "optimizer=mine", *SHORT)
    assert outcome.code == code, outcome.err
    if code:
        assert "optimizer.lr is missing, but needy.Needy needs it; write +optimizer.lr=0.01" in outcome.err
        assert run_train("--config-dir", "conf", "optimizer=mine", "+optimizer.lr=0.01", *SHORT).code == 0


MISTAKES = """
import pytorch_lightning as pl
import torch
from torch import nn


class Module(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Needy(Module):
    def __init__(self, net, width):
        super().__init__(net)


class Rows(Module):
    def training_step(self, batch, batch_idx):
        return self.net(batch[0])


class Number(Module):
    def training_step(self, batch, batch_idx):
        return {"loss": 1.0}


class Constant(Module):
    def training_step(self, batch, batch_idx):
        return torch.ones(())


class Nothing(Module):
    def training_step(self, batch, batch_idx):
        return None


class Silent(Module):
    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).mean()


class Faulty(Module):
    def training_step(self, batch, batch_idx):
        return self.nett(batch[0])


def no_module(net):
    return net


class NeedyLoss(nn.Module):
    def __init__(self, tau):
        super().__init__()


class RowLoss(nn.Module):
    def forward(self, outputs, targets):
        return (outputs - targets).mean(1)


class NeedySGD(torch.optim.SGD):
    def __init__(self, params, lr, flavour):
        super().__init__(params, lr)


class NeedyLogger(pl.loggers.CSVLogger):
    def __init__(self, folder):
        super().__init__(folder)
"""
STEP = "must return a scalar tensor with a gradient, alone or under loss in a dict, got"
STOPPING = "pytorch_lightning.callbacks.EarlyStopping"
HUBER = "torch.nn.functional.huber_loss"
ANY_MODULE = {
    "loss._target_=mistakes.NeedyLoss": "loss: mistakes.NeedyLoss needs the argument tau; write loss.tau=…",
    "loss._target_=mistakes.RowLoss": "loss must be a function that returns one number for outputs (",
    "optimizer._target_=mistakes.NeedySGD": "optimizer: mistakes.NeedySGD needs the argument flavour; write opt",
    "scheduler._target_=torch.optim.lr_scheduler.StepLR": "StepLR needs the argument step_size; write sched",
    "scheduler._target_=torch.nn.ReLU": "scheduler._target_ must be a scheduler of torch, with step and",
    f"+callbacks.extra.mine._target_={STOPPING}": f"callbacks.extra.mine: {STOPPING} needs the argument monitor; "
    "write callbacks.extra.mine.monitor=…",
    "+callbacks.extra.mine._target_=torch.nn.ReLU": "callbacks.extra.mine._target_ must be a Callback of ",
    "+logger.extra.mine._target_=mistakes.NeedyLogger": "mine: mistakes.NeedyLogger needs the argument "
    "folder; write logger.extra.mine.folder=…",
    "+logger.extra.mine._target_=torch.nn.ReLU": "logger.extra.mine._target_ must be a Logger of pytorch_li",
    f"+metrics.m._target_={HUBER}": f"metrics.m: {HUBER} needs the argument input; write metrics.m.input=…",
}
OWN_MODULE = {
    "Needy": "module: mistakes.Needy needs the argument width; write module.width=…",
    "Rows": f"module: training_step of mistakes.Rows {STEP} a tensor of shape (",
    "Number": f"module: training_step of mistakes.Number {STEP} float under loss",
    "Constant": f"module: training_step of mistakes.Constant {STEP} a tensor without a gradient",
    "Nothing": f"module: training_step of mistakes.Nothing {STEP} NoneType",
    "Silent": "optimized_metric=val/loss: mistakes.Silent logs no metrics of training; log them with self.log",
    "Faulty": "module: mistakes.Faulty: 'Faulty' object has no attribute 'nett'",
    "no_module": "module._target_ must be a LightningModule of pytorch_lightning, got mist",
}


@pytest.fixture
def mistakes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    yield
    sys.modules.pop("mistakes", None)


@pytest.mark.parametrize("module", ["population", "lightning"])
@pytest.mark.parametrize(("word", "answer"), ANY_MODULE.items())
@pytest.mark.usefixtures("mistakes")
def test_faulty_parts_are_named(run_train, module, word, answer):
    outcome = run_train(f"module={module}", word, *SHORT)
    assert outcome.code == 1
    assert answer in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(("name", "answer"), OWN_MODULE.items())
@pytest.mark.usefixtures("mistakes")
def test_faulty_modules_are_named(run_train, name, answer):
    outcome = run_train(f"module._target_=mistakes.{name}", *SHORT)
    assert outcome.code == 1
    assert answer in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert not Path("outputs").exists()


LAYERS = """
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))


class Misspelt(Layer):
    def __init__(self, num_features):
        super().__init__(num_features)
        self.size = self.num_feature


class Needy(Layer):
    def __init__(self, num_features, power):
        super().__init__(num_features)


class Dropping(Layer):
    def forward(self, x):
        return x[:, 1:]


class Pair(Layer):
    def forward(self, x):
        return x, x


class Faulty(Layer):
    def forward(self, x):
        return x - self.meen


class Keeping(Layer):
    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean


class NoModule:
    def __init__(self, num_features):
        pass

    def __call__(self, x):
        return x


class Deciding(Layer):
    def forward(self, x):
        return x / x.abs().max().item()
"""
LAYER = "model.norm._target_=layers"
SHAPE = "must return a tensor of the shape of its input, (88, 64), got"
OWN_LAYER = {
    "Misspelt": "model.norm: layers.Misspelt: AttributeError: 'Misspelt' object has no attribute 'num_feature' "
    "(layers.py, line 15); HYDRA_FULL_ERROR=1 shows the traceback",
    "Needy": "model.norm: layers.Needy needs the argument power; add power: … below its _target_",
    "Dropping": f"hidden1.norm (layers.Dropping) {SHAPE} (88, 63); correct its forward (layers.py, line 24)",
    "Pair": f"hidden1.norm (layers.Pair) {SHAPE} tuple; correct its forward (layers.py, line 29)",
    "Faulty": "hidden1.norm (layers.Faulty) cannot take a batch of 88: 'Faulty' object has no attribute 'meen' "
    "(layers.py, line 35)",
    "Keeping": "hidden1.norm (layers.Keeping): the buffer mean keeps the graph of a step; change it in place and "
    "without gradient: self.mean.copy_(….detach())",
    "NoModule": "model.norm._target_ must make a torch.nn.Module, got layers.NoModule, which makes NoModule; "
    "derive its class from torch.nn.Module",
    "Droping": f"{LAYER}.Droping cannot be loaded: layers (layers.py) has no Droping; did you mean "
    "layers.Dropping?",
}


@pytest.fixture
def use_layer(run_train, tmp_path, monkeypatch):
    """Return a function that trains with a class of layers.py as the normalizer."""
    monkeypatch.syspath_prepend(tmp_path)
    Path("layers.py").write_text(LAYERS)
    Path("conf/model").mkdir(parents=True)

    def train(target, *words, partial="  _partial_: true\n"):
        text = f"norm:\n  _target_: {target}\n{partial}norm2d: null\nweight: null\n"
        Path("conf/model/mine.yaml").write_text(text)
        return run_train("--config-dir", "conf", "model=mine", *words, *SHORT)

    yield train
    for name in ("layers", "unfinished"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "answer"), OWN_LAYER.items())
def test_faulty_normalizer_is_named_with_its_line(use_layer, name, answer):
    outcome = use_layer(f"layers.{name}")
    assert (outcome.code, outcome.err.strip()) == (1, f"error: {answer}")
    assert not Path("outputs").exists()


def test_normalizer_without_partial_gives_the_remedy(use_layer):
    outcome = use_layer("layers.Dropping", partial="")
    assert outcome.err.strip() == (
        "error: model.norm: the net makes a layers.Dropping for each layer; add _partial_: true below its _target_"
    )


@pytest.mark.parametrize(
    ("target", "text", "answer"),
    [
        ("nowhere.Norm", "", "there is no module nowhere; start in the folder that contains it, or install it"),
        (
            "unfinished.Norm",
            "import nowhere",
            "ModuleNotFoundError: No module named 'nowhere' (unfinished.py, line 1)",
        ),
        ("unfinished.Norm", "\ndef f(:", "SyntaxError: invalid syntax (unfinished.py, line 2)"),
    ],
)
def test_module_that_cannot_be_imported_is_named(use_layer, target, text, answer):
    Path("unfinished.py").write_text(text)
    outcome = use_layer(target)
    assert outcome.err.startswith(f"error: model.norm._target_={target} cannot be loaded: {answer}")
    assert len(outcome.err.strip().splitlines()) == 1


def test_layer_that_cannot_be_stacked_names_its_line_and_the_rules(use_layer):
    outcome = use_layer("layers.Deciding", "-m", "seed=0,1")
    assert outcome.code == 0, outcome.err
    assert (
        "vmap: It looks like you're calling .item() on a Tensor (layers.py, line 54); to be stacked, a layer "
        "must compute with tensors alone and change its buffers in place"
    ) in outcome.out
