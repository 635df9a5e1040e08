"""Threads, memory, cache and allocator."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normlab.population import hardware


def fail_on(threads: int) -> None:
    with hardware.threads(threads):
        assert torch.get_num_threads() == threads
        raise KeyError


def test_threads_are_restored():
    before = torch.get_num_threads()
    with pytest.raises(KeyError):
        fail_on(before + 1)
    assert torch.get_num_threads() == before


def test_memory_equals_proc_meminfo():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert hardware.memory(torch.device("cpu")) == pytest.approx(
        int(lines["MemTotal"].split()[0]) * 1024, rel=1e-3
    )


def test_defaults_without_system_information(monkeypatch):
    monkeypatch.delattr("os.sysconf_names")
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    assert hardware.memory(torch.device("cpu")) == 8 * 2**30
    assert hardware.cache_size.__wrapped__() == 32 * 2**20


def test_cache_size_is_the_largest(monkeypatch, tmp_path):
    for number, size in enumerate(["32K\n", "1024K\n", "48M\n"]):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(size)
    monkeypatch.setattr(hardware, "CACHES", tmp_path)
    assert hardware.cache_size.__wrapped__() == 48 * 2**20


@pytest.mark.parametrize("accelerator", ["cpu", "gpu", "auto"])
def test_device_of_each_accelerator(monkeypatch, accelerator):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.device(accelerator).type == ("cpu" if accelerator == "cpu" else "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.device(accelerator).type == "cpu"


FAULTS = """
import resource, torch
from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.population.hardware import tune_malloc
from normlab.population.optim import SGD
from normlab.population.population import Population, initial_nets
from normlab.population.compiling import PopulationStep
from normlab.population.tasks import Regression

if {keeps}:
    tune_malloc()
population = Population(initial_nets(lambda: MLP((3,), 1, hidden=[64], norm=BatchNorm1d), range(50)))
step = PopulationStep(population, Regression().loss, SGD(population.parameters(), members=50), None)
for steps in (30, 20):  # the heap grows during the first steps
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step(torch.ones(50, 200, 3), torch.ones(50, 200, 1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(hardware.platform.libc_ver()[0] != "glibc", reason="another C library")
def test_tuned_malloc_reuses_freed_memory():
    faults = []
    for keeps in (False, True):
        command = [sys.executable, "-c", FAULTS.format(keeps=keeps)]
        faults.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert faults[1] < faults[0] / 4, faults
