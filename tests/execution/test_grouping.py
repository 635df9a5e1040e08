"""Groups of a sweep: kept populations, splitting for many workers, the plan."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from normlab.config.validation import validate
from normlab.execution.executors import InProcess, plan_groups
from normlab.execution.grouping import Group, group_runs, plan
from normlab.execution.state import SweepState
from normlab.training.run_folders import Run

CONF = str(Path(__file__).parents[2] / "conf")


def runs_of(sweep: Path, seeds: range, *overrides: str) -> list[Run]:
    """Return runs of one sweep that differ in their seeds."""
    with initialize_config_dir(CONF, version_base="1.3"):
        configs = [validate(compose("train", overrides=[*overrides, f"seed={seed}"])) for seed in seeds]
    return [
        Run(config, sweep / f"seed={seed}", f"seed={seed}", {"model": "bn"}, [], sweep_folder=sweep)
        for seed, config in zip(seeds, configs, strict=True)
    ]


def members(groups: list[Group]) -> list[list[int]]:
    return [group.indices for group in groups]


def test_interrupted_population_keeps_its_members(tmp_path):
    runs = runs_of(tmp_path, range(6))
    earlier = [group.planned for group in group_runs(runs, chunk=3)]
    assert members(group_runs(runs, None, earlier=earlier, done={0, 1, 2, 3})) == [[3, 4, 5]]
    assert members(group_runs(runs, None, done={0, 1, 2, 3})) == [[4, 5]]
    assert members(group_runs(runs, None, earlier=earlier, done=range(6))) == []


def test_population_of_runs_outside_the_sweep_is_divided_anew(tmp_path):
    earlier = [group.planned for group in group_runs(runs_of(tmp_path, range(4)), None)]
    assert members(group_runs(runs_of(tmp_path, range(1, 6)), None, earlier=earlier, done={0})) == [[1, 2, 3, 4]]


def test_number_of_populations_with_a_key_is_kept(tmp_path):
    runs = runs_of(tmp_path, range(6))
    earlier = [group.planned for group in group_runs(runs, chunk=2)]
    (kept,) = group_runs(runs, None, earlier=earlier, done={2, 3, 4, 5})
    assert kept.populations == 3, "the decision to compile depends on it"


def test_smaller_chunk_divides_an_earlier_population(tmp_path):
    runs = runs_of(tmp_path, range(6))
    plan_groups(runs, set(), None, InProcess())
    assert [len(population.runs) for population in SweepState(tmp_path).populations()] == [6]
    groups = plan_groups(runs, {0}, 2, InProcess())
    assert members(groups) == [[1, 2], [3, 4], [5]]
    first = [population.runs[0] for population in SweepState(tmp_path).populations()]
    assert first == ["seed=1", "seed=3", "seed=5"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("n_jobs", "sizes"), [(1, [64]), (2, [32, 32]), (4, [16] * 4), (100, [16] * 4)])
def test_large_population_is_split_for_many_workers(tmp_path, n_jobs, sizes):
    groups = group_runs(runs_of(tmp_path, range(64)), None, n_jobs)
    assert [len(group.runs) for group in groups] == sizes


def test_plan_names_a_long_time(tmp_path):
    short, long = (group_runs(runs_of(tmp_path, range(2), f"trainer.max_epochs={n}"), None) for n in (1, 100_000))
    assert plan(short) == ["2 runs in 1 population"]
    (line,) = plan(long)
    assert line.startswith("2 runs in 1 population, about ")
    assert line.endswith((" min", " h"))
