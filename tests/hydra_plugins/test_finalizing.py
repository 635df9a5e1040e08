"""``timing=true`` times the arms of a sweep after training, and changes nothing else."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import pytorch_lightning as pl
from torch import nn

from normlab.execution import timing
from normlab.results.sweep import TIMING_FILE, read_sweep, read_timing, step_seconds

SWEEP = ["-m", "model=bn,nobn", "seed=0,1", "trainer.max_epochs=2"]
TRAIN = Path(__file__).parents[2] / "train.py"


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.001)


def times_in(folder: str) -> list[list[float] | None]:
    """Return each run's seconds per step in each round, None for runs that were not timed."""
    found = read_timing(Path(folder))
    assert found is not None
    return [step_seconds(found, record.result) for record in read_sweep(Path(folder))]


def run_files(folder: str) -> dict[Path, bytes]:
    """Return the content of the runs' files that must not depend on timing."""
    names = ("curves.csv", "best.pt", "last.pt", "config.yaml")
    return {path.relative_to(folder): path.read_bytes() for name in names for path in Path(folder).rglob(name)}


@pytest.mark.slow
def test_timing_does_not_change_the_runs(run_train):
    plain = run_train(*SWEEP, "hydra.sweep.dir=plain")
    timed = run_train(*SWEEP, "timing=true", "hydra.sweep.dir=timed")
    assert (plain.code, timed.code) == (0, 0), timed.err
    lines = [line for line in timed.out.splitlines() if line.startswith("timing: ")]
    assert lines[0] == "timing: 2 configurations in 20 rounds, a second or more each"
    assert lines[1].startswith("timing: bn ")
    assert lines[1].endswith(" ms, 20 rounds interleaved: timed/timing.json")
    bn, same, nobn, _ = times_in("timed")
    assert bn == same != nobn
    assert len(bn or []) == 20
    assert not Path("plain", TIMING_FILE).exists()
    one, two = run_files("plain"), run_files("timed")
    assert len(one) == 16
    for path, content in one.items():
        with_timing = content.replace(b"timing: false", b"timing: true")
        assert two[path] == with_timing, path
    for ours, theirs in zip(read_sweep(Path("plain")), read_sweep(Path("timed")), strict=True):
        for name in ("name", "status", "config", "choices", "best", "last", "test", "final", "steps"):
            assert getattr(ours.result, name) == getattr(theirs.result, name), name


@pytest.mark.slow
def test_finished_sweep_is_timed_without_retraining(run_train):
    assert run_train(*SWEEP, "hydra.sweep.dir=sweep").code == 0
    written = {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("result.json")}
    outcome = run_train(*SWEEP[:2], "seed=0,1,2", SWEEP[3], "timing=true", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())
    assert len(times_in("sweep")) == 6
    table = pd.read_csv("sweep/table.csv")
    assert table["runs"].tolist() == [3, 3]
    assert not any("timing" in column for column in pd.read_csv("sweep/summary.csv"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [["hydra/sweeper=basic"], ["hydra/launcher=basic"], ["hydra.launcher.n_jobs=2"]], ids=str
)
def test_sweepers_and_launchers_time_configurations(run_train, how):
    outcome = run_train(*SWEEP, *how, "timing=true", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert None not in times_in("sweep")


def test_timing_of_one_arm_logs_nothing_to_compare(run_train):
    outcome = run_train("-m", "seed=0,1", "trainer.max_epochs=1", "timing=true", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert (
        "timing: nothing to compare, because no two finished configurations differ in the cost of a step"
        in outcome.out
    )
    assert not Path("sweep", TIMING_FILE).exists()


def test_timing_of_single_run_logs_no_effect(run_train):
    outcome = run_train("trainer.max_epochs=1", "timing=true")
    assert outcome.code == 0, outcome.err
    assert "timing=true has no effect in a single run" in outcome.out.splitlines()[-1]


REJECTED = {
    "timing=maybe": "timing must be true or false, got 'maybe'",
    "-m timing=true,false": (
        "timing must be the same in all runs of a sweep, got timing=true,false; give it one value"
    ),
    "-m hydra/sweeper=basic timing=true,false": (
        "timing must be the same in all runs of a sweep, got timing=true,false"
    ),
    "-m --config-dir mine experiment=timed,other": "timing must be the same in all runs of a sweep, got True",
}


@pytest.mark.parametrize(("words", "answer"), REJECTED.items(), ids=REJECTED)
def test_invalid_timing_raises_before_training(run_train, words, answer):
    Path("mine/experiment").mkdir(parents=True)
    for name, content in (("timed", "timing: true"), ("other", "stats_warmup_epochs: 1")):
        Path(f"mine/experiment/{name}.yaml").write_text(f"# @package _global_\n{content}\n")
    outcome = run_train(*words.split(), "trainer.max_epochs=1")
    assert outcome.code == 1
    assert answer in outcome.err
    assert not Path("outputs").exists()


class Bomb(pl.Callback):
    """Raises in the second epoch of a net with LayerNorm."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1 and any(isinstance(layer, nn.LayerNorm) for layer in pl_module.modules()):
            raise RuntimeError("out of luck")


def test_failed_arm_is_not_timed(run_train, monkeypatch):
    module = ModuleType("usercode")
    module.Bomb = Bomb
    monkeypatch.setitem(sys.modules, "usercode", module)
    bomb = ["model=bn,nobn,ln", "+callbacks.extra.bomb._target_=usercode.Bomb"]
    outcome = run_train("-m", "trainer.max_epochs=2", *bomb, "timing=true", "hydra.sweep.dir=sweep")
    assert (outcome.code, outcome.err.strip().splitlines()[-1]) == (1, "error: out of luck")
    bn, ln, nobn = times_in("sweep")
    assert ln is None
    assert bn is not None
    assert nobn is not None


@pytest.mark.thorough
def test_ctrl_c_during_timing_still_writes_summary(tmp_path):
    # Background shells ignore SIGINT and child processes inherit that, so restore the default handler.
    unblock = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, str(TRAIN), *SWEEP, "model=bn,nobn,ln", "timing=true", "hydra.sweep.dir=sweep"]
    command.remove("model=bn,nobn")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ), preexec_fn=unblock, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("timing: 3 configurations"):
                process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stderr.read()) == (130, "")
    assert not (tmp_path / "sweep" / TIMING_FILE).exists()
    assert pd.read_csv(tmp_path / "sweep/summary.csv")["status"].tolist() == ["finished"] * 6
