"""The files and commands of docs/extending.md work unchanged, in a folder with nothing else."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tests.warm_python import WarmPython
from torch import Tensor, nn
from torch.testing import assert_close

import normlab
from normlab.config.frozen import FrozenConfig
from normlab.config.validation import check_targets, check_targets_of, validate
from normlab.errors import ConfigError
from normlab.population.stacking_check import Stacking
from normlab.training.build import make_data, net_maker
from normlab.training.dry_run import dry_run_once
from normlab.training.run import train
from normlab.training.run_folders import Run

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extending.md").read_text()
FENCE = re.compile(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(FENCE.findall(TEXT))
COMMANDS = re.findall(r"^    python (train\.py -m .+)$", TEXT, re.MULTILINE)
CLAIM, PROFILE = "train.py claim=centering", "normlab claims --with model=mean_only --only robustness"
SHORT = ["trainer.max_epochs=2", "logger=csv"]
QUOTED = "\n    runs such as seed=1 are trained one by one: "
MAX_CLASS_LINES = 20
EXTRA_FILES = {
    "mylab/items.py": """
from mylab.norms import MeanOnlyBatchNorm


class Items(MeanOnlyBatchNorm):
    def forward(self, x):
        return super().forward(x / x.std().item())
""",
    "mylab/ramps.py": """
from torch import nn


class Ramp(nn.Identity):
    def __init__(self, num_features):
        super().__init__()
        self.total_steps = None
""",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """Return a folder with ``train.py``, ``conf/`` and the files of the page."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "train.py", folder)
    shutil.copytree(ROOT / "conf", folder / "conf")
    for name, text in FILES.items():
        path = folder / name
        assert not path.exists(), "a file of the page would replace an existing one"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def mylab(lab, monkeypatch) -> Iterator[Path]:
    """Make the package of the page importable in this process."""
    monkeypatch.syspath_prepend(str(lab))
    yield lab
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def config(folder: Path, *overrides: str) -> FrozenConfig:
    with initialize_config_dir(str(folder / "conf"), version_base="1.3"):
        return validate(compose("train", overrides=list(overrides)))


def seeds(number: int) -> int:
    """Return the number of seeds of a command: one where every run starts a process on each of two devices."""
    return 1 if "devices=2" in COMMANDS[number] else 2


