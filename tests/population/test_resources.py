"""The machine, the footprint of a population, and the choices that depend on them."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from normlab.config.frozen import FrozenConfig
from normlab.config.validation import validate
from normlab.execution.grouping import group_runs
from normlab.population import resources
from normlab.population.resources import Footprint, tensor_sizes
from normlab.training import stackability
from normlab.training.dry_run import dry_run_once
from normlab.training.run_folders import Run

CONF = str(Path(__file__).parents[2] / "conf")
MB = 2**20
# Fixtures replace these functions in the module.
MACHINE_MEMORY, MACHINE_CACHE_SIZE = resources.memory, resources.cache_size


def config_of(*overrides: str) -> FrozenConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        size = () if "net=cnn" in overrides else ("net.hidden=[50]",)
        overrides = ("data=random", *size, "data.batch_size=100", *overrides)
        return validate(compose("train", overrides=list(overrides)))


def footprint_of(config: FrozenConfig) -> Footprint:
    return dry_run_once(config).footprint


def should_compile(config: FrozenConfig, members: int, populations: int = 1) -> bool:
    return stackability.should_compile(dry_run_once(config), members, populations)


def members_at_once(config: FrozenConfig, n_jobs: int = 1, device: str = "cpu", **own: bool) -> int:
    return resources.members_at_once(footprint_of(config), torch.device(device), n_jobs, **own)


def threads_for(config: FrozenConfig, members: int) -> int:
    return resources.threads_for(footprint_of(config), members)


@pytest.fixture(autouse=True)
def fixed_hardware(monkeypatch):
    """A machine with 32 MB of cache and 16 GB of memory."""
    monkeypatch.setattr(resources, "cache_size", lambda: 32 * MB)
    monkeypatch.setattr(resources, "memory", lambda device: 16 * 1024 * MB)


def test_footprint_by_hand():
    # Inputs, linear, norm, activation and output, for each of 100 samples.
    size = footprint_of(config_of("model=bn"))
    assert size.activations == 100 * (10 + 3 * 50 + 1)
    assert size.parameters == (10 * 50 + 50) + 2 * 50 + (50 + 1)
    assert size.bytes_each == 4
    assert footprint_of(config_of("trainer.precision=64-true")).bytes_each == 8


def test_products_by_hand():
    """Each entry of a kernel is multiplied once for each of the 8 × 8 or, after the first layer, 4 × 4 places."""
    mlp = config_of("data=digits", "model=nobn", "net.hidden=[10]")
    assert footprint_of(mlp).products == 64 * 10 + 10 * 10
    cnn = config_of("data=digits", "net=cnn", "model=nobn", "net.channels=[2,3]")
    assert footprint_of(cnn).products == 9 * 2 * 64 + 9 * 2 * 3 * 16 + 3 * 10


def test_tensor_sizes_of_nested_outputs():
    outputs, state = nn.GRU(3, 5)(torch.zeros(7, 2, 3))
    assert list(tensor_sizes((outputs, state))) == [7 * 2 * 5, 2 * 5]
    assert list(tensor_sizes({"a": [torch.zeros(4)], "b": None})) == [4]


def test_activations_fill_half_the_cache():
    assert members_at_once(config_of()) == 16 * MB // (4 * 16_100) == 260
    assert members_at_once(config_of("trainer.precision=64-true")) == 130
    assert members_at_once(config_of(), n_jobs=2) == 130


def test_few_members_are_not_split_for_the_cache():
    assert members_at_once(config_of("net.hidden=[2000]")) == 16


def test_memory_limits_the_members(monkeypatch):
    config = config_of("net.hidden=[2000]")
    size = footprint_of(config)
    each = 4 * (4 * size.activations + 10 * size.parameters)
    monkeypatch.setattr(resources, "memory", lambda device: 4 * (5 * each + 1))
    assert members_at_once(config) == 5
    monkeypatch.setattr(resources, "memory", lambda device: 0)
    assert members_at_once(config) == 1


def test_different_samples_count_twice(monkeypatch):
    config = config_of("net.hidden=[10]", "data.train=60000", "data.val=20000", "data.test=20000")
    size = footprint_of(config)
    assert size.samples == 100_000 * 11
    each = 4 * (4 * size.activations + 10 * size.parameters + 2 * size.samples)
    monkeypatch.setattr(resources, "memory", lambda device: 4 * (5 * each + 1))
    assert members_at_once(config, own_samples=True) == 5
    assert members_at_once(config) > 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("varied", "largest"),
    [
        (["replicate=data"], 3),
        (["replicate=seed", "data.seed=${seed}"], 3),
        (["replicate=seed"], 12),
        (["replicate=data", "seed=1"], 12),
    ],
)
def test_different_samples_reduce_population_size(monkeypatch, varied, largest):
    common = ["net.hidden=[10]", "data.train=60000", "data.val=20000", "data.test=20000"]
    configs = [
        config_of(*common, f"seed={seed}", f"optimizer.lr={0.1 / (seed + 1)}", *varied) for seed in range(12)
    ]
    size = footprint_of(configs[0])
    each = 4 * (4 * size.activations + 10 * size.parameters + 2 * size.samples)
    monkeypatch.setattr(resources, "memory", lambda device: 4 * (3 * each + 1))
    runs = [Run(config, Path(), "", {}, []) for config in configs]
    assert max(len(group.indices) for group in group_runs(runs, None)) == largest


def test_gpu_is_limited_by_memory_only():
    size = footprint_of(config_of())
    each = 4 * (4 * size.activations + 10 * size.parameters)
    assert members_at_once(config_of(), device="cuda") == 4 * 1024 * MB // each > 10_000


def test_compiling_pays_in_long_or_large_trainings():
    short = config_of("trainer.max_epochs=10")
    assert not should_compile(short, 256)
    assert should_compile(config_of("trainer.max_epochs=10000"), 1)
    long = config_of("trainer.max_epochs=300")
    assert not should_compile(long, 16)
    assert should_compile(long, 4096)
    foreign = ["optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"]
    assert not should_compile(config_of("trainer.max_epochs=10000", *foreign), 1)


def test_fast_dev_run_is_not_compiled():
    assert not should_compile(config_of("trainer.max_epochs=10000", "trainer.fast_dev_run=true"), 256)


def test_populations_share_the_cost_of_compiling():
    config = config_of("trainer.max_epochs=400")
    assert not should_compile(config, 256, populations=1)
    assert should_compile(config, 256, populations=16)


def test_second_batch_size_adds_to_compiling_cost():
    whole, rest = (config_of("trainer.max_epochs=620", f"data.batch_size={size}") for size in (120, 119))
    assert should_compile(whole, 256)
    assert not should_compile(rest, 256)


def test_threads_depend_on_layer_size():
    torch.set_num_threads(2)
    assert threads_for(config_of("net.hidden=[300]"), 1) == 1
    assert threads_for(config_of("net.hidden=[300,10]"), 2) == 2
    assert threads_for(config_of("net.hidden=[320]"), 1) == 2


def fail_on(threads: int) -> None:
    with resources.threads(threads):
        assert torch.get_num_threads() == threads
        raise KeyError


def test_threads_are_restored():
    before = torch.get_num_threads()
    with pytest.raises(KeyError):
        fail_on(before + 1)
    assert torch.get_num_threads() == before


def test_memory_equals_proc_meminfo():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert MACHINE_MEMORY(torch.device("cpu")) == pytest.approx(int(lines["MemTotal"].split()[0]) * 1024, rel=1e-3)


def test_defaults_without_system_information(monkeypatch):
    monkeypatch.delattr("os.sysconf_names")
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    assert MACHINE_MEMORY(torch.device("cpu")) == 8 * 2**30
    assert MACHINE_CACHE_SIZE.__wrapped__() == 32 * 2**20


def test_cache_size_is_the_largest(monkeypatch, tmp_path):
    for number, size in enumerate(["32K\n", "1024K\n", "48M\n"]):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(size)
    monkeypatch.setattr(resources, "CACHES", tmp_path)
    assert MACHINE_CACHE_SIZE.__wrapped__() == 48 * 2**20


@pytest.mark.parametrize("accelerator", ["cpu", "gpu", "auto"])
def test_device_of_each_accelerator(monkeypatch, accelerator):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resources.device(accelerator).type == ("cpu" if accelerator == "cpu" else "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resources.device(accelerator).type == "cpu"
