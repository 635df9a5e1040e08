"""The Python API: ``normlab.load_sweep``, ``Sweep`` and ``normlab.compare``."""

import inspect
import json
import logging
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy import stats

import normlab
from normlab.config.frozen import FrozenConfig
from normlab.errors import ConfigError
from normlab.results.result import Result
from normlab.training.build import shared_data

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python.md").read_text()
SMALL = ["-m", "model=bn,nobn", "seed=range(7)", "data=wine", "net.hidden=[8]"]
SWEEP = [*SMALL, "optimizer.lr=0.01,0.1", "trainer.max_epochs=3", "hydra.sweep.dir=sweep", "probes=activations"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(ROOT / "train.py"), *SWEEP]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def sweep(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return normlab.load_sweep("sweep")


@pytest.fixture(autouse=True)
def no_windows():
    before = matplotlib.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


def test_import_is_quick_and_loads_no_torch():
    code = "import sys, time; t = time.time(); import normlab; print(time.time() - t, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.split()
    assert float(seconds) < 0.3
    assert not {"torch", "pandas", "numpy", "hydra"} & set(modules)
    assert set(normlab.__all__) <= set(dir(normlab))


def test_unknown_name_raises():
    with pytest.raises(AttributeError, match="no attribute 'lode_sweep'"):
        _ = normlab.lode_sweep


def test_public_names_are_documented():
    for name in normlab.__all__:
        public = getattr(normlab, name)
        members = vars(public).items() if isinstance(public, type) else ()
        for member in [public, *(member for key, member in members if not key.startswith("_"))]:
            assert inspect.getdoc(member), (name, member)


def test_frames_hold_the_records(sweep):
    assert repr(sweep) == "<Sweep sweep: 28 finished>"
    assert len(sweep) == len(sweep.runs) == 28
    for run, row in sweep.runs.iterrows():
        folder = Path("sweep", row["folder"])
        assert row["final/test/loss"] == Result.read(folder).final["test/loss"]
        written = pd.read_csv(folder / "curves.csv")
        curves = sweep.curves[sweep.curves["run"] == run]
        assert curves["value"].tolist() == written["value"].tolist()
        assert curves["metric"].tolist() == (written["split"] + "/" + written["metric"]).tolist()
        probes = sweep.probes[sweep.probes["run"] == run]
        np.testing.assert_array_equal(probes["value"], pd.read_csv(folder / "probes.csv")["value"])


def test_comparisons_are_those_of_the_report(sweep):
    compared, written = sweep.compare(), pd.read_csv("sweep/report/comparisons.csv")
    assert compared["metric"].tolist() == written["metric"].tolist()
    np.testing.assert_allclose(compared["estimate"], written["estimate"])
    np.testing.assert_allclose(compared["p"], written["p_adjusted"])
    assert compared["verdict"].tolist() == written["verdict"].tolist()
    # With the first look and two comparisons, 7 replicates are too few: 4 · 2 / 2^7 > 0.05.
    assert "7 of the 8 replicates needed for 2 comparisons" in compared["sentence"][0]

    other = sweep.compare("val/loss", baseline="bn")
    assert other[["arm", "baseline", "metric"]].to_numpy().tolist() == [["nobn", "bn", "val/loss"]]


@pytest.mark.parametrize(("run", "checkpoint"), [(0, "best"), (27, "best"), ("last name", "last")])
def test_net_is_that_of_the_checkpoint(sweep, run, checkpoint):
    number = sweep.runs.index[-1] if isinstance(run, str) else run
    net = sweep.net(sweep.runs["name"][number] if isinstance(run, str) else run, checkpoint)
    result = Result.read(Path("sweep", sweep.runs["folder"][number]))
    assert not net.training
    if checkpoint == "best":
        test = shared_data(FrozenConfig.of(result.config)).split(2)
        with torch.no_grad():
            accuracy = (net(test.x[0]).argmax(1) == test.y[0]).float().mean().item()
        assert accuracy == pytest.approx(result.test["test/acc"])
    saved = torch.load(Path("sweep", result.name, "checkpoints", f"{checkpoint}.pt"), weights_only=True)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in saved["state_dict"].items())


