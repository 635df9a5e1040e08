"""Judge a claim from the runs of its sweep, and record the verdict in ``claim.json``: :func:`judge_sweep`."""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from normlab.claims.claim import DESIGN_SEEDS, GROUP, Claim, Registration
from normlab.claims.sweep import ReportSweep
from normlab.claims.verdict import Verdict
from normlab.config.frozen import to_jsonable
from normlab.errors import ConfigError, first_line
from normlab.report.plan import format_seeds
from normlab.report.report_data import ReportData
from normlab.results.provenance import environment
from normlab.results.result import read_numbers, write_atomically
from normlab.stats.design import Scope

CLAIM_FILE = "claim.json"
SCHEMA = 1
SCOPES = {Scope.DRAW: "draws of the data", Scope.SPLIT: "splits of this table", Scope.SEED: "seeds on one dataset"}
log = logging.getLogger("normlab")


@dataclass(frozen=True)
class Command:
    """The command of a claim's sweep.

    Attributes:
        claim: the claim.
        file: its YAML.
        overrides: the overrides, without ``claim=…``.
    """

    claim: Claim
    file: Path
    overrides: Sequence[str]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Command":
        """Return the command of a sweep from its configuration, with Hydra's part.

        Raises:
            ConfigError: if the claim or its file is not found.
        """
        hydra, claim = config["hydra"], Claim.of(config[GROUP])
        name = hydra["runtime"]["choices"].get(GROUP)
        sources = [
            Path(source["path"]) for source in hydra["runtime"]["config_sources"] if source["schema"] == "file"
        ]
        files = [path for source in sources if (path := source / GROUP / f"{name}.yaml").is_file()]
        if not files:
            raise ConfigError(
                f"claim must be chosen from conf/claim, got {name}; write claim=… with one of its files"
            )
        words = [*hydra["overrides"]["task"], *hydra["overrides"]["hydra"]]
        overrides = [word for word in words if not word.startswith((f"{GROUP}=", "hydra.mode="))]
        return cls(claim, files[0], overrides)


def judge_sweep(folder: Path, config: Mapping[str, Any], data: ReportData, seconds: float) -> dict[str, Any]:
    """Judge the claim of a sweep, write ``claim.json`` into its folder, log the verdict and return the record.

    Args:
        folder: the folder of the sweep.
        config: the configuration of the sweep, with Hydra's part.
        data: the analysed runs.
        seconds: the duration of the command; that of earlier commands in this folder is added.

    Raises:
        ConfigError: if the sweep lacks a number that the criterion needs.
    """
    command = Command.of(config)
    claim, sweep = command.claim, ReportSweep(data)
    results = [record.result for record in data.summary.records]
    budget, fresh, beyond = claim.deviations(command.overrides)
    seeds = sorted({int(seed) for seed in data.summary.runs["seed"].dropna()})
    if seeds and seeds[0] < DESIGN_SEEDS and not beyond:
        beyond = [f"seeds below {DESIGN_SEEDS}"]
    verdict = claim.criterion_for(claim.replace)(sweep)
    earlier = read_record(folder) or {}
    record = {
        "schema": SCHEMA,
        GROUP: {key: value for key, value in asdict(claim).items() if key not in ("criterion", "arms")},
        "budget": budget,
        "fresh": fresh,
        "overrides": beyond,
        "data": results[0].choices.get("data"),
        "registration": asdict(Registration.of(command.file)),
        "code": {"commit": environment()["commit"], "dirty": environment()["dirty"], **environment()["versions"]},
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds + earlier.get("seconds", 0.0), 1),
        "seeds": format_seeds(seeds),
        "runs": Counter(result.status.value for result in results),
        "scope": scope_text(data, verdict),
        "report": "report/index.html",
        "verdict": verdict_json(verdict),
    }
    if claim.arms:
        record["profile"] = profile(claim, sweep)
    write_atomically(folder / CLAIM_FILE, json.dumps(to_jsonable(record), indent=1) + "\n")
    suffix = f" (not the registered protocol: {', '.join(beyond)})" if beyond else ""
    log.info("claim %s: %s%s", claim.name, verdict.sentence, suffix)
    return record


def profile(claim: Claim, sweep: ReportSweep) -> dict[str, Any]:
    """Return the verdict with each of the claim's arms in place of the replaceable one, or the error, by arm."""
    verdicts: dict[str, Any] = {}
    for arm in dict.fromkeys([claim.replace, *claim.arms]):
        if arm is None or (arm != claim.replace and arm in claim.compared_arms):
            continue
        try:
            verdicts[arm] = verdict_json(claim.criterion_for(arm)(sweep))
        except ConfigError as error:
            verdicts[arm] = {"error": first_line(error)}
    return verdicts


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON data."""
    parts = [
        {
            **asdict(part),
            "region": [end if math.isfinite(end) else None for end in part.region],
            "answer": part.answer,
        }
        for part in verdict.parts
    ]
    return {**asdict(verdict), "interval": [verdict.interval.low, verdict.interval.high], "parts": parts}


def scope_text(data: ReportData, verdict: Verdict) -> str:
    """Return the replicates that the verdict generalizes over, such as ``24 splits of this table``."""
    scopes = dict.fromkeys(use.scope for use in data.analysis.grid.uses.values())
    return f"{verdict.n} {' or '.join(SCOPES[scope] for scope in scopes)}"


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read ``claim.json`` in a folder; None if it is missing.

    Raises:
        ConfigError: if the file is damaged.
    """
    path = folder / CLAIM_FILE
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = read_numbers(json.loads(path.read_text()))
    except ValueError as error:
        raise ConfigError(
            f"{path} must hold the record of a claim, got {error}; remove it to judge again"
        ) from error
    return record
