import math
from pathlib import Path

import pytest

from normlab.config.frozen import DEFAULTS_BEFORE
from normlab.config.schema import POPULATION
from normlab.results.reading import read_curves
from normlab.results.result import Objective, Result, Status
from normlab.results.series import Point, append_curves
from normlab.results.sweep import read_sweep, read_sweeps, run_folders, setting


def make_run(folder, losses=(2.0, 1.0), **changed):
    folder.mkdir(parents=True)
    points = [Point(epoch, 5 * epoch, 0.0, {"val/loss": loss}) for epoch, loss in enumerate(losses, 1)]
    append_curves(folder, points)
    known = {
        "name": folder.name,
        "status": Status.FINISHED,
        "config": {
            "seed": 0,
            "replicate": "data",
            "module": {"_target_": POPULATION},
            "trainable": "all",
            "optimizer": {"lr": 0.01, "betas": [0.9, 0.999]},
            "model": {"norm": None},
        },
        "choices": {"model": "bn"},
        "overrides": ["model=bn"],
        "objective": Objective("val/loss", "min", min(losses)),
    }
    result = Result(**{**known, **changed})
    result.write(folder)
    return result


def hydra(folder, **files):
    (folder / ".hydra").mkdir(parents=True)
    for name, text in files.items():
        (folder / ".hydra" / f"{name}.yaml").write_text(text)


def relative(folders, root):
    return [path.relative_to(root).as_posix() for path in folders]


class TestRunFolders:
    def test_run_has_result_or_hydra_folder(self, tmp_path):
        make_run(tmp_path / "ended")
        hydra(tmp_path / "killed")
        (tmp_path / "notes").mkdir()
        assert sorted(relative(run_folders(tmp_path), tmp_path)) == ["ended", "killed"]

    def test_nested_runs_are_not_searched(self, tmp_path):
        make_run(tmp_path / "one" / "deep")
        make_run(tmp_path / "one" / "deep" / "checkpoints" / "inner")
        assert relative(run_folders(tmp_path), tmp_path) == ["one/deep"]

    def test_folder_may_be_a_run(self, tmp_path):
        make_run(tmp_path / "run")
        assert list(run_folders(tmp_path / "run")) == [tmp_path / "run"]

    def test_links_to_runs_and_sweeps_are_followed(self, tmp_path):
        make_run(tmp_path / "elsewhere" / "run")
        make_run(tmp_path / "other" / "run")
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep" / "one").symlink_to(tmp_path / "elsewhere" / "run")
        (tmp_path / "sweep" / "two").symlink_to(tmp_path / "other")
        assert relative(run_folders(tmp_path / "sweep"), tmp_path / "sweep") == ["one", "two/run"]

    def test_linked_folder_is_read_once(self, tmp_path):
        make_run(tmp_path / "sweep" / "run")
        (tmp_path / "sweep" / "a-link").symlink_to("run")
        (tmp_path / "same").symlink_to("sweep")
        assert relative(run_folders(tmp_path), tmp_path) == ["sweep/run"]
        records = read_sweeps([tmp_path / "sweep", tmp_path / "same", tmp_path])
        assert [record.folder for record in records] == [tmp_path / "sweep" / "run"]

    def test_link_to_parent_is_not_followed(self, tmp_path):
        make_run(tmp_path / "sweep" / "below" / "run")
        make_run(tmp_path / "beside" / "run")
        for name, target in (("up", tmp_path), ("round", tmp_path / "sweep"), ("below/up", tmp_path / "sweep")):
            (tmp_path / "sweep" / name).symlink_to(target)
        assert relative(run_folders(tmp_path / "sweep"), tmp_path / "sweep") == ["below/run"]

    def test_missing_folder_has_no_runs(self, tmp_path):
        assert read_sweep(tmp_path / "nowhere") == []