def run(python: WarmPython, lab: Path, number: int) -> tuple[int, str, str]:
    """Run a command of the page, the first one in a new Python; return its exit code, stdout and stderr."""
    typed = shlex.split(COMMANDS[number].replace("seed=range(2)", f"seed=range({seeds(number)})"))
    words = [*typed, *SHORT, f"hydra.sweep.dir=outputs/{number}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if number:
        done = python.run(words, lab, environment)
    else:
        pipes = {"capture_output": True, "text": True, "env": environment}
        done = subprocess.run([sys.executable, *words], cwd=lab, timeout=120, check=False, **pipes)
    return done.returncode, done.stdout, done.stderr


def test_every_block_has_file_name():
    assert len(FILES) == len(FENCE.findall(TEXT)) == TEXT.count("```") / 2
    assert {Path(name).parts[0] for name in FILES} == {"mylab", "conf"}
    assert all(len(line) <= 115 for text in FILES.values() for line in text.splitlines())
    groups = {Path(name).parts[1] for name in FILES if name.startswith("conf/")}
    assert groups == {"model", "net", "data", "module", "callbacks", "metrics", "loss", "probes", "claim"}


def test_normalizers_are_short():
    for name in ("mylab/norms.py", "mylab/quadratic.py", "mylab/noise.py"):
        (layer,) = [node for node in ast.parse(FILES[name]).body if isinstance(node, ast.ClassDef)]
        assert layer.end_lineno - layer.lineno < MAX_CLASS_LINES


@pytest.mark.slow
def test_claim_command(warm_python, lab):
    """The claim of the page, with fewer replicates."""
    assert f"    python {CLAIM}\n" in TEXT
    words = ["-m", *CLAIM.split()[1:], "seed=range(1000,1012)", "hydra.sweep.dir=outputs/claim", *SHORT]
    done = warm_python.run(["train.py", *words], lab)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^claim centering: (holds|does not hold|undecided): mean_only against bn", done.stdout, re.M)


def shortened(found: re.Match) -> str:
    """Return fewer seeds, or fewer epochs."""
    return "range(1000,1006)" if found[0].startswith("range") else "2"


@pytest.mark.thorough
def test_profile_command(lab):
    """The command as printed, on a claim with fewer replicates and epochs."""
    assert f"    {PROFILE}\n" in TEXT
    file = lab / "conf/claim/robustness.yaml"
    text, found = re.subn(r"(?<=    seed: )range\(1000,1024\)|(?<=max_epochs: )20\b", shortened, file.read_text())
    assert found == 2
    file.write_text(text)
    command = [sys.executable, "-m", *PROFILE.split()]
    done = subprocess.run(command, cwd=lab, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    tested = re.findall(r"^(\w+) +with mean_only: (?:holds|does not hold|undecided): ", done.stdout, re.M)
    assert tested == ["robustness"]
    page = (lab / "outputs" / "claims-with-mean_only" / "profile-mean_only.html").read_text()
    assert "mean_only" in page


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda number: COMMANDS[number])
def test_commands_train_populations_and_print_arms(warm_python, lab, number):
    command, folder = COMMANDS[number], lab / "outputs" / str(number)
    code, out, err = run(warm_python, lab, number)
    assert (code, err) == (0, "")
    arms = re.search(r"model=(\S+)", command)[1].split(",")
    count = seeds(number) * len(arms)
    alone, stacked = f"{count} runs, one by one", f"{count} runs in {len(arms)} populations"
    assert (alone if re.search("module=|muon", command) else stacked) in out.splitlines()[:2]
    printed = out.split("\nmodel ")[1].splitlines()[1 : len(arms) + 1]
    assert [line.split()[0] for line in printed] == sorted(arms)
    runs = pd.read_csv(folder / "summary.csv")
    assert runs["status"].tolist() == ["finished"] * count
    if "metrics=" in command:
        assert "within at the end of training (higher is better)" in out
        assert {"best/val/within", "last/val/smape", "test/within"} <= set(runs)
    if "probes=" in command:
        probed = pd.read_csv(folder / f"model={arms[-1]},seed=0" / "probes.csv")
        assert set(probed["epoch"]) == {1, 2}
        assert set(probed["probe"] + "/" + probed["quantity"]) == {"gradient_norm/norm"}
        assert (probed["value"] > 0).all()
        assert "gradient_norm: last measurement" in out
    if "net=" in command:
        curves = pd.read_csv(folder / f"model={arms[-1]},seed=0" / "curves.csv")
        assert "hidden/before_std" in set(curves["metric"][curves["split"] == "activation"])


def test_commands_use_every_option():
    for name in FILES:
        if name.startswith("conf/"):
            group, option = Path(name).parts[1], Path(name).stem
            assert any(re.search(rf"\b{group}=\S*\b{option}\b", command) for command in [*COMMANDS, CLAIM]), name


def test_classes_are_outside_of_normlab(mylab):
    for name in FILES:
        if name.startswith("mylab/"):
            module = importlib.import_module(f"mylab.{Path(name).stem}")
            assert Path(module.__file__) == mylab / name
            assert Path(normlab.__file__).parent not in Path(module.__file__).parents
    assert not list((ROOT / "src").rglob("mylab*.py"))


def test_yaml_without_package_raises(lab):
    check_targets_of.cache_clear()  # a test with the package may have checked the same node
    with pytest.raises(
        ConfigError, match=r"model\.norm\._target_=mylab\.norms\.MeanOnlyBatchNorm cannot be loaded"
    ):
        check_targets(config(lab, "model=mean_only"))


def make_layer(folder: Path, model: str, features: int) -> nn.Module:
    """Create a layer in float64 with random parameters."""
    layer = instantiate(config(folder, f"model={model}").model.norm)(features).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


SHAPES = pytest.mark.parametrize("shape", [(20, 3), (5, 3, 4, 4)])


def by_feature(x: Tensor) -> Tensor:
    """Return the values of each feature as a column."""
    return x.movedim(1, -1).flatten(0, -2)


@SHAPES
def test_mean_only_batch_normalization_matches_formula(mylab, shape):
    torch.manual_seed(0)
    layer, x = make_layer(mylab, "mean_only", 3), torch.randn(shape, dtype=torch.float64) + 2
    columns = by_feature(x)
    assert_close(by_feature(layer(x)), columns - columns.mean(0) + layer.bias)
    assert_close(layer.running_mean, 0.1 * columns.mean(0))
    assert_close(by_feature(layer.eval()(x)), columns - 0.1 * columns.mean(0) + layer.bias)
    assert layer(x).shape == x.shape


@SHAPES
def test_quadratic_batch_normalization_matches_formula(mylab, shape):
    torch.manual_seed(0)
    layer, x = make_layer(mylab, "quadratic", 3), torch.randn(shape, dtype=torch.float64) + 2
    columns = by_feature(x)
    square = columns.square().mean(0)
    assert_close(by_feature(layer(x)), layer.weight * columns / (square + layer.eps).sqrt() + layer.bias)
    n = len(columns)
    followed = 0.9 + 0.1 * n / (n - 1) * square
    assert_close(layer.running_var, followed)
    assert_close(by_feature(layer.eval()(x)), layer.weight * columns / (followed + layer.eps).sqrt() + layer.bias)
    assert not layer.running_mean.any()


def test_noise_matches_formula(mylab):
    layer, x = make_layer(mylab, "noise", 30), torch.full((400, 30), 2.0, dtype=torch.float64)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)
    assert first.mean().item() == pytest.approx(2, abs=0.01)
    assert first.std().item() == pytest.approx(0.2, rel=0.05)


