"""Files that are damaged, foreign or removed: named, never taken for a result, and trained again."""

import shutil
from pathlib import Path

import pytest
from run_files import require_same_sweep, run_folders

from normlab.results.result import Result, Status
from normlab.training import run_series

pytestmark = pytest.mark.slow
SWEEP = [
    *("-m", "model=bn", "seed=range(4)", "trainer.max_epochs=3", "net.hidden=[8]"),
    *("logger.flush_seconds=0", "hydra.sweep.dir=sweep"),
]
RUNS = [Path(f"sweep/seed={seed}") for seed in range(4)]


@pytest.fixture
def trained(run_train) -> Path:
    """Train the sweep, and return a copy of its folder."""
    assert run_train(*SWEEP).code == 0
    return Path(shutil.copytree("sweep", "trained"))


def test_damaged_results_are_trained_again(run_train, trained):
    text = (RUNS[0] / "result.json").read_text()
    damage = [b"", text[: len(text) // 2].encode(), b"[1, 2]", b"\xff\xfe\x00"]
    for run, content in zip(RUNS, damage, strict=True):
        (run / "result.json").write_bytes(content)
    outcome = run_train(*SWEEP)
    assert (outcome.code, outcome.err) == (0, "")
    again = [line for line in outcome.out.splitlines() if line.endswith("; the run is trained again")]
    assert [line.partition(" is damaged: ")[0] for line in again] == [f"{run}/result.json" for run in RUNS]
    require_same_sweep(Path("sweep"), trained)


def test_foreign_result_is_refused_and_kept(run_train, trained):
    assert run_train(*SWEEP[:-1], "optimizer.lr=0.1", "hydra.sweep.dir=other").code == 0
    shutil.copy("other/seed=1/result.json", RUNS[0] / "result.json")
    before = (RUNS[0] / "result.json").read_bytes()
    outcome = run_train(*SWEEP)
    assert outcome.code == 1
    assert f"{RUNS[0]} holds a run of another configuration (it differs in optimizer.lr, seed)" in outcome.err
    assert (RUNS[0] / "result.json").read_bytes() == before


def test_damaged_curves_are_named_and_results_kept(run_train, trained):
    lines = (RUNS[0] / "curves.csv").read_text().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if line.startswith("3,"))
    damage = ["", "".join(lines[: end + 1])[:-9], "time,loss\n1,2\n", None]
    for run, content in zip(RUNS, damage, strict=True):
        (run / "curves.csv").unlink() if content is None else (run / "curves.csv").write_text(content)
    results = [(run / "result.json").read_bytes() for run in RUNS]
    outcome = run_train(*SWEEP)
    assert outcome.code == 0
    ends = "incomplete: it ends before epoch"
    reasons = f"{ends} 1 of 3", f"{ends} 3 of 3", "damaged: it must begin with epoch,step", f"{ends} 1 of 3"
    for run, reason in zip(RUNS, reasons, strict=True):
        assert outcome.out.count(f"{run}/curves.csv is {reason}") == 1, outcome.out
    assert [(run / "result.json").read_bytes() for run in RUNS] == results


def test_run_killed_before_its_configuration_was_written(run_train, trained):
    for name, run in zip((".hydra/config.yaml", ".hydra"), RUNS[:2], strict=True):
        shutil.rmtree(run)
        run.mkdir()
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).mkdir() if name == ".hydra" else (run / ".hydra" / ".config.yaml.77").write_text("data: 1")
    shutil.rmtree(RUNS[2])
    (RUNS[3] / "result.json").unlink()
    outcome = run_train(*SWEEP)
    assert (outcome.code, outcome.err) == (0, "")
    require_same_sweep(Path("sweep"), trained)


@pytest.mark.parametrize("removed", ["sweep", str(RUNS[1])])
def test_folder_removed_under_a_running_sweep(run_train, trained, monkeypatch, removed):
    shutil.rmtree("sweep")
    append, calls = run_series.append_curves, []

    def remove_and_append(*arguments: object) -> None:
        calls.append(None)
        if len(calls) == 3:
            shutil.rmtree(removed)
        append(*arguments)

    two = [*SWEEP, "hydra.launcher.chunk=2"]
    with monkeypatch.context() as patched:
        patched.setattr(run_series, "append_curves", remove_and_append)
        outcome = run_train(*two)
    assert outcome.code == 1
    reason = "the folder sweep was removed while its sweep was running"
    assert (reason if removed == "sweep" else f"No such file or directory: '{RUNS[1].absolute()}/") in outcome.err
    assert Path("sweep").exists() == (removed != "sweep"), [*Path("sweep").rglob("*")]
    statuses = {Result.read(Path("sweep", run)).status for run in run_folders(Path("sweep"))}
    assert (Status.FINISHED in statuses) == (removed != "sweep")
    outcome = run_train(*two)
    assert (outcome.code, outcome.err) == (0, "")
    assert run_folders(Path("sweep")) == run_folders(trained)
