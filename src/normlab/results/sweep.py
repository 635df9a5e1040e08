"""Files of a sweep's folder: the results of its runs, and ``timing.json``, seconds per optimizer step.

The entries are :func:`read_sweep`, and :func:`read_timing` and :func:`step_seconds`. Configurations are timed in
one process in interleaved rounds; R is the number of rounds.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab.config.frozen import to_jsonable, updated, updated_override, without_report_keys
from normlab.errors import ConfigError
from normlab.results.folder import HYDRA_CONFIG
from normlab.results.packed import PACKED_FOLDER, PackedRun, packed_run, packed_runs, precedence
from normlab.results.result import RESULT_FILE, Objective, Result, Status, known_fields, write_atomically

TIMING_FILE = "timing.json"
TIMING_NEUTRAL_GROUPS = ("optimizer", "scheduler")
"""Groups whose numbers do not change the duration of a step, except that 0 may disable a computation."""
log = logging.getLogger("normlab")


@dataclass(frozen=True)
class Record:
    """A run in a sweep's folder; without a readable result its status is failed.

    Attributes:
        folder: of the run; with packed records it need not exist.
        packed: the row of a file of packed records; None for a run with files of its own.
    """

    folder: Path
    result: Result
    packed: PackedRun | None = None

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read the record of a run from its folder or from packed records; of two, the one that counts."""
        run = packed_run(folder)
        if run is None:
            return cls(folder, read_result(folder))
        packed = cls(folder, read_packed_result(run), run)
        if not is_run_folder(folder):
            return packed
        return max(packed, cls(folder, read_result(folder)), key=lambda record: precedence(record.result))

    def unresolved(self) -> dict[str, Any]:
        """Return the configuration that Hydra wrote, with interpolations unresolved; empty if it is missing."""
        return read_unresolved(self.folder) if self.packed is None else packed_yaml(self.packed, "config", dict)


def is_run_folder(folder: Path) -> bool:
    """Return True for a folder that holds a run."""
    return (folder / RESULT_FILE).is_file() or (folder / HYDRA_CONFIG).is_file()


def read_sweep(folder: Path) -> list[Record]:
    """Return the runs below ``folder``, sorted by path."""
    return read_sweeps([folder])


def read_sweeps(folders: Iterable[Path]) -> list[Record]:
    """Return the runs below several folders without duplicates, in the order of folders, then paths."""
    seen: set[str] = set()
    return [Record.read(path) for folder in folders for path in sorted(set(run_folders(folder, seen)))]


