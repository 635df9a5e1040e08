"""Command line ``normlab claims``: test all claims in ``conf/claim`` and write the page over them.

In a folder with ``train.py`` and ``conf/train.yaml``, as a clone, these are used; elsewhere the installed package,
with the claims and normalizers of a project's folder ``conf``.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlab.claims.claim import BUDGETS, Claim, read_claims
from normlab.claims.page import write_claims_page
from normlab.claims.profile_page import profile_file
from normlab.claims.runner import Job, jobs_of, run_job
from normlab.errors import ConfigError, first_line, nearest, require
from normlab.option_folders import MAIN_CONFIG, PACKAGED_CONF
from normlab.report import shorter_path
from normlab.results.folder import require_writable
from normlab.srun import exit_unless_first_task
from normlab.stats.design import MODEL

DESCRIPTION = "Test the claims in conf/claim that are not done, and write the page over all of them."
SCRIPT, CONF = Path("train.py"), Path("conf")
OUT = Path("outputs/claims")
log = logging.getLogger("normlab")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the claims and write the page; errors exit with a message of one line."""
    exit_unless_first_task()
    parser = argparse.ArgumentParser(prog="normlab claims", description=DESCRIPTION)
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        default="quick",
        help="quick (default): all claims in an hour; full: more seeds, larger nets",
    )
    parser.add_argument(
        "--only", metavar="NAMES", type=names, default=[], help="claims to run, separated by commas"
    )
    parser.add_argument("--skip", metavar="NAMES", type=names, default=[], help="claims to leave out")
    parser.add_argument("--list", action="store_true", help="list the claims and their answers, and run nothing")
    parser.add_argument(
        "--with",
        dest="arm",
        metavar="model=NAME",
        help="add a normalizer to each claim in which an arm can be replaced, and write its profile",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        help="worker processes of a sweep; default: the number of cores, at most 8",
    )
    parser.add_argument("--out", type=Path, help=f"output folder; default: {OUT}, {OUT}-full, or {OUT}-with-NAME")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        sys.exit(run(args))
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {first_line(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


def names(text: str) -> list[str]:
    """Split a list of names at its commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def run(args: argparse.Namespace) -> int:
    """Run the chosen claims that are not done and write the page; return 1 if a claim failed, else 0.

    Raises:
        ConfigError: if a name is no claim.
    """
    claims, arm = dict[str, tuple[Claim, Any, Path]](), normalizer(args.arm)
    for folder in config_groups("claim"):
        claims |= {name: (*pair, folder / f"{name}.yaml") for name, pair in read_claims(folder).items()}
    for name in (*args.only, *args.skip):
        if name not in claims:
            raise ConfigError(f"{name}: no such claim; did you mean {nearest(name, claims)}?")
    require(args.jobs >= 1, "--jobs", "at least 1", args.jobs)
    out = args.out or Path(f"{OUT}{f'-with-{arm}' if arm else ''}{'-full' if args.budget == 'full' else ''}")
    chosen = [
        found for name, found in claims.items() if (not args.only or name in args.only) and name not in args.skip
    ]
    jobs = [
        job
        for claim, sweep, file in chosen
        if arm is None or claim.replace is not None
        for job in jobs_of(claim, file, sweep, out, args.budget, arm)
    ]
    width = max((len(job.name) for job in jobs), default=0)
    if args.list:
        for job in jobs:
            log.info("%s  %s", job.name.ljust(width), listed(job))
        return 0
    require_writable(out)
    absent = [(claim.name, "no arm of this claim can be replaced") for claim, *_ in chosen if not claim.replace]
    failures = dict[str, str]()
    try:
        for job in jobs:
            if reason := run_line(job, width, args.jobs):
                failures[job.name] = reason
        return int(len(failures) > 0)
    finally:
        page = write_claims_page(out, arm, [*failures.items(), *absent])
        log.info("page: %s", shorter_path(page))
        if arm:
            log.info("profile: %s", shorter_path(page.with_name(profile_file(arm))))


def is_clone() -> bool:
    """Return True in a folder with an entry script and a primary config of its own."""
    return SCRIPT.is_file() and (CONF / f"{MAIN_CONFIG}.yaml").is_file()


def config_groups(group: str) -> list[Path]:
    """Return the folders with the options of a config group."""
    parents = [CONF] if is_clone() else [PACKAGED_CONF, CONF]
    return [parent / group for parent in parents if (parent / group).is_dir()]


def normalizer(text: str | None) -> str | None:
    """Return the name in ``--with model=NAME``.

    Raises:
        ConfigError: if the text has another form.
    """
    if text is None:
        return None
    key, _, name = text.partition("=")
    options = [path.stem for folder in config_groups(MODEL) for path in sorted(folder.glob("*.yaml"))]
    meant = nearest(name or key, options)
    known = key == MODEL and name in options
    require(known, "--with", "model=NAME with a file of conf/model", f"{text}; did you mean {MODEL}={meant}?")
    return name


def run_line(job: Job, width: int, workers: int) -> str:
    """Run a job unless it is done, and log its line; return the reason if it failed, else an empty text."""
    start, done = time.monotonic(), job.record
    if not done:
        output = shorter_path(job.folder.with_suffix(".log"))
        minutes = "" if job.arm else f", about {job.claim.minutes:g} min"
        log.info("%s  starts%s; output: %s", job.name.ljust(width), minutes, output)
    try:
        record = done or run_job(job, [str(SCRIPT)] if is_clone() else ["-m", "normlab", "train"], workers)
    except ConfigError as error:
        log.info("%s  %s", job.name.ljust(width), first_line(error))
        return first_line(error)
    took = "done before" if done else f"{(time.monotonic() - start) / 60:.1f} min"
    verdict = record.get("profile", {}).get(job.arm, record["verdict"])
    with_arm = f"with {job.arm}: " if job.arm else ""
    sentence = verdict.get("sentence") or verdict["error"]
    log.info("%s  %s%s  (%s)", job.name.ljust(width), with_arm, sentence, took)
    return ""


def listed(job: Job) -> str:
    """Return the answer to a claim, or its expected minutes, with its statement."""
    claim: Claim = job.claim
    record = job.record
    state = record["verdict"]["answer"] if record else f"not run, about {claim.minutes:g} min"
    return f"{state.ljust(24)}  {claim.statement}"


if __name__ == "__main__":
    main()
