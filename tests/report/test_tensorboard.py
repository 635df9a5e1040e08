import json
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from normlab.report import finalize_sweep
from normlab.report.report_data import ReportOptions, build_report_data
from normlab.report.tensorboard import text_blocks, write_events
from normlab.results.events import EVENT_FILES, SWEEP_SUFFIX
from normlab.results.folder import require_sweep_folder
from normlab.results.result import Status
from normlab.results.sweep import read_sweep

ALL = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


@pytest.fixture
def write_sweep(tmp_path):
    """Return a function that writes the event files of the sweep."""

    def write(*markdown):
        records = read_sweep(tmp_path / "sweep")
        return write_events(tmp_path / "sweep", build_report_data(records, ReportOptions()).summary, [], markdown)

    return write


@pytest.fixture
def folder(make_run, tmp_path):
    """Return the folder of a sweep of two configurations and three seeds."""
    for model in ("bn", "nobn"):
        for seed in range(3):
            make_run(f"model={model} seed={seed}", [4.0, 2.0 + seed], events=True)
    (tmp_path / "sweep" / "multirun.yaml").touch()
    return tmp_path / "sweep"


def events(folder):
    return EventAccumulator(str(folder)).Reload()


def traces(folder):
    """Return the event files below a folder, by their folder."""
    return {path.parent.relative_to(folder).as_posix(): path for path in sorted(folder.rglob(EVENT_FILES))}


def written(events, tag):
    [event] = events.Tensors(tag)
    return event.tensor_proto.string_val[0]


def test_each_configuration_is_tensorboard_run(folder, write_sweep):
    assert list(write_sweep().values()) == [folder / "arms", folder]
    assert {path.name for path in (folder / "arms").iterdir() if path.is_dir()} == {"model=bn", "model=nobn"}
    arm = events(folder / "arms" / "model=bn")
    assert [(event.step, event.value) for event in arm.Scalars("val/loss/median")] == [(5, 4.0), (10, 3.0)]
    assert [event.value for event in arm.Scalars("~quartiles/val/loss/upper")] == [4.0, 3.5]


def test_text_and_layout_are_in_arms_folder(folder, write_sweep):
    write_sweep("## Verdicts", ["model  runs", "bn        3"])
    beside = events(folder / "arms")
    content = written(beside, "all runs/text_summary").decode()
    assert content.startswith("## Verdicts\n\n    model  runs\n    bn        3\n\n`arms/…` has the median")
    layout = Layout.FromString(written(beside, "custom_scalars__config__"))
    assert [chart.title for chart in layout.category[0].chart] == ["train/loss", "val/loss"]
    assert events(folder).Tags()["tensors"] == ["_hparams_/experiment"]


def test_arms_folder_holds_no_sweep_runs(folder, write_sweep):
    before = read_sweep(folder)
    write_sweep()
    assert read_sweep(folder) == before
    require_sweep_folder(folder)


def test_rewriting_replaces_own_files_only(folder, write_sweep, make_run):
    write_sweep()
    (folder / "arms" / "model=bn" / "notes.txt").write_text("mine")
    before = traces(folder)
    make_run("model=ln seed=0", events=True)
    write_sweep()
    after = traces(folder)
    assert after.keys() - before.keys() == {"arms/model=ln", "model=ln,seed=0"}
    assert not set(after.values()) & {before[name] for name in (".", "arms", "arms/model=bn")}
    assert (folder / "arms" / "model=bn" / "notes.txt").read_text() == "mine"
    for run in folder.glob("*seed*"):
        assert len(list(run.glob(f"*.{SWEEP_SUFFIX}"))) == 1


def test_files_of_removed_configuration_are_deleted(folder, write_sweep):
    write_sweep()
    for seed in range(3):
        (folder / f"model=nobn,seed={seed}").rename(folder.parent / f"elsewhere{seed}")
    write_sweep()
    assert [name for name in traces(folder) if name.startswith("arms")] == ["arms", "arms/model=bn"]


