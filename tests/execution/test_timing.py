import itertools
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from normlab.config.frozen import FrozenConfig, recorded
from normlab.config.validation import validate
from normlab.errors import ConfigError
from normlab.execution import timing
from normlab.execution.timing import Stepper, interleaved, time_configurations
from normlab.results.result import Result
from normlab.results.sweep import read_timing, step_seconds
from normlab.training.build import make_data
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = str(Path(__file__).parents[2] / "conf")


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.001)


def train_one(folder: Path, *overrides: str) -> Result:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = validate(compose("train", overrides=["trainer.max_epochs=1", "logger=csv", *overrides]))
    (result,) = train([Run(config, folder, folder.name, {"model": overrides[0][6:]}, list(overrides))])
    return result


def stepper_of(result: Result) -> Stepper:
    config = FrozenConfig.of(result.config)
    return Stepper(config, make_data(config))


def test_rounds_call_each_timer_once_in_random_order():
    calls: list[tuple[str, int]] = []

    def timer(name: str):
        counter = itertools.count()
        return lambda: calls.append((name, number := next(counter))) or float(number)

    values = interleaved([timer(name) for name in "abc"], 30)
    assert values == [[float(number) for number in range(30)]] * 3
    rounds = [calls[start : start + 3] for start in range(0, 90, 3)]
    assert all({name for name, _ in each} == set("abc") for each in rounds)
    assert all({number for _, number in each} == {k} for k, each in enumerate(rounds))
    assert len({tuple(name for name, _ in each) for each in rounds}) == 6, "every order comes"
    repeated = interleaved([timer(name) for name in "abc"], 30)
    assert (repeated, calls[90:]) == (values, calls[:90]), "the orders are the same each time"


WAYS = [
    ["model=bn", "net.dropout=0.3"],
    ["model=nobn", "trainer.precision=64-true", "trainer.gradient_clip_val=1.0"],
    [
        "model=actnorm",
        "optimizer=sgd",
        "data.standardize=true",
        "data.train=129",
        "data.batch_size=32",
        "stats_warmup_epochs=1",
    ],
]


@pytest.mark.parametrize("overrides", WAYS, ids=str)
def test_timed_steps_equal_training_steps(tmp_path, overrides):
    stepper = stepper_of(train_one(tmp_path, *overrides))
    stepper.seconds(itertools.islice(stepper.minibatches, stepper.steps_per_epoch))
    trained = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["state_dict"]
    torch.testing.assert_close(stepper.module.population.member(0), trained, rtol=0, atol=0)


def test_block_holds_whole_epochs(tmp_path, monkeypatch):
    stepper = stepper_of(train_one(tmp_path, "model=bn", "data.train=129", "data.batch_size=32"))
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.02)
    stepper.prepare()
    assert stepper.steps_per_epoch == 4
    assert stepper.steps >= 4
    assert stepper.steps % 4 == 0


def test_block_has_at_least_5_steps(tmp_path, monkeypatch):
    stepper = stepper_of(train_one(tmp_path, "model=bn"))
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 1e-9)
    stepper.prepare()
    assert stepper.steps == 5


def test_runs_share_the_times_of_their_arm(tmp_path, caplog):
    runs = [("bn", 0, 0.01), ("bn", 1, 0.1), ("nobn", 0, 0.01), ("nobn", 1, 0.1)]
    results = [
        train_one(tmp_path / f"{model}{seed}", f"model={model}", f"seed={seed}", f"optimizer.lr={lr}")
        for model, seed, lr in runs
    ]
    caplog.set_level("INFO")
    time_configurations(tmp_path, rounds=3)
    timing_result = read_timing(tmp_path)
    assert timing_result is not None
    assert [(arm.run, arm.choices, arm.threads, arm.compiled) for arm in timing_result.arms] == [
        ("bn0", {"model": "bn"}, 1, False),
        ("nobn0", {"model": "nobn"}, 1, False),
    ]
    assert all(len(arm.seconds_per_step) == 3 and min(arm.seconds_per_step) > 0 for arm in timing_result.arms)
    bn, nobn = (arm.seconds_per_step for arm in timing_result.arms)
    assert [step_seconds(timing_result, result) for result in results] == [bn, bn, nobn, nobn]
    line = caplog.messages[-1]
    assert line.startswith("timing: bn ")
    assert " ms per step, nobn " in line
    assert line.endswith(f" ms, 3 rounds interleaved: {tmp_path}/timing.json")


def test_equal_arms_take_similar_time(tmp_path, monkeypatch):
    stepper, same = (stepper_of(train_one(tmp_path / name, "model=bn")) for name in "ab")
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.01)
    for each in (stepper, same):
        each.prepare()
    ours, theirs = map(sorted, interleaved([stepper.seconds_per_step, same.seconds_per_step], 15))
    assert 2 / 3 < ours[7] / theirs[7] < 3 / 2, "medians; a machine under load is noisy"


def test_single_arm_is_not_timed(tmp_path, caplog):
    for seed in (0, 1):
        train_one(tmp_path / str(seed), "model=bn", f"seed={seed}")
    caplog.set_level("INFO")
    time_configurations(tmp_path)
    assert "nothing to compare" in caplog.messages[-1]
    assert read_timing(tmp_path) is None


def test_changed_data_raise(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("x,y\n" + "".join(f"{k},{k % 7 + 0.5}\n" for k in range(60)))
    data = ["data=csv", f"data.path={table}", "data.target_column=y"]
    data += ["data.train=40", "data.val=10", "data.test=10", "data.batch_size=20"]
    for model in ("bn", "nobn"):
        train_one(tmp_path / "sweep" / model, f"model={model}", *data)
    table.write_text(table.read_text() + "1,2\n")
    with pytest.raises(
        ConfigError, match=r"bn holds a result of code or data that have changed since: data\.path="
    ):
        time_configurations(tmp_path / "sweep")


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("sizes", ["data.train=120", "data.train=130"])
def test_steps_of_several_arms_stay_compiled(tmp_path, sizes):
    for model in ("bn", "nobn"):
        overrides = ["trainer.compile=true", "net.hidden=[4]", "data.batch_size=40", sizes]
        train_one(tmp_path / model, f"model={model}", *overrides)
    time_configurations(tmp_path, rounds=3)
    timing_result = read_timing(tmp_path)
    assert timing_result is not None
    assert [arm.compiled for arm in timing_result.arms] == [True, True]


def test_timing_option_is_not_recorded_in_runs():
    with initialize_config_dir(CONF, version_base="1.3"):
        off, on = (validate(compose("train", overrides=[f"timing={choice}"])) for choice in ("false", "true"))
    assert recorded(off) == recorded(on)
    assert "timing" not in recorded(on)