def test_plots_draw_into_new_and_given_axes(sweep):
    for plot in (sweep.plot_curves, sweep.plot_rates, sweep.plot_seeds):
        _, given = plt.subplots()
        for axes in (plot(), plot(ax=given)):
            assert axes.get_ylabel() == ("val/loss" if plot == sweep.plot_curves else "test/loss")
            assert len(axes.lines) >= 2
        assert axes is given
    curves = sweep.plot_curves("train/loss")
    runs = sweep.runs[(sweep.runs["model"] == "bn")]
    drawn = curves.lines[0].get_ydata()
    assert len(drawn) == 3
    values = sweep.curves[(sweep.curves["metric"] == "train/loss") & sweep.curves["run"].isin(runs.index)]
    assert values["value"].min() <= drawn.min() <= drawn.max() <= values["value"].max()
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["bn", "nobn"]


def test_lines_of_the_page(sweep, capsys):
    read, net = (
        PAGE.partition(f"## {title}\n")[2].split("```python\n")[1].split("```")[0]
        for title in ("Read", "A trained net")
    )
    names = {}
    exec((read + net).replace("outputs/mine", "sweep"), names)
    assert "toprule" in capsys.readouterr().out
    assert not names["net"].training


def test_latex_table(sweep):
    lines = sweep.to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{llll}"
    assert lines[2] == r"arm & replicates & test/loss & effect \\"
    assert [line.split(" & ")[0] for line in lines[4:6]] == ["bn", "nobn"]
    assert r"$\times$" in lines[4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda sweep: sweep.compare("test/los"),
            r"metric must be one of the runs' metrics \(.*test/loss.*\), got test/los",
        ),
        (lambda sweep: sweep.compare(baseline="ln"), "ln"),
        (lambda sweep: sweep.plot_curves("los"), "metric must be one of .*val/loss.*, got los"),
        (lambda sweep: sweep.plot_seeds(panel="x"), "panel must be one of '', got 'x'"),
        (
            lambda sweep: sweep.net("model=bn"),
            "a name of runs.name, got model=bn; did you mean model=bn,",
        ),
        (lambda sweep: sweep.net(28), "run must be from 0 to 27"),
        (lambda sweep: sweep.net(0, "first"), "checkpoint must be best or last, got first"),
    ],
)
def test_mistakes_raise(sweep, call, message):
    with pytest.raises(ConfigError, match=message):
        call(sweep)


