"""``python -m normlab.report PATH``: the page of one sweep, or of several together."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from normlab.errors import ConfigError, first_line
from normlab.report.finalize import shorter_path
from normlab.results.folder import HYDRA_CONFIG, SWEEP_CONFIG, require_writable, run_name
from normlab.results.result import RESULT_FILE
from normlab.results.sweep import read_sweeps

REPORT_OPTIONS = ("metric", "compare", "baseline", "target", "margin", "pairs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for, or say in one line why not."""
    parser = argparse.ArgumentParser(prog="python -m normlab.report", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="the folder of a sweep")
    parser.add_argument("--compare", metavar="KEY", help="what is compared; model, if it varies")
    parser.add_argument(
        "--baseline", metavar="ARM", help="what the others are compared with; nobn, if it is there"
    )
    parser.add_argument("--metric", help="the metric to compare: val/loss, test/acc, …; test and training loss")
    parser.add_argument("--target", help="the validation value that times are counted to, or: baseline")
    parser.add_argument("--margin", type=float, help="test equivalence within this margin: 0.05 is 5 %%")
    parser.add_argument("--pairs", action="store_true", default=None, help="compare all pairs of arms")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of the page; in the first PATH report/, or report-<options>/"
    )
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        report(asked)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {first_line(error)}")


def report(asked: argparse.Namespace) -> None:
    """Read the records, and write the report.

    Raises:
        ConfigError: if there is nothing to report, or not what was asked for.
    """
    for path in asked.paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is no folder; give the folder of a sweep, as outputs/…")
    records = read_sweeps(asked.paths)
    if not records:
        raise ConfigError(
            f"no run is in {', '.join(map(str, asked.paths))}; give the folder of a sweep, as outputs/…"
        )
    from normlab.report.report import write_report
    from normlab.report.report_data import (
        ReportOptions,
        build_report_data,
        declared_maximum,
        read_history,
        write_history,
    )
    from normlab.stats.looks import History

    out, options = page_folder(asked), {name: getattr(asked, name) for name in REPORT_OPTIONS}
    one = asked.paths[0] if len(asked.paths) == 1 else None
    typed = ReportOptions.of_runs(records, one)
    given = {name: value for name, value in options.items() if value is not None}
    if "compare" in given:  # the arms are others then
        typed = replace(typed, baseline=None)
    history = read_history(one, records) if one else History(declared_maximum(records))
    found = build_report_data(
        records,
        replace(typed, **(given | {"target": typed_target(asked.target) or typed.target})),
        history=history,
        folders=asked.paths,
    )
    require_writable(out)
    if one and not given:  # other options are another analysis of the same runs
        write_history(one, history)
    print(shorter_path(write_report(asked.paths, found, out)))


def page_folder(asked: argparse.Namespace) -> Path:
    """Return the folder of the page: ``report/`` of a sweep alone and without options, else one named after them.

    Raises:
        ConfigError: if the page would replace the main report of a sweep, or the files of something else.
    """
    from normlab.report.report import FOLDER

    first, *others = asked.paths
    given = [f"{name}={getattr(asked, name)}" for name in REPORT_OPTIONS if getattr(asked, name) is not None]
    given += [f"with={os.path.relpath(path, first.parent)}" for path in others]
    own = first / (f"{FOLDER}-{run_name(given)}" if given else FOLDER)
    if asked.out is None:
        return own
    out: Path = asked.out
    main = {(path / FOLDER).resolve() for path in asked.paths}
    if given and (out.resolve() in main or (out.name == FOLDER and (out.parent / SWEEP_CONFIG).exists())):
        raise ConfigError(
            f"--out must be another folder than the main report, which is of one sweep without options, got {out} "
            f"with {', '.join(given)}; leave --out away and the page goes to {shorter_path(own)}"
        )
    require_report(out)
    return out


def require_report(folder: Path) -> None:
    """Refuse a folder that holds anything but a report: a page replaces what is there.

    Raises:
        ConfigError: if it is so.
    """
    from normlab.report.page import PAGE

    held = any((folder / name).exists() for name in (HYDRA_CONFIG.parent, SWEEP_CONFIG, RESULT_FILE))
    if held or (folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).exists()):
        raise ConfigError(f"--out must be a new folder or one of a report, got {folder}; choose another folder")


def typed_target(text: str | None) -> float | str | None:
    """Return the target that was typed: a number where it is one."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