def run_folders(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """Yield the folders of runs: ``folder`` itself, or folders below it. Runs are not nested.

    The folder that a packed run would have is yielded, too.
    Symbolic links to folders are followed after all real folders, except links to a folder that contains them.

    Args:
        folder: top of the search.
        seen: real paths of folders already searched, which are skipped; updated in place.
    """
    seen = set() if seen is None else seen
    pending, top = [folder], os.path.realpath(folder)
    while pending:
        for path, subfolders, files in os.walk(pending.pop(0)):
            real = os.path.realpath(path)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            if HYDRA_CONFIG.parent.name in subfolders or RESULT_FILE in files:
                subfolders.clear()
                yield Path(path)
            elif os.path.basename(path) == PACKED_FOLDER:
                yield from (run.folder for run in packed_runs(Path(path)).values())
            links = [Path(path, name) for name in sorted(subfolders) if os.path.islink(os.path.join(path, name))]
            ends = [Path(top), Path(real)]
            pending += [
                link for link in links if not any(end.is_relative_to(os.path.realpath(link)) for end in ends)
            ]


def read_result(folder: Path) -> Result:
    """Return a run's result; without a readable one, a failed result with the recorded configuration."""
    try:
        return Result.read(folder) or failed_result(
            folder, f"left no {RESULT_FILE}: it was killed or is still running"
        )
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        log.warning("%s; the run counts as failed", error)
        return failed_result(folder, f"{RESULT_FILE} is damaged")


def read_packed_result(run: PackedRun) -> Result:
    """Return the result of a packed run; if it is damaged, a failed result with the recorded configuration."""
    try:
        return run.result()
    except ConfigError:
        raise
    except ValueError as error:
        log.warning("%s; the run counts as failed", error)
        config, overrides = packed_yaml(run, "config", dict), packed_yaml(run, "overrides", list)
        return result_of_failed(run.folder.name, config, overrides, "its packed result is damaged")


def failed_result(folder: Path, reason: str) -> Result:
    """Build a failed result from the configuration that Hydra wrote at the start of the run."""
    written = load_yaml(folder / HYDRA_CONFIG.parent / "overrides.yaml", list)
    return result_of_failed(folder.name, read_unresolved(folder), written, reason)


def result_of_failed(name: str, config: dict[str, Any], overrides: list[Any], reason: str) -> Result:
    """Build a failed result from a configuration with interpolations unresolved."""
    return Result(
        name=name,
        status=Status.FAILED,
        config=updated(resolve_references(config)),
        choices={},
        overrides=[updated_override(str(override)) for override in overrides],
        objective=Objective("", "", math.nan),
        error=reason,
    )


def resolve_references(config: dict[str, Any]) -> dict[str, Any]:
    """Resolve the interpolations of a configuration; return it unchanged if one cannot be resolved.

    >>> resolve_references({"seed": 1, "data": {"seed": "${seed}"}}), resolve_references({"seed": "${lost}"})
    ({'seed': 1, 'data': {'seed': 1}}, {'seed': '${lost}'})
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException:
        return config
    return content


def read_unresolved(folder: Path) -> dict[str, Any]:
    """Read the configuration that Hydra wrote for a run, with interpolations unresolved; empty if missing."""
    content: dict[str, Any] = load_yaml(folder / HYDRA_CONFIG, dict)
    return content


def load_yaml(path: Path, kind: type) -> Any:
    """Read a YAML file that Hydra wrote; return an empty ``kind`` if it is missing, damaged or of another type.

    libyaml parses it in a tenth of the time of OmegaConf's reader.
    """
    try:
        return parse_yaml(path.read_text(), kind)
    except (OSError, ValueError):
        return kind()


def packed_yaml(run: PackedRun, name: str, kind: type) -> Any:
    """Parse a YAML file that Hydra would have written for a packed run; see :func:`load_yaml`."""
    return parse_yaml(run.text(name), kind)


def parse_yaml(text: str, kind: type) -> Any:
    """Parse YAML; return an empty ``kind`` if it is damaged or of another type."""
    try:
        content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (ValueError, yaml.YAMLError):
        return kind()
    return content if isinstance(content, kind) else kind()


def overrides(run: Result) -> dict[str, str]:
    """Return the overrides of a run as a mapping from key to the text of the value.

    >>> overrides(Result("", Status.FAILED, {}, {}, ["model=bn", "+a.b=1"], Objective("", "", 0.0)))
    {'model': 'bn', 'a.b': '1'}
    """
    parts = (override.lstrip("+~").partition("=") for override in run.overrides)
    return {key: value for key, _, value in parts}


def setting(run: Result, key: str) -> str | None:
    """Return the resolved value of a key in a run, as text; None if it is unknown.

    For a group, this is the chosen option.

    >>> config, choices = {"optimizer": {"lr": 0.01}}, {"model": "bn"}
    >>> run = Result("", Status.FAILED, config, choices, [], Objective("", "", 0.0))
    >>> setting(run, "model"), setting(run, "optimizer.lr"), setting(run, "data.seed")
    ('bn', '0.01', None)
    """
    node: Any = run.config
    for part in key.split("."):
        node = node.get(part, ...) if isinstance(node, dict) else ...
    if key in run.choices or isinstance(node, dict) or node is ...:
        return run.choices.get(key, overrides(run).get(key))
    if isinstance(node, str):
        return node
    # Equal numbers are one setting: a YAML has 1.0 where a command line has 1.
    return json.dumps(node).removesuffix(".0") if isinstance(node, float) else json.dumps(node)


@dataclass(frozen=True)
class TimedConfiguration:
    """Step times of one run, which represents all runs whose steps have the same cost.

    Attributes:
        run: the run's folder, relative to the sweep's.
        config, choices, sources: fields of the run's result.
        threads: number of CPU threads.
        compiled: True if the steps were compiled.
        steps_per_block: number of steps per round.
        seconds_per_step: mean seconds per step in each round, ``(R,)``. All are timed in each round, so equal
            rounds of two configurations are paired.
    """

    run: str
    config: dict[str, Any]
    choices: dict[str, str]
    sources: dict[str, str]
    threads: int
    compiled: bool
    steps_per_block: int
    seconds_per_step: list[float]


@dataclass(frozen=True)
class Timing:
    """Step times of a sweep's configurations, measured together; times of other sessions are not comparable."""

    started: str
    arms: list[TimedConfiguration]
    environment: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``timing.json`` into the folder of a sweep, atomically."""
        write_atomically(folder / TIMING_FILE, json.dumps(to_jsonable(asdict(self)), indent=2) + "\n")


def read_timing(folder: Path) -> Timing | None:
    """Read ``timing.json`` of a sweep; return None if it is missing, or damaged (logs a warning)."""
    path = folder / TIMING_FILE
    try:
        values = json.loads(path.read_text())
        arms = [TimedConfiguration(**known_fields(TimedConfiguration, arm)) for arm in values["arms"]]
        return Timing(**known_fields(Timing, values) | {"arms": arms})
    except FileNotFoundError:
        return None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("%s is damaged: %s; step times are not compared", path, error)
        return None


def step_seconds(timing: Timing, result: Result) -> list[float] | None:
    """Return a run's seconds per step in each round, ``(R,)``; None if no run of equal cost was timed.

    Round r of one run and round r of another, from the same timing, are paired.
    """
    cost = cost_key(result.config, result.sources)
    times = (arm.seconds_per_step for arm in timing.arms if cost_key(arm.config, arm.sources) == cost)
    return next(times, None)


def representatives(records: Iterable[Record]) -> list[Record]:
    """Select one done run for each step cost, preferring finished over diverged runs."""
    done = [record for record in records if record.result.status.done]
    by_cost: dict[str, Record] = {}
    for record in sorted(done, key=lambda record: record.result.status != "finished"):
        by_cost.setdefault(cost_key(record.result.config, record.result.sources), record)
    return sorted(by_cost.values(), key=lambda record: record.folder)


def cost_key(config: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Return a key that is equal for runs whose optimizer steps have the same cost.

    It contains the resolved configuration without ``seed``, ``data.seed`` and ``target``, and the hashes of source
    files. Numbers of the optimizer and scheduler are masked, except 0: without weight decay a step is cheaper.

    >>> runs = [{"seed": k, "optimizer": {"lr": lr}} for k, lr in ((0, 0.1), (1, 0.2), (2, 0))]
    >>> one, two, three = (cost_key(run, {}) for run in runs)
    >>> one == two, one == three
    (True, False)
    """
    relevant = {k: value for k, value in without_report_keys(config).items() if k not in ("seed", "target")}
    if "data" in relevant:
        relevant["data"] = {key: value for key, value in relevant["data"].items() if key != "seed"}
    masked = {group: mask_nonzero(relevant[group]) for group in TIMING_NEUTRAL_GROUPS if group in relevant}
    return json.dumps([relevant | masked, sources], sort_keys=True)


def mask_nonzero(node: Any) -> Any:
    """Replace all nonzero numbers in a part of a configuration by ``#``.

    >>> mask_nonzero({"lr": 0.1, "betas": [0.9, 0.0], "nesterov": True})
    {'lr': '#', 'betas': ['#', 0.0], 'nesterov': True}
    """
    if isinstance(node, Mapping):
        return {key: mask_nonzero(value) for key, value in node.items()}
    if isinstance(node, list):
        return [mask_nonzero(value) for value in node]
    return "#" if isinstance(node, int | float) and not isinstance(node, bool) and node else node