class TestReadSweep:
    def test_results_are_sorted_by_path(self, tmp_path):
        second, first = make_run(tmp_path / "b"), make_run(tmp_path / "a", status=Status.DIVERGED)
        assert [record.result for record in read_sweep(tmp_path)] == [first, second]

    def test_run_without_result_is_failed(self, tmp_path):
        config = "seed: 3\noptimizer:\n  lr: 0.1\n"
        hydra(tmp_path / "run", config=config, overrides="- model=nobn\n- seed=3\n")
        [record] = read_sweep(tmp_path)
        assert record.result.status == Status.FAILED
        assert record.result.overrides == ["model=nobn", "seed=3"]
        assert record.result.config == {**DEFAULTS_BEFORE, "seed": 3, "optimizer": {"lr": 0.1}}
        assert record.result.error.startswith("left no result.json")
        assert math.isnan(record.result.objective.value)

    def test_config_without_result_is_resolved(self, tmp_path):
        hydra(tmp_path / "run", config="seed: 3\ndata:\n  seed: ${seed}\n")
        [record] = read_sweep(tmp_path)
        assert record.result.config == {**DEFAULTS_BEFORE, "seed": 3, "data": {"seed": 3}}

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "run"}', "\x00\xff"])
    def test_damaged_result_is_logged_and_failed(self, tmp_path, caplog, text):
        make_run(tmp_path / "run")
        (tmp_path / "run" / "result.json").write_text(text)
        [record] = read_sweep(tmp_path)
        assert record.result.status == Status.FAILED
        assert record.result.error == "result.json is damaged"
        [message] = caplog.messages
        assert str(tmp_path / "run" / "result.json") in message
        assert "\n" not in message

    @pytest.mark.parametrize("text", ["[", "a: [", "- 1\n- 2", ""])
    def test_damaged_hydra_config_is_empty(self, tmp_path, text):
        hydra(tmp_path / "run", config=text)
        [record] = read_sweep(tmp_path)
        assert (record.result.config, record.result.overrides) == ({}, [])


class TestSetting:
    RUN = Result(
        name="run",
        status=Status.FAILED,
        config={
            "seed": 0,
            "optimizer": {"lr": 1e-05, "betas": [0.9, 0.999], "weight_decay": 1.0},
            "model": {"norm": None},
            "net": {},
        },
        choices={"model": "bn"},
        overrides=["model=bn", "optimizer.lr=1e-5", "+net.extra=x"],
        objective=Objective("", "", math.nan),
    )

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model", "bn"),
            ("optimizer.lr", "1e-05"),
            ("optimizer.weight_decay", "1"),
            ("optimizer.betas", "[0.9, 0.999]"),
            ("model.norm", "null"),
            ("net.extra", "x"),
            ("data.seed", None),
            ("seed.deeper", None),
        ],
    )
    def test_setting_is_choice_value_or_override(self, key, value):
        assert setting(self.RUN, key) == value

    def test_setting_of_unknown_run_is_none(self):
        assert setting(Result("", Status.FAILED, {}, {}, [], Objective("", "", math.nan)), "model") is None


class TestReadCurves:
    def read(self, folder: Path):
        return read_curves(read_sweep(folder))

    def test_rows_are_runs_epochs_and_metrics(self, tmp_path):
        make_run(tmp_path / "a", losses=(2.0, 1.0))
        make_run(tmp_path / "b", losses=(math.nan, math.inf))
        frame = self.read(tmp_path)
        assert list(frame.columns) == ["run", "epoch", "step", "metric", "value"]
        assert frame["run"].tolist() == [0, 0, 1, 1]
        assert frame["epoch"].tolist() == [1, 2, 1, 2]
        assert frame["step"].tolist() == [5, 10, 5, 10]
        assert set(frame["metric"]) == {"val/loss"}
        assert frame["value"].tolist() == [2.0, 1.0, pytest.approx(math.nan, nan_ok=True), math.inf]

    def test_metric_name_may_contain_slashes(self, tmp_path):
        make_run(tmp_path / "a", losses=(1.0,))
        append_curves(tmp_path / "a", [Point(1, 5, 0.0, {"activation/hidden1/before_mean": 3.0})])
        assert self.read(tmp_path)["metric"].tolist() == ["val/loss", "activation/hidden1/before_mean"]

    def test_incomplete_last_row_is_dropped(self, tmp_path):
        make_run(tmp_path / "a", losses=(2.0, 1.0))
        with (tmp_path / "a" / "curves.csv").open("a") as file:
            file.write("3,15,val,loss,123")
        assert self.read(tmp_path)["value"].tolist() == [2.0, 1.0]

    @pytest.mark.parametrize("text", ["a,b\n1,2\n", "epoch,step,split,metric,value\nx,5,val,loss,1.0\n"])
    def test_damaged_curves_are_logged_and_skipped(self, tmp_path, caplog, text):
        make_run(tmp_path / "a")
        make_run(tmp_path / "b")
        (tmp_path / "a" / "curves.csv").write_text(text)
        assert set(self.read(tmp_path)["run"]) == {1}
        [message] = caplog.messages
        assert str(tmp_path / "a" / "curves.csv") in message

    @pytest.mark.parametrize("text", [None, "", "epoch,st"])
    def test_missing_curves_are_empty(self, tmp_path, caplog, text):
        make_run(tmp_path / "a")
        (tmp_path / "a" / "curves.csv").unlink()
        if text is not None:
            (tmp_path / "a" / "curves.csv").write_text(text)
        assert self.read(tmp_path).empty
        assert not caplog.messages