def test_no_arms_folder_with_one_run_each(folder, write_sweep):
    write_sweep()
    for seed in (1, 2):
        for model in ("bn", "nobn"):
            (folder / f"model={model},seed={seed}").rename(folder.parent / f"{model}{seed}")
    assert list(write_sweep("only").values()) == [folder]
    assert not (folder / "arms").exists()
    own = events(folder)
    assert "quartiles" not in written(own, "all runs/text_summary").decode()
    layout = Layout.FromString(written(own, "custom_scalars__config__"))
    assert {chart.WhichOneof("content") for category in layout.category for chart in category.chart} == {
        "multiline"
    }


def test_user_runs_in_arms_folder_are_kept(folder, write_sweep):
    (folder / "arms").mkdir()
    for run in list(folder.glob("model=*")):
        run.rename(folder / "arms" / run.name)
    own = {path: path.read_bytes() for path in folder.rglob(EVENT_FILES)}
    assert list(write_sweep().values()) == [folder]
    assert {path: path.read_bytes() for path in own} == own


def test_configuration_folders_are_safe_and_unique(make_run, tmp_path, write_sweep):
    for path in ("a*b", "a_b"):
        for seed in range(2):
            make_run(f"data.path={path} seed={seed}", events=True)
    write_sweep()
    names = {path.name for path in (tmp_path / "sweep" / "arms").iterdir() if path.is_dir()}
    assert names == {"path=a_b", "path=a_b#2"}


def test_block_of_lines_keeps_alignment():
    blocks = ["# Title", ["a  b", "1  2"], ["", "note"]]
    assert text_blocks(blocks) == "# Title\n\n    a  b\n    1  2\n\n    \n    note"


@contextmanager
def tensorboard(folder, log):
    """Start TensorBoard; yield a function that requests JSON from it."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)

            def request_json(path, content=None):
                data = None if content is None else json.dumps(content).encode()
                request = urllib.request.Request(f"{found[0]}data/{path}", data)
                request.add_header("Content-Type", "application/json")
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)

            yield request_json
        finally:
            process.terminate()


def test_tensorboard_serves_all_tabs(folder, make_run, tmp_path):
    make_run("model=nobn seed=3", [4.0, float("nan")], status=Status.DIVERGED, events=True)
    finalize_sweep(folder)
    runs = set(traces(folder))
    with tensorboard(folder, tmp_path / "log") as request_json:
        deadline = time.monotonic() + 60
        while set(request_json("runs")) != runs:
            assert time.monotonic() < deadline, request_json("runs")
            time.sleep(0.05)
        curve = request_json("plugin/scalars/scalars?tag=val/loss/median&run=arms/model%3Dbn")
        query = {"experimentName": "", "allowedStatuses": ALL, "colParams": [], "startIndex": 0, "sliceSize": 9}
        groups = request_json("plugin/hparams/session_groups", query)["sessionGroups"]
        columns = request_json("plugin/hparams/experiment", {"experimentName": ""})
        layout = request_json("plugin/custom_scalars/layout")
        texts = request_json("plugin/text/text?tag=all%20runs/text_summary&run=arms")
        images = request_json("plugin/images/tags")

    assert [(step, value) for _, step, value in curve] == [(5, 4.0), (10, 3.0)]
    assert sorted(len(group["sessions"]) for group in groups) == [3, 4]
    of = {group["hparams"]["model"]: group["metricValues"] for group in groups}
    means = {
        model: {metric["name"]["tag"]: metric["value"] for metric in metrics} for model, metrics in of.items()
    }
    assert means["bn"]["~table/last/val/loss"] == 3.0
    assert means["nobn"]["~table/last/val/loss"] == "Infinity"
    assert means["nobn"]["~table/diverged"] == 0.25
    assert [(c["name"], c.get("differs", False)) for c in columns["hparamInfos"]][:2] == [
        ("model", True),
        ("data", False),
    ]
    assert columns["metricInfos"][0]["displayName"] == "best/val/loss"
    assert [category["title"] for category in layout["category"]] == [
        "losses and metrics: median and quartiles",
        "losses and metrics",
    ]
    assert "loss at the end of training (lower is better)" in texts[0]["text"]
    assert set(images) == {"arms"}
    assert all(tag.startswith("~figures/") for tag in images["arms"])
