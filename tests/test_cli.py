"""Mistakes on the command line give a one-line error and write no files."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml
from omegaconf import OmegaConf

from normlab.config.module import REFUSED_TRAINER_ARGUMENTS, UNSUPPORTED_TRAINER_ARGUMENTS
from normlab.option_folders import config_groups
from normlab.training import build, session

SHORT = ["trainer.max_epochs=1", "logger=csv"]
CONF = Path(__file__).parents[1] / "conf"

MISTAKES = {
    "modl=nobn": "modl: no such key; did you mean model?",
    "optimiser=sgd": "optimiser: no such key; did you mean optimizer?",
    "optimizer.learnin_rate=1": "optimizer.learnin_rate: no such key; did you mean optimizer.lr?",
    "+optimizer.learning_rate=1": "takes no such argument; did you mean optimizer.lr?",
    "++optimizer.foo=1": "optimizer.foo: normlab.population.optim.Adam takes no such argument",
    "+data.foo=1": "data.foo: normlab.data.Fitness takes no such argument",
    "+foo=1": "foo: no such key",
    "+scheduler.gamma=1": "scheduler.gamma: no such key",
    "+callbacks.early_stoping=1": "did you mean callbacks.early_stopping?",
    "+trainer.nonsense=1": "trainer.nonsense: pytorch_lightning.Trainer takes no such argument",
    "trainer.profiler=simple": "to pass profiler to pytorch_lightning.Trainer, write +trainer.profiler=",
    "model.norm.affin=false": "model.norm.affin: no such key; did you mean +model.norm.affine?",
    "model=nobn model.norm.power=2": "model.norm.power: no such key; model.norm is null in model=nobn, and no "
    "option of model has model.norm.power",
    "model=nobn model.norm.num_groups=2": "model.norm is null in model=nobn; model=gn, model=ws_gn have it",
    "model=nobn model.norm.epss=2": "model.norm.epss: no such key; did you mean model.norm.eps?",
    "model.norm.power=2": "model.norm.power: no such key; model.norm has eps, momentum, fused; other arguments of "
    "normlab.norms.BatchNorm1d are added with +model.norm.",
    "model=bnn": "model=bnn: no such option; did you mean bn? There are actnorm, bn, ",
    "data.path=people.csv": "data.path: no such key; data=csv has it",
    "net=cnn": "net=cnn takes images of shape (channels, height, width), an input of this data has shape (3,)",
    "model=in": "there is a normalizer for images alone, model.norm2d, but normlab.models.MLP takes one for rows",
    "net=cnn data=digits model.norm2d=null": "alone, model.norm, but normlab.models.CNN takes one for images",
    "model=gn net.hidden=[50]": "num_groups must divide the 50 features of every normalized layer, got 4",
    "model=ghost model.norm.ghost_size=0": "ghost_size must be at least 1 sample, got 0",
    "model=ghost model.norm.ghost_size=1": "hidden1.norm (GhostBatchNorm) cannot take a batch of 88: Expected",
    "model.norm.eps=0": "model.norm.eps must be a finite number > 0, got 0",
    "model=rms model.norm.eps=-1": "model.norm.eps must be a finite number > 0, got -1",
    "model=l1bn model.norm.constant=two": "constant must be one of none, gaussian, got two",
    "model=brn model.norm.warmup=0.5": "warmup must be a share from 0 to below r_end=0.31 and d_end=0.19, got 0.5",
    "model=ws data=random data.in_features=1": "weight standardization needs at least 2 inputs, got 1",
    "model.norm._target_=torch.nn.BatchNorm2d ~model.norm.fused": (
        "hidden1.norm (BatchNorm2d) cannot take a batch of 88: expected 4D input (got 2D input)"
    ),
    "net.init=he": "net.init must be one of default, kaiming, xavier, gaussian, got he",
    "net=resmlp net.width=0": "net.width must be at least 1",
    "net=cnn data=digits net.channels=[0]": "net.channels must be a list of sizes of at least 1, got [0]",
    "statistics=batch data.test=1": "data.test must be 0 or at least 2, as statistics=batch normalizes with",
    "+metrics.loss._target_=torch.nn.functional.l1_loss": (
        "metrics.loss must not have the name of a task metric (loss, mse, mae, r2, acc, lr); use metrics.my_loss"
    ),
    "+metrics={a/b:{_target_:torch.nn.functional.l1_loss}}": (
        "metrics must have names of letters, digits, _ and -, got 'a/b'; rename it"
    ),
    "+probes={a/b:{_target_:normlab.probes.Curvature}}": (
        "probes must have names of letters, digits, _ and -, got 'a/b'; rename it"
    ),
    "+metrics.x=3": "metrics.x must be a node with a _target_, got 3",
    "+metrics.x._target_=torch.foo": "metrics.x._target_=torch.foo cannot be loaded",
    "+metrics.x._target_=torch.nn.functional.nll_loss +metrics.x._partial_=true": "metrics.x: 0D or 1D target",
    "+metrics.x._target_=torch.nn.functional.l1_loss +metrics.x._partial_=true +metrics.x.reduction=none": (
        "metrics.x must be one number for each net, got shape (216, 1)"
    ),
    "statistics=moving": "statistics must be running, reestimated or batch, got moving",
    "data=fitnes": "did you mean fitness? There are breast_cancer, csv, ",
    "model=bn,nobn": "several values make a sweep, which needs -m",
    "model=[bn": "cannot read model=[bn: the bracket [ is not closed; write the whole in quotes, without spaces: "
    "'model=[bn]'",
    "seed=range(3": "the bracket ( is not closed; write the whole in quotes, without spaces: 'seed=range(3)'",
    "net.hidden=[8, 8]": "the bracket [ is not closed; write the whole in quotes, without spaces: 'net.hid",
    "net.hidden=[8]]": "cannot read net.hidden=[8]]: the bracket ] closes none; leave it out",
    "optimizer.lr=0": "optimizer.lr must be a finite number > 0, got 0.0",
    "optimizer.lr=-1": "optimizer.lr must be a finite number > 0, got -1.0",
    "optimizer.lr=abc": "optimizer.lr must be a number, got 'abc'",
    "optimizer.lr=nan": "optimizer.lr must be a finite number > 0, got nan",
    "optimizer.betas=[0.9,1]": "optimizer.betas must be two numbers in [0, 1)",
    "optimizer.weight_decay=-1": "optimizer.weight_decay must be",
    "optimizer._target_=torch.optim.Foo": "optimizer._target_=torch.optim.Foo cannot be loaded",
    "data.batch_size=0": "data.batch_size must be at least 1, got 0",
    "data.batch_size=601": "data.batch_size must be at most the 600 training samples, got 601",
    "data.batch_size=1": "Expected more than 1 value per channel when training",
    "data.batch_size=two": "data.batch_size must be an integer, got 'two'",
    "data.train=900": "must be at most 1000 samples, got 900 + 200 + 200",
    "data.train=0": "data.train must be at least 1",
    "data.val=0": "optimized_metric must be train/…, as data.val is 0, got val/loss",
    "data.target=clippd": "data.target must be calibrated or clipped, got clippd",
    "net.hidden=[64,0]": "net.hidden must be a list of sizes of at least 1, got [64, 0]",
    "net.hidden=[-1]": "net.hidden must be a list of sizes of at least 1, got [-1]",
    "net.hidden=64": "net.hidden must be a list of integers, got 64",
    "net.activation=rel": "net.activation must be one of",
    "net.norm_position=under": "net.norm_position must be before or after, got under",
    "trainer.max_epochs=-1": "trainer.max_epochs must be 0 or more, got -1",
    "trainer.max_epochs=1.5": "trainer.max_epochs must be an integer, got 1.5",
    "trainer.threads=0": "trainer.threads must be null or at least 1, got 0",
    "trainer.precision=16": "trainer.precision must be",
    "trainer.gradient_clip_val=0": "trainer.gradient_clip_val must be null or a number > 0",
    "model.norm.momentum=2": "model.norm.momentum must be null or a number in [0, 1], got 2",
    "model.norm=batch": "model.norm must be null or a node with a _target_, got batch",
    "replicate=split": "replicate must be data or seed, got split",
    "baseline=''": "baseline must be null or one of the compared settings, such as ln, got ''",
    "baseline=[ln]": "baseline must be null or a string, got ['ln']",
    "margin=0": "margin must be null or a finite number > 0, such as 0.05 for 5 %, got 0",
    "margin=inf": "margin must be null or a finite number > 0, such as 0.05 for 5 %, got inf",
    "margin=small": "margin must be null or a number, got 'small'",
    "pairs=no": "pairs must be true or false, got 'no'",
    "max_replicates=1": "max_replicates must be null or at least 2 replicates, got 1",
    "max_replicates=many": "max_replicates must be null or an integer, got 'many'",
    "seed=-1": "seed must be an integer from 0 to 2^63 - 1, got -1",
    "data.seed=-1": "data.seed must be an integer from 0 to 2^63 - 1, got -1",
    "optimized_metric=val/f1": "optimized_metric must be one of loss, mse, mae, r2, acc unless direction is set",
    "optimized_metric=loss": "optimized_metric must be train/… or val/…, such as val/loss, got loss",
    "optimized_metric=val/acc": "optimized_metric must be one of train/loss, val/loss, val/mse, val/mae, val/r2",
    "optimized_metric=train/r2": "optimized_metric must be one of train/loss, val/loss",
    "trainer.check_val_every_n_epoch=5": "check_val_every_n_epoch must be at most trainer.max_epochs=1, got 5",
    "data.standardize=no": "data.standardize must be true or false, got 'no'",
    "logger.tensorboard=no": "logger.tensorboard must be true or false, got 'no'",
    "model.norm.fused=maybe": "model.norm.fused must be true or false, got 'maybe'",
    "optimizer=sgd optimizer.nesterov=no": "optimizer.nesterov must be true or false, got 'no'",
    "optimizer=sgd optimizer.momentum=2": "optimizer.momentum must be a number in [0, 1], got 2.0",
    "trainer.max_epochs='2'": "trainer.max_epochs must be an integer, got '2'",
    "optimizer.eps=-1": "optimizer.eps must be a number > 0",
    "scheduler=plateau scheduler.factor=2": "scheduler.factor must be a number between 0 and 1",
    "scheduler=step scheduler.gamma=-1": "scheduler.gamma must be a number > 0",
    "scheduler=cosine scheduler.T_max=-3": "scheduler.T_max must be 0 or more",
    "trainer.devices=2": "trainer.devices must be 1",
    "+trainer.max_steps=3": "trainer.max_steps has no effect here",
    "trainer.accelerator=cpuu": "cpuu",
    "+callbacks.extra.x._target_=pytorch_lightning.callbacks.EarlyStopping": "monitor",
    "data.seed=99999999999999999999": "data.seed must be an integer from 0 to 2^63 - 1",
    "data=random data.target=clipped": "data.target: no such key; data=fitness has it",
    "model=nobn model.norm.momentum=0.2": "model.norm.momentum: no such key; model.norm is null in model=nobn; ",
    "scheduler.step_size=10": "scheduler.step_size: no such key; scheduler=step has it",
    "callbacks.early_stopping.patience=5": "no such key; callbacks=early_stopping has it",
    "lr=0.1": "lr: no such key; did you mean optimizer.lr?",
    "bn": "write key=value, without spaces",
    "model=bn,": "write key=value, without spaces",
    "seed=range(3)": "python train.py -m",
    "hydra.sweep.dirr=x": "did you mean hydra.sweep.dir?",
    "direction=up": "direction must be min, max or null, got up",
    "probes=ligth": "probes=ligth: no such option; did you mean light?",
    "probes=gradient_lipschitz probes.gradient_lipschitz.radius=0": "probes.gradient_lipschitz: radius must be a ",
    "probes=gradient_lipschitz probes.gradient_lipschitz.samples=0": "probes.gradient_lipschitz: samples must be ",
    "probes=curvature probes.curvature.data=test": "probes.curvature: data must be minibatch or train, got test",
    "probes=line probes.line.modes=[eval]": "probes.line: modes must be of batch, frozen, got eval",
    "probes=light probes.activations.every_n_epochs=0": "probes.activations: every_n_epochs must be null or at ",
    "probes=light probes.activations.radius=1": "probes.activations.radius: no such key",
    "probes=preactivations probes.preactivations.layers=[hidden7]": "a module named activation, got hidden7; ",
    "probes=graph probes.graph.layers=[hidden7]": "probes.graph: layer must be in the net, got hidden7; ",
    "probes=light +probes.mine=3": "probes.mine must be a node with a _target_, got 3",
    "stats_warmup_epochs=-1": "stats_warmup_epochs must be 0 or more epochs, got -1",
    "warmup=3": "the key is now stats_warmup_epochs",
    "+warmup=3": "warmup is now stats_warmup_epochs",
    "optimizer._target_=normlab.training.optim.SGD": "is now normlab.population.optim.SGD",
    "~seed": "seed is missing, but every run needs it; write seed=…, without ~seed",
    "loss=absolute": "loss=absolute: no such option; did you mean",
    "loss.delta=1": "loss.delta: no such key; loss=huber has it",
    "loss=huber loss.dleta=2": "loss.dleta: no such key; did you mean loss.delta?",
    "loss=mse data=digits": "loss: torch.nn.MSELoss cannot take outputs (32, 10) and class indices (32,): ",
    "loss=cross_entropy": "loss must be a function of the outputs (32, 1) and targets (32, 1), got torch.nn.Cross",
    "loss._target_=torch.nn.HuberLoss loss.reduction=none": "that returns one number for outputs (32, 1) and "
    "targets (32, 1), got shape (32, 1)",
    "loss._target_=torch.nn.functional.gaussian_nll_loss": "loss: torch.nn.functional.gaussian_nll_loss needs the "
    "argument var; write loss.var=…",
    "loss._target_=torch.nn.Hubert": "loss._target_=torch.nn.Hubert cannot be loaded",
    "loss._target_=torch.nn.HuberLoss loss.dleta=2": "loss.dleta: torch.nn.HuberLoss takes no such argument; did "
    "you mean loss.delta?",
}


def one_line(text: str) -> str:
    """Return the only line of a text; fail if there are several."""
    (line,) = text.strip().splitlines()
    return line


@pytest.mark.parametrize(("mistake", "answer"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_gives_one_line_and_writes_nothing(run_train, mistake, answer):
    overrides = mistake.split(" ")
    keys = {word.partition("=")[0] for word in overrides}
    outcome = run_train(*(word for word in SHORT if word.partition("=")[0] not in keys), *overrides)
    assert outcome.code == 1
    assert answer in one_line(outcome.err)
    assert one_line(outcome.err).startswith("error: ")
    assert not outcome.out
    assert not list(Path().iterdir())


@pytest.fixture
def user_datasets() -> None:
    """Write user configs of a dataset into mine/: one with all required keys, and one without each."""
    folder = Path("mine/data")
    folder.mkdir(parents=True)
    lines = ["_target_: normlab.data.Random", "train: 6", "val: 2", "test: 2", "batch_size: 3"]
    (folder / "noise.yaml").write_text("\n".join(lines))
    for key in ("train", "val", "test", "batch_size"):
        (folder / f"no_{key}.yaml").write_text("\n".join(line for line in lines if not line.startswith(key)))


def test_user_dataset_has_optional_seed(run_train, user_datasets):
    losses = []
    for number, words in enumerate(([], ["+data.seed=42"], ["+data.seed=1"], ["+data.standardize=true"])):
        own = ["--config-dir=mine", "data=noise", "trainer.max_epochs=1", f"hydra.run.dir={number}"]
        outcome = run_train(*own, *words)
        assert outcome.code == 0, outcome.err
        losses.append((Path(str(number)) / "curves.csv").read_text())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize(
    ("words", "answer"),
    {
        "data=noise data.seed=1": "data.seed: no such key; to pass seed to normlab.data.Random, write +data.seed=",
        "data=noise data.sed=1": "data.sed: no such key; did you mean +data.seed?",
        "data=no_train": "data.train is missing: write it into the YAML of data, for example train: 600",
        "data=no_val": "data.val is missing: write it into the YAML of data, for example val: 200",
        "data=no_test": "data.test is missing: write it into the YAML of data, for example test: 200",
        "data=no_batch_size": "data.batch_size is missing: write it into the YAML of data, for example "
        "batch_size: 60",
    }.items(),
)
def test_key_missing_from_user_dataset_raises(run_train, user_datasets, words, answer):
    outcome = run_train("--config-dir=mine", *words.split())
    assert outcome.code == 1
    assert one_line(outcome.err) == f"error: {answer}"


@pytest.mark.parametrize(
    ("sweep", "answer"),
    {
        "optimizer.lr=0.01,-1": "model=bn,optimizer.lr=-1: optimizer.lr must be a finite number > 0",
        "data.batch_size=32,1": "model=bn,data.batch_size=1: ",
        "net=mlp,cnnn": "net=cnnn: no such option; did you mean",
        "modl=a,b": "modl: no such key; did you mean model?",
        "seed=0,-1": "seed=-1: seed must be an integer from 0",
        "+optimizer.learning_rate=1,2": "takes no such argument; did you mean optimizer.lr?",
    }.items(),
)
def test_sweep_is_validated_before_training(run_train, sweep, answer):
    outcome = run_train("-m", "model=bn,nobn", sweep, *SHORT)
    assert outcome.code == 1
    assert answer in one_line(outcome.err)
    assert not list(Path().iterdir())


def test_seed_zero_is_valid(run_train):
    assert run_train("seed=0", "trainer.max_epochs=1", "logger=csv").code == 0


@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"], ["module=lightning"]], ids=str)
def test_no_epochs_without_probes_give_a_notice(run_train, words):
    outcome = run_train(*words, "trainer.max_epochs=0", "logger=csv")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("trainer.max_epochs=0: nothing is trained and no metric is measured; probes=") == 1
    assert "max_epochs=0: " not in run_train(*words, "trainer.max_epochs=0", "probes=line", "logger=csv").out


def test_all_groups_are_known():
    assert set(config_groups(CONF)) == {path.name for path in CONF.iterdir() if path.is_dir()}


@pytest.mark.parametrize("name", ["modle", "models", "dta", "augment", "model"])
def test_misspelt_group_gives_a_warning(run_train, name):
    folder = Path("mine") / name
    folder.mkdir(parents=True)
    text = (CONF / "model/nobn.yaml").read_text()
    (folder / "mine.yaml").write_text(text if name == "model" else f"# @package model\n{text}")
    meant = {"modle": "model", "models": "model", "dta": "data"}.get(name)
    warning = (
        f"warning: mine/{name} is no group of normlab, which finds no option in it; did you mean mine/{meant}?"
    )
    outcome = run_train("--config-dir=mine", *SHORT)
    assert (outcome.code, outcome.err.strip()) == (0, warning if meant else "")
    chosen = run_train("--config-dir=mine", f"{'+' * (name != 'model')}{name}=mine", *SHORT)
    assert (chosen.code, chosen.err.strip()) == (0, "")


@pytest.mark.parametrize("arguments", [["hydra.run.dir=blocked/run"], ["-m", "hydra.sweep.dir=blocked/sweep"]])
def test_unwritable_output_folder_raises(run_train, arguments):
    Path("blocked").write_text("a file")
    outcome = run_train(*arguments, *SHORT)
    assert outcome.code == 1
    assert "cannot write to the output folder blocked/" in one_line(outcome.err)
    assert Path("blocked").read_text() == "a file"


def test_help_is_short_and_lists_groups(run_train):
    outcome = run_train("--help")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) < 40
    for group in ("data", "model", "optimizer"):
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        assert f"{group}: {', '.join(options)}" in outcome.out


def test_cfg_prints_the_composed_config(run_train):
    outcome = run_train("--cfg", "job", "optimizer.lr=0.5")
    assert outcome.code == 0
    assert "lr: 0.5" in outcome.out
    assert not list(Path().iterdir())


SUPPORTED_TRAINER_ARGUMENTS = {
    "accelerator": "cpu",
    "devices": "1",
    "precision": "64-true",
    "max_epochs": "2",
    "check_val_every_n_epoch": "2",
    "fast_dev_run": "true",
    "gradient_clip_val": "0.1",
    "gradient_clip_algorithm": "value",
    "deterministic": "true",
    "benchmark": "true",
    "inference_mode": "false",
    "detect_anomaly": "true",
    "default_root_dir": "elsewhere",
}
"""Arguments of the Trainer that affect a run, each with a value."""


def test_trainer_arguments_are_supported_or_rejected():
    assert set(inspect.signature(pl.Trainer).parameters) == {
        *SUPPORTED_TRAINER_ARGUMENTS,
        *UNSUPPORTED_TRAINER_ARGUMENTS,
        *REFUSED_TRAINER_ARGUMENTS,
    }
    assert not {*SUPPORTED_TRAINER_ARGUMENTS} & {*UNSUPPORTED_TRAINER_ARGUMENTS}


@pytest.mark.parametrize("argument", sorted(UNSUPPORTED_TRAINER_ARGUMENTS))
def test_unsupported_trainer_argument_raises(run_train, argument):
    outcome = run_train(*SHORT, f"+trainer.{argument}=1")
    assert outcome.code == 1
    reason = f"{UNSUPPORTED_TRAINER_ARGUMENTS[argument]}; or module=lightning, which has it"
    assert one_line(outcome.err) == f"error: trainer.{argument} has no effect here: {reason}"
    assert not list(Path().iterdir())


@pytest.mark.parametrize("module", ["population", "lightning"])
@pytest.mark.parametrize("argument", sorted(REFUSED_TRAINER_ARGUMENTS))
def test_callbacks_and_loggers_of_the_trainer_are_groups(run_train, argument, module):
    outcome = run_train(*SHORT, f"+trainer.{argument}=1", f"module={module}")
    assert outcome.code == 1
    assert (
        one_line(outcome.err)
        == f"error: trainer.{argument} has no effect here: {REFUSED_TRAINER_ARGUMENTS[argument]}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("argument", sorted(SUPPORTED_TRAINER_ARGUMENTS))
def test_supported_trainer_argument_is_passed_on(run_train, monkeypatch, argument):
    values = []
    original = build.make_trainer

    def make_trainer(config, *rest, **named):
        values.append(config.trainer[argument])
        return original(config, *rest, **named)

    monkeypatch.setattr(session, "make_trainer", make_trainer)
    is_new = argument not in OmegaConf.load(CONF / "trainer/default.yaml")
    outcome = run_train("+" * is_new + f"trainer.{argument}={SUPPORTED_TRAINER_ARGUMENTS[argument]}", "logger=csv")
    assert (outcome.code, outcome.err) == (0, "")
    assert yaml.safe_load(SUPPORTED_TRAINER_ARGUMENTS[argument]) in values


@pytest.mark.parametrize("arguments", ["optimizer.lr=-1", "-m seed=0,1 net.hidden=[0]"])
def test_schema_error_needs_no_torch(arguments):
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as error:\n    print(error, {'torch', 'pytorch_lightning'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", code, *arguments.split()]
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True, check=True)
    assert re.search(r"error: .*must be .* set\(\)\n", done.stdout), done
