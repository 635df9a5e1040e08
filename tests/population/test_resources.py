"""What follows from the size of a population."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from normlab.population import hardware, resources
from normlab.population.resources import tensor_sizes
from normlab.sweep.grouping import group_runs
from normlab.training.session import should_compile
from normlab.training.stackability import footprint_of

CONF = str(Path(__file__).parents[2] / "conf")
MB = 2**20


def config_of(*overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", overrides=["data=random", "net.hidden=[50]", "data.batch_size=100", *overrides])


def members_at_once(config: DictConfig, n_jobs: int = 1, device: str = "cpu", **own: bool) -> int:
    return resources.members_at_once(footprint_of(config), torch.device(device), n_jobs, **own)


def threads_for(config: DictConfig, members: int) -> int:
    return resources.threads_for(footprint_of(config), members)


@pytest.fixture(autouse=True)
def a_machine(monkeypatch):
    """A machine with 32 MB of cache and 16 GB of memory."""
    monkeypatch.setattr(hardware, "cache_size", lambda: 32 * MB)
    monkeypatch.setattr(hardware, "memory", lambda device: 16 * 1024 * MB)


def test_the_size_of_a_member_by_hand():
    # What comes in, then linear, norm, activation and output, for each of 100 samples.
    size = footprint_of(config_of("model=bn"))
    assert size.activations == 100 * (10 + 3 * 50 + 1)
    assert size.parameters == (10 * 50 + 50) + 2 * 50 + (50 + 1)
    assert size.bytes_each == 4
    assert footprint_of(config_of("trainer.precision=64-true")).bytes_each == 8


def test_a_layer_that_puts_out_several_tensors_is_counted_and_stops_nothing():
    outputs, state = nn.GRU(3, 5)(torch.zeros(7, 2, 3))
    assert list(tensor_sizes((outputs, state))) == [7 * 2 * 5, 2 * 5]
    assert list(tensor_sizes({"a": [torch.zeros(4)], "b": None})) == [4]


def test_the_activations_of_members_at_once_fill_half_of_the_cache():
    assert members_at_once(config_of()) == 16 * MB // (4 * 16_100) == 260
    assert members_at_once(config_of("trainer.precision=64-true")) == 130
    assert members_at_once(config_of(), n_jobs=2) == 130


def test_few_members_are_not_split_for_the_cache():
    assert members_at_once(config_of("net.hidden=[2000]")) == 16


def test_memory_bounds_the_members(monkeypatch):
    config = config_of("net.hidden=[2000]")
    size = footprint_of(config)
    each = 4 * (4 * size.activations + 10 * size.parameters)
    monkeypatch.setattr(hardware, "memory", lambda device: 4 * (5 * each + 1))
    assert members_at_once(config) == 5
    monkeypatch.setattr(hardware, "memory", lambda device: 0)
    assert members_at_once(config) == 1


def test_samples_of_their_own_count_twice_and_shared_ones_not(monkeypatch):
    config = config_of("net.hidden=[10]", "data.train=60000", "data.val=20000", "data.test=20000")
    size = footprint_of(config)
    assert size.samples == 100_000 * 11
    each = 4 * (4 * size.activations + 10 * size.parameters + 2 * size.samples)
    monkeypatch.setattr(hardware, "memory", lambda device: 4 * (5 * each + 1))
    assert members_at_once(config, own_samples=True) == 5
    assert members_at_once(config) > 500


@pytest.mark.parametrize(
    ("varied", "largest"),
    [
        (["replicate=data"], 3),
        (["replicate=seed", "data.seed=${seed}"], 3),
        (["replicate=seed"], 12),
        (["replicate=data", "seed=1"], 12),
    ],
)
def test_a_population_is_smaller_if_its_members_have_samples_of_their_own(monkeypatch, varied, largest):
    common = ["net.hidden=[10]", "data.train=60000", "data.val=20000", "data.test=20000"]
    configs = [
        config_of(*common, f"seed={seed}", f"optimizer.lr={0.1 / (seed + 1)}", *varied) for seed in range(12)
    ]
    size = footprint_of(configs[0])
    each = 4 * (4 * size.activations + 10 * size.parameters + 2 * size.samples)
    monkeypatch.setattr(hardware, "memory", lambda device: 4 * (3 * each + 1))
    assert max(len(group.indices) for group in group_runs(configs, None)) == largest


def test_on_a_gpu_memory_alone_decides():
    size = footprint_of(config_of())
    each = 4 * (4 * size.activations + 10 * size.parameters)
    assert members_at_once(config_of(), device="cuda") == 4 * 1024 * MB // each > 10_000


def test_compiling_pays_in_long_sweeps_and_large_populations_with_our_optimizers():
    short = config_of("trainer.max_epochs=10")
    assert not should_compile(short, 256)
    assert should_compile(config_of("trainer.max_epochs=10000"), 1)
    long = config_of("trainer.max_epochs=300")
    assert not should_compile(long, 16)
    assert should_compile(long, 4096)
    foreign = ["optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"]
    assert not should_compile(config_of("trainer.max_epochs=10000", *foreign), 1)


def test_a_trial_of_one_step_is_not_compiled():
    assert not should_compile(config_of("trainer.max_epochs=10000", "trainer.fast_dev_run=true"), 256)


def test_populations_of_one_shape_share_what_compiling_takes():
    config = config_of("trainer.max_epochs=400")
    assert not should_compile(config, 256, populations=1)
    assert should_compile(config, 256, populations=16)


def test_a_smaller_last_minibatch_is_compiled_too_and_counts():
    whole, rest = (config_of("trainer.max_epochs=620", f"data.batch_size={size}") for size in (120, 119))
    assert should_compile(whole, 256)
    assert not should_compile(rest, 256)


def test_large_layers_are_computed_on_all_threads_and_small_ones_on_one():
    torch.set_num_threads(2)
    assert threads_for(config_of("net.hidden=[300]"), 1) == 1
    assert threads_for(config_of("net.hidden=[300,10]"), 2) == 2
    assert threads_for(config_of("net.hidden=[320]"), 1) == 2
