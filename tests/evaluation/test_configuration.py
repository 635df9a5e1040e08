"""The configuration of an evaluation: overrides, older records, and warnings about data and files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

RUN = "model=bn,seed=0"


def test_override_reaches_keys_that_refer_to_it(train, evaluated, metrics_of):
    train("data=digits", "net=cnn", "net.channels=[2]")
    before = metrics_of("run=run")
    (run,) = evaluated("run=run", "model.norm.eps=10.0")[0]["runs"]
    assert run["config"]["model"]["norm2d"]["eps"] == 10
    assert run["metrics"]["test/loss"] != before["test/loss"]


def test_record_of_earlier_version_is_evaluated(trained, metrics_of):
    trained(RUN)
    expected = metrics_of(f"run={RUN}")
    shutil.rmtree(Path(RUN) / ".hydra")
    path = Path(RUN) / "result.json"
    record = json.loads(path.read_text())
    config = record["config"]
    config["data"]["seed"] = record["data"]["seed"]
    for key in ("replicate", "margin", "probes", "train_eval_every"):
        del config[key]
    config["warmup"] = config.pop("stats_warmup_epochs")
    config["optimizer"]["_target_"] = "normlab.training.optim.Adam"
    config["scheduler"] = {"_target_": "mylab.removed.Scheduler"}
    path.write_text(json.dumps(record))
    assert metrics_of(f"run={RUN}") == expected


def test_killed_run_is_evaluated_by_its_written_configuration(trained, metrics_of):
    trained(RUN)
    expected = metrics_of(f"run={RUN}")
    (Path(RUN) / "result.json").unlink()
    assert metrics_of(f"run={RUN}") == expected


def test_run_without_configuration_is_refused(trained, run_eval):
    trained(RUN)
    (Path(RUN) / "result.json").write_text("{")
    (Path(RUN) / ".hydra/config.yaml").write_text("")
    outcome = run_eval(f"run={RUN}")
    expected = f"error: {RUN} has no readable configuration; choose another run"
    assert (outcome.code, outcome.err.strip()) == (1, expected)


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ([], ""),
        (["seed=1"], "samples of val and test were training samples of the net: they are not held out"),
        (
            ["data.train=100", "data.test=48", "data.batch_size=20"],
            "up to 20 samples of val and test were training",
        ),
    ],
)
def test_training_samples_among_held_out_ones_are_reported(train, evaluated, words, note):
    train("data=wine", "data.train=120", "data.val=30", "data.test=28")
    _, out = evaluated("run=run", *words)
    assert note in out
    assert ("not held out" in out) == bool(note)


def test_options_of_other_folder_and_own_metrics(trained, metrics_of):
    trained(RUN)
    Path("mine/metrics").mkdir(parents=True)
    lines = ["within:", "  _target_: torch.nn.functional.l1_loss", "  _partial_: true"]
    Path("mine/metrics/absolute.yaml").write_text("\n".join(lines))
    got = metrics_of("--config-dir", "mine", f"run={RUN}", "metrics=absolute")
    assert got["test/within"] == pytest.approx(got["test/mae"], rel=1e-5)


def test_changed_file_is_reported(train, evaluated):
    rows = np.random.default_rng(0).normal(size=(60, 3))
    Path("table.csv").write_text("a,b,y\n" + "\n".join(",".join(map(str, row)) for row in rows))
    csv = ["data=csv", "data.path=table.csv", "data.target_column=y", "data.batch_size=10"]
    train(*csv, "data.train=40", "data.val=10", "data.test=10")
    assert "has changed" not in evaluated("run=run")[1]
    Path("table.csv").write_text(Path("table.csv").read_text() + "\n")
    assert "the file of data.path has changed since the training" in evaluated("run=run")[1]
