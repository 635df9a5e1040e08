"""Plain configurations are read-only; records with old keys are read, and their runs are not retrained."""

import json
import pickle
from copy import deepcopy
from pathlib import Path

import pytest
from hydra.utils import get_object

from normlab.config.frozen import (
    DEFAULTS_BEFORE,
    MOVED_TARGETS,
    FrozenConfig,
    differing_keys,
    fingerprint,
    recorded,
    replaced,
    updated,
)
from normlab.results.result import Result
from normlab.results.sweep import read_sweep

ROOT = Path(__file__).parents[2]
WORDS = ["optimizer=sgd", "scheduler=cosine", "stats_warmup_epochs=1", "trainer.max_epochs=2", "logger=csv"]


@pytest.mark.parametrize("target", MOVED_TARGETS.values())
def test_moved_target_exists(target):
    assert get_object(target)


def test_nested_targets_are_moved():
    old = {"probes": {"a": {"_target_": "normlab.probes.AliasedLipschitz"}}, "extra": [{"_target_": "mine"}]}
    new = {"a": {"_target_": "normlab.source_experiments.AliasedLipschitz"}}
    assert updated(old) == {**DEFAULTS_BEFORE, "probes": new, "extra": [{"_target_": "mine"}]}


def test_frozen_config_is_read_only_and_a_dict():
    values = {"seed": 0, "net": {"hidden": [1, {"a": 2}]}, "metrics": {}}
    config = FrozenConfig.of(values)
    assert config == values
    assert json.loads(json.dumps(config)) == values
    assert config.net.hidden[1].a == 2
    for change in (
        lambda: config.update(seed=1),
        lambda: config.net.pop("hidden"),
        lambda: setattr(config.net, "hidden", []),
        lambda: config.net.hidden[1].__setitem__("a", 3),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    with pytest.raises(AttributeError, match="no key lr"):
        _ = config.lr
    for copy in (deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert copy == config
        assert isinstance(copy.net, FrozenConfig)


def test_frozen_parts_are_shared():
    one = FrozenConfig.of({"seed": 0, "net": {"hidden": [1]}})
    assert FrozenConfig.of(replaced(one, {("seed",): 1})).net is one.net


def test_recorded_is_json_without_folder_keys():
    config = FrozenConfig.of({"lr": float("inf"), "steps": {10: 0.1}, "retrain": True, "timing": False})
    assert recorded(config) == {"lr": "inf", "steps": {"10": 0.1}}


@pytest.mark.parametrize("more", [{"baseline": "ln"}, {"retrain": True}, {"margin": 0.1}])
def test_fingerprint_ignores_keys_without_effect_on_training(more):
    assert fingerprint({"seed": 0} | more) == fingerprint({"seed": 0})
    assert fingerprint({"seed": 0}) != fingerprint({"seed": 1})


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "d": 5}, ["a.c", "d"]),
        ({"a": 1}, {"b": 1}, ["a", "b"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a"]),
        ({"a": None}, {}, ["a"]),
    ],
)
def test_differing_keys(one, other, keys):
    assert differing_keys(one, other) == keys
    assert differing_keys(other, one) == keys


@pytest.mark.slow
def test_run_recorded_with_old_names_is_not_retrained(warm_python, tmp_path):
    def train():
        done = warm_python.run(["train.py", *WORDS, f"hydra.run.dir={tmp_path / 'run'}"], ROOT)
        assert done.returncode == 0, done.stderr
        return done

    train()
    path = tmp_path / "run" / "result.json"
    now = Result.read(path.parent)
    text = path.read_text().replace("stats_warmup_epochs", "warmup")
    path.write_text(text.replace("normlab.population.", "normlab.training."))
    config = json.loads(path.read_text())["config"]
    assert config["warmup"] == 1
    assert config["optimizer"]["_target_"] == "normlab.training.optim.SGD"

    [record] = read_sweep(tmp_path)
    assert (record.result.config, record.result.overrides) == (now.config, now.overrides)
    done = train()
    assert "is done already" in done.stdout + done.stderr
