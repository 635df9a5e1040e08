"""The composer's jobs equal those of Hydra, whichever were composed before."""

from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.normlab import callback  # noqa: F401 - registers a resolver that train.yaml uses
from hydra_plugins.normlab.composer import Composer
from normlab.errors import ConfigError

CONF = str(Path(__file__).parents[2] / "conf")
JOBS = [
    ["model=bn", "seed=0"],
    ["model=nobn", "seed=1", "optimizer.lr=1e-3", "net.hidden=[10,20]"],
    ["optimizer=sgd", "optimizer.momentum=0.5", "optimizer.nesterov=true", "model=bn"],
    ["experiment=overfit", "trainer.max_epochs=3", "+trainer.profiler=simple", "data.seed=${seed}"],
    ["model=bn", "~data.target", "direction=null", "hydra.sweep.subdir='a=b,c'", "scheduler=step"],
    ["seed=5", "model=bn", "seed=6"],
    ["scheduler=cosine", "trainer.max_epochs=7", "model=gn", "model.norm.num_groups=2"],
    ["scheduler=cosine", "trainer.max_epochs=9", "model=gn", "model.norm.num_groups=5"],
    ["model=bn", "model.norm={eps:0.1}", "seed=3"],
    ["model=bn", "model.norm=null", "seed=3"],
    ["model=bn", "model.norm2d.eps=0.1", "+hydra.job.env_set.NORMLAB_TEST=x", "seed=3"],
]
SWEEP = ["seed=1", "hydra.sweep.dir=somewhere", "hydra.job.name=train"]


@pytest.fixture
def hydra():
    yield Hydra.create_main_hydra2("train", create_config_search_path(CONF))
    GlobalHydra.instance().clear()


@pytest.mark.sampled(11)
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("before", [[], JOBS, JOBS[::-1]], ids=["first", "last", "last, reversed"])
def test_job_equals_hydras(hydra, job, before):
    master = hydra.compose_config("train", SWEEP, run_mode=RunMode.MULTIRUN)
    composer, named = Composer(hydra.config_loader, master), [*job, "hydra.sweep.subdir='name'"]
    for number, other in enumerate(before):
        composer.compose([*other, "hydra.sweep.subdir=x"], number)
    ours, config = composer.compose(named, 7), composer.compose_config(named, 7)
    theirs = hydra.config_loader.load_sweep_config(master, named)
    theirs.hydra.job.num = theirs.hydra.job.id = 7
    theirs.hydra.runtime.output_dir = str(Path("somewhere/name").absolute())
    assert list(config) == list(theirs)
    expected = OmegaConf.to_container(theirs)
    assert OmegaConf.to_container(config) == expected
    assert ours.hydra == OmegaConf.to_container(theirs.hydra, enum_to_str=True)
    assert list(ours.written) == [key for key in theirs if key != "hydra"]
    assert ours.written == {key: value for key, value in expected.items() if key != "hydra"}
    resolved = OmegaConf.masked_copy(theirs, list(ours.written))
    assert ours.values == OmegaConf.to_container(resolved, resolve=True)
    assert ours.folder == Path("somewhere/name")


def test_written_yaml_equals_hydras(hydra, tmp_path):
    master = hydra.compose_config("train", [*SWEEP, f"hydra.sweep.dir={tmp_path}"], run_mode=RunMode.MULTIRUN)
    words = ["model=bn", "net.hidden=[10, 10]", "hydra.sweep.subdir='a name: with signs'"]
    composer = Composer(hydra.config_loader, master)
    composer.compose(words, 0).write_hydra()
    config, folder = composer.compose_config(words, 0), tmp_path / "a name: with signs" / ".hydra"
    for name, node in (
        ("config", OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])),
        ("hydra", OmegaConf.masked_copy(config, ["hydra"])),
        ("overrides", config.hydra.overrides.task),
    ):
        assert (folder / f"{name}.yaml").read_text() == OmegaConf.to_yaml(node), name


def test_unresolvable_job_has_the_error(hydra):
    master = hydra.compose_config("train", SWEEP, run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    for words, message in (
        (["data.seed=${sead}"], r"data.seed: \$\{sead\} refers to a missing key, sead; did you mean \$\{seed\}"),
        (["data.seed=???"], "data.seed: Missing mandatory value"),
    ):
        job = composer.compose([*words, "hydra.sweep.subdir=x"], 0)
        with pytest.raises(ConfigError, match=message):
            _ = job.values


def test_group_choices_are_composed_once(hydra):
    master = hydra.compose_config("train", SWEEP, run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    for model in ("bn", "nobn"):
        for seed in range(10):
            words = [f"model={model}", f"seed={seed}", f"hydra.sweep.subdir={model}{seed}"]
            assert composer.compose(words, seed).values.seed == seed
    assert len(composer.chosen) == len(composer.written) == 2


def test_hydra_node_is_out_of_reach_of_interpolations(hydra):
    master = hydra.compose_config("train", SWEEP, run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    words = ["data.seed=${hydra.job.num}", "hydra.sweep.subdir=x"]
    with pytest.raises(ConfigError, match=r"write Hydra's values as \$\{hydra:job.num\}"):
        _ = composer.compose(words, 0).values
    words = ["data.seed=${seed}", "seed=${hydra:job.num}", "hydra.sweep.subdir=x"]
    for number in (3, 4):
        job = composer.compose(words, number)
        assert (job.values.data.seed, job.values.seed) == (number, number)
        assert (job.written["data"]["seed"], job.written["seed"]) == ("${seed}", number)


def test_interpolations_follow_the_assigned_keys(hydra):
    master = hydra.compose_config("train", SWEEP, run_mode=RunMode.MULTIRUN)
    composer = Composer(hydra.config_loader, master)
    for epochs in (5, 6):
        words = ["scheduler=cosine", f"trainer.max_epochs={epochs}", "hydra.sweep.subdir=x"]
        assert composer.compose(words, 0).values.scheduler.T_max == epochs
    for eps in (0.1, 0.2):
        words = ["model=bn", "+model.norm2d.more=1", f"model.norm.eps={eps}", "hydra.sweep.subdir=x"]
        assert composer.compose(words, 0).values.model.norm2d.eps == eps