def states(folder: Path, overrides: list[str], together: bool) -> list[dict[str, Tensor]]:
    """Train two seeds as one population or separately; return the final state of each."""
    where = folder / "states" / "-".join([*overrides, str(together)]).replace("/", "_")
    steps = ["trainer.precision=64-true", "trainer.max_epochs=4", "logger=csv", "data=random"]
    runs = [
        Run(config(folder, *steps, *overrides, f"seed={seed}"), where / str(seed), str(seed), {"model": "x"}, [])
        for seed in (0, 1)
    ]
    for part in [runs] if together else [[run] for run in runs]:
        train(part)
    return [torch.load(run.folder / "checkpoints/last.pt", weights_only=True)["state_dict"] for run in runs]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        *(["model=mean_only", f"statistics={statistics}"] for statistics in ("running", "reestimated", "batch")),
        ["model=mean_only", "net=shortcut"],
        ["model=quadratic", "statistics=reestimated"],
        ["model=noise"],
    ],
    ids=" ".join,
)
def test_population_members_equal_single_runs(mylab, overrides):
    # Adam would turn rounding errors into steps: the gradient of a bias before a subtracted mean is 0.
    sgd = [*overrides, "optimizer=sgd"]
    assert stacking(config(mylab, *sgd)) == Stacking()
    for member, alone in zip(states(mylab, sgd, True), states(mylab, sgd, False), strict=True):
        assert list(member) == list(alone)
        for name, tensor in alone.items():
            assert_close(member[name], tensor, rtol=1e-9, atol=1e-10, msg=name)


def stacking(config: FrozenConfig) -> Stacking:
    """Return the way in which runs of a configuration can be stacked."""
    return dry_run_once(config).stacking


@pytest.fixture
def extra_files(mylab, monkeypatch) -> Iterator[Path]:
    """Add the layers to the package that the page mentions but does not show."""
    for name, text in EXTRA_FILES.items():
        (mylab / name).write_text(text)
    importlib.invalidate_caches()
    yield mylab
    for name in EXTRA_FILES:
        (mylab / name).unlink()


def test_page_quotes_reason_against_stacking(extra_files):
    reason = stacking(
        config(extra_files, "model=mean_only", "model.norm._target_=mylab.items.Items")
    ).unstackable_reason
    quoted = TEXT.split(QUOTED)[1].splitlines()[0].removesuffix(" …")
    assert reason.startswith(quoted)


def test_layer_receives_total_steps(extra_files):
    overridden = config(
        extra_files, "model=mean_only", "model.norm._target_=mylab.ramps.Ramp", "~model.norm.momentum"
    )
    net = net_maker(overridden, make_data(overridden))()
    assert net.hidden1.norm.total_steps == overridden.trainer.max_epochs * 5


def drawing(layer: nn.Module) -> nn.Module:
    """Return a layer followed by another one with random weights."""
    return nn.Sequential(layer, nn.Linear(4, 4))


@pytest.mark.parametrize("parts", [{"norm": lambda width: nn.Linear(width, width)}, {"weight": drawing}])
def test_arms_start_with_same_weights(mylab, parts):
    from mylab.nets import Shortcut

    nets = []
    for arguments in ({}, parts):
        torch.manual_seed(0)
        nets.append(Shortcut((5,), 2, width=4, **arguments))
    for name in ("direct", "output"):
        assert torch.equal(*(net.get_submodule(name).weight for net in nets))
    (linear,) = [layer for layer in nets[1].hidden.modules() if getattr(layer, "in_features", 0) == 5]
    assert torch.equal(linear.weight, nets[0].hidden.linear.weight)


def test_spirals_have_two_classes_and_use_data_seed(mylab):
    tables = [make_data(config(mylab, "data=spirals", f"data.seed={seed}")).table() for seed in (0, 0, 1)]
    assert torch.equal(tables[0].x, tables[1].x)
    assert not torch.equal(tables[0].x, tables[2].x)
    assert tables[0].y.bincount().tolist() == [500, 500]


def test_within_is_share_of_near_outputs(mylab):
    from mylab.metrics import within

    outputs, targets = torch.tensor([[1.0], [4.0], [9.0]]), torch.tensor([[2.0], [2.0], [2.0]])
    assert within(outputs, targets, 2.0).item() == pytest.approx(2 / 3)