def test_folder_without_runs_raises(tmp_path):
    with pytest.raises(ConfigError, match="holds no runs"):
        normlab.load_sweep(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        normlab.load_sweep(tmp_path / "nothing")


def test_damaged_records_are_named_and_count_as_failed(trained, tmp_path, monkeypatch, caplog):
    shutil.copytree(trained / "sweep", tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)
    damaged = sorted(Path("sweep").glob("*/result.json"))[:2]
    damaged[0].write_text("{")
    damaged[1].unlink()
    with caplog.at_level(logging.WARNING, logger="normlab"):
        sweep = normlab.load_sweep("sweep")
    assert repr(sweep) == "<Sweep sweep: 26 finished, 2 failed>"
    assert str(damaged[0].name) in caplog.text
    assert sweep.runs["status"].value_counts()["failed"] == 2


def test_record_of_a_later_version_is_an_error_and_kept(trained, tmp_path, monkeypatch, run_train):
    shutil.copytree(trained / "sweep", tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)
    path = next(Path("sweep").glob("*/result.json"))
    record = json.loads(path.read_text())
    assert record["schema"] == 1
    record["environment"]["versions"]["normlab"] = "9.1"
    path.write_text(later := json.dumps(record | {"schema": 2}))
    message = f"{path} has schema 2, written by normlab 9.1; this version reads schema 1: update normlab"
    with pytest.raises(ConfigError, match=re.escape(message)):
        normlab.load_sweep("sweep")
    outcome = run_train(*SWEEP)
    assert (outcome.code, message in outcome.err) == (1, True)
    assert path.read_text() == later


class TestSweep:
    """``normlab.sweep`` in this process."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def test_equals_the_command(self, run_train):
        words = ["model=bn,nobn", "seed=0,1", "trainer.max_epochs=2"]
        sweep = normlab.sweep(*words)
        assert sweep.folder.match("outputs/*/*-sweep")
        assert run_train("-m", *words, "hydra.sweep.dir=typed").code == 0
        typed = normlab.load_sweep("typed")
        pd.testing.assert_frame_equal(sweep.curves, typed.curves)
        assert Result.read(sweep.folder / "model=bn,seed=0").command == ["normlab", "train"]

    def test_state_of_the_process_is_restored(self):
        state = logging.getLogger().handlers[:], logging.getLogger().level, sys.argv[:]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            before = GlobalHydra.instance().hydra
            sweep = normlab.sweep("model=nobn", "trainer.max_epochs=1", "hydra.sweep.dir=mine")
            again = normlab.sweep("model=nobn", "trainer.max_epochs=1", "hydra.sweep.dir=mine")
            assert GlobalHydra.instance().hydra is before
        assert (sweep.folder, len(sweep), len(again)) == (Path("mine"), 1, 1)
        assert state == (logging.getLogger().handlers, logging.getLogger().level, sys.argv)

    def test_option_of_the_working_directory(self):
        Path("conf/experiment").mkdir(parents=True)
        text = "# @package _global_\ntrainer: {max_epochs: 1}\nhydra: {sweeper: {params: {model: 'ln,nobn'}}}\n"
        Path("conf/experiment/mine.yaml").write_text(text)
        assert set(normlab.sweep("experiment=mine").runs["model"]) == {"ln", "nobn"}

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["modle=bn"], "modle: no such key; did you mean model?"),
            ([["model=bn"]], "an override must be a text such as 'model=bn,nobn', got ['model=bn']"),
            (["model=bnn"], "model=bnn: no such option; did you mean bn?"),
            (["-m", "model=bn"], "-m: options belong to the command line"),
            (["optimizer.lr=0"], "optimizer.lr must be a finite number > 0, got 0.0"),
            (["records=packed", "hydra/launcher=basic"], "records must be folders with hydra/launcher=basic"),
        ],
    )
    def test_mistakes_raise(self, words, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            normlab.sweep(*words)
        assert not any(Path().iterdir())


def test_packed_records_are_read(run_train):
    outcome = run_train(*SMALL, "trainer.max_epochs=2", "records=packed", "hydra.sweep.dir=packed")
    assert outcome.code == 0, outcome.err
    packed = normlab.load_sweep("packed")
    assert len(packed.curves["run"].unique()) == 14
    assert not packed.net(0).training


class TestCompare:
    def test_against_scipy(self):
        generator = np.random.default_rng(0)
        a, b = generator.normal(1, 0.2, 15), generator.normal(1.2, 0.2, 15)
        found = normlab.compare(a, b)
        assert found.p == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)
        d = a - b
        averages = [(x + y) / 2 for k, x in enumerate(d) for y in d[k:]]
        assert found.estimate == pytest.approx(np.median(averages))
        assert found.low < found.estimate < found.high

    @given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=6, max_size=12))
    def test_swapped_scores_invert_the_ratio(self, pairs):
        a, b = zip(*pairs, strict=True)
        one, other = normlab.compare(a, b, "ratio"), normlab.compare(b, a, "ratio")
        assert one.estimate == pytest.approx(1 / other.estimate)
        assert one.p == pytest.approx(other.p)
        if one.low > 0:
            assert one.low == pytest.approx(1 / other.high)

    def test_diverged_scores_count_as_worst(self):
        found = normlab.compare([1, 2, 3, 4, 5, 6, math.inf], [0.9, 1.8, 2.7, 3.6, 4.5, 5.4, 6.3])
        assert found.estimate > 0
        assert found.p == pytest.approx(2 / 2**7)
        both = normlab.compare([math.inf, 1, 2, 3, 4, 5, 6], [math.inf, 2, 3, 4, 5, 6, 7])
        assert (both.estimate, both.p) == (-1, pytest.approx(2 / 2**6))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([1, 2], [1]), r"same pairs, \(n,\), got \(2,\) and \(1,\)"),
            (([], []), "same pairs"),
            (([1, math.nan], [1, 2]), "no missing values"),
            (([1, -1], [1, 2], "ratio"), "positive scores"),
            (([1], [1], "quotient"), "effect must be difference or ratio, got quotient"),
            (([1], [1], "ratio", 95), "level must be between 0 and 1, got 95"),
        ],
    )
    def test_mistakes_raise(self, arguments, message):
        with pytest.raises(ConfigError, match=message):
            normlab.compare(*arguments)
