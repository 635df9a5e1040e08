"""The composer's job configs equal those of Hydra."""

from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.normlab import callback  # noqa: F401 - registers a resolver that train.yaml uses
from hydra_plugins.normlab.composer import Composer

CONF = str(Path(__file__).parents[2] / "conf")
JOBS = [
    ["model=bn", "seed=0"],
    ["model=nobn", "seed=1", "optimizer.lr=1e-3", "net.hidden=[10,20]"],
    ["optimizer=sgd", "optimizer.momentum=0.5", "optimizer.nesterov=true", "model=bn"],
    ["experiment=overfit", "trainer.max_epochs=3", "+trainer.profiler=simple", "data.seed=${seed}"],
    ["model=bn", "~data.target", "direction=null", "hydra.sweep.subdir='a=b,c'", "scheduler=step"],
    ["seed=5", "model=bn", "seed=6"],
]


@pytest.fixture
def hydra():
    yield Hydra.create_main_hydra2("train", create_config_search_path(CONF))
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("job", JOBS)
def test_job_config_equals_hydras(hydra, job):
    overrides = ["seed=1", "hydra.sweep.dir=somewhere", "hydra.job.name=train"]
    master = hydra.compose_config("train", overrides, run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    composer.compose(["model=bn", "seed=9", "hydra.sweep.subdir=x"], 0)
    ours = composer.compose([*job, "hydra.sweep.subdir='name'"], 7)
    config = composer.compose_config([*job, "hydra.sweep.subdir='name'"], 7)
    theirs = hydra.config_loader.load_sweep_config(master, [*job, "hydra.sweep.subdir='name'"])
    theirs.hydra.job.num = theirs.hydra.job.id = 7
    theirs.hydra.runtime.output_dir = str(Path("somewhere/name").absolute())
    assert list(ours) == list(theirs)
    one, other = (OmegaConf.to_container(config, resolve=False) for config in (ours, theirs))
    for key in theirs:
        assert one[key] == other[key], key


def test_group_choices_are_composed_once(hydra, monkeypatch):
    master = hydra.compose_config("train", ["hydra.sweep.dir=somewhere"], run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    for model in ("bn", "nobn"):
        for seed in range(10):
            config = composer.compose(
                [f"model={model}", f"seed={seed}", f"hydra.sweep.subdir={model}{seed}"], seed
            )
            assert config.seed == seed
    assert len(composer.composed) == 2
