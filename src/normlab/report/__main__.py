"""Command line ``normlab report PATH``: write the report of one sweep or of several sweeps together."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from normlab.errors import ConfigError, first_line
from normlab.report import shorter_path
from normlab.results.folder import HYDRA_CONFIG, SWEEP_CONFIG, require_writable, run_name
from normlab.results.result import RESULT_FILE
from normlab.results.sweep import Record, read_sweeps

DESCRIPTION = "Write the report of one sweep, or of several sweeps together."
log = logging.getLogger("normlab")
MAX_NAMES = 3
"""The largest number of pooled sweeps that are named."""
REPORT_OPTIONS = ("metric", "compare", "baseline", "target", "margin", "pairs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the report; errors exit with a message of one line."""
    parser = argparse.ArgumentParser(prog="normlab report", description=DESCRIPTION)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="folder of a sweep, or of several, which are compared together",
    )
    parser.add_argument("--compare", metavar="KEY", help="factor to compare; default: model, if it varies")
    parser.add_argument(
        "--baseline", metavar="ARM", help="arm that the others are compared with; default: nobn, if present"
    )
    parser.add_argument(
        "--metric", help="metric to compare, such as test/acc; default: test metrics and training loss"
    )
    parser.add_argument("--target", help="validation value for the time to target, or: baseline")
    parser.add_argument("--margin", type=float, help="test equivalence within this margin; 0.05 is 5 %%")
    parser.add_argument(
        "--pairs", action="store_true", default=None, help="compare all pairs of arms, not only with the baseline"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="output folder; default: report/ in the first PATH, or report-<options>/ with options",
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        report(args)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {first_line(error)}")


def report(args: argparse.Namespace) -> None:
    """Read the records of the sweeps, write the report and print the path of the page.

    Raises:
        ConfigError: if a path holds no runs, or an option does not fit the runs.
    """
    for path in args.paths:
        if not path.is_dir():
            raise ConfigError(f"PATH must be a folder, got {path}; give the folder of a sweep, such as outputs/…")
    records = read_sweeps(args.paths)
    if not records:
        paths = ", ".join(map(str, args.paths))
        raise ConfigError(f"PATH must hold runs, got {paths}; give the folder of a sweep, such as outputs/…")
    log_pooled(args.paths, records)
    from normlab.report.report import write_report
    from normlab.report.report_data import (
        ReportOptions,
        build_report_data,
        declared_maximum,
        read_history,
        write_history,
    )
    from normlab.stats.looks import History

    out, options = page_folder(args), {name: getattr(args, name) for name in REPORT_OPTIONS}
    folder = args.paths[0] if len(args.paths) == 1 else None
    defaults = ReportOptions.of_runs(records, folder)
    given = {name: value for name, value in options.items() if value is not None}
    if "compare" in given:  # the baseline of the runs is an arm of another factor
        defaults = replace(defaults, baseline=None)
    history = read_history(folder, records) if folder else History(declared_maximum(records))
    data = build_report_data(
        records,
        replace(defaults, **(given | {"target": parse_target_option(args.target) or defaults.target})),
        history=history,
        folders=args.paths,
    )
    require_writable(out)
    if folder and not given:  # with options it is another analysis, which does not count as a look
        write_history(folder, history)
    print(shorter_path(write_report(args.paths, data, out)))


def log_pooled(paths: Sequence[Path], records: Sequence[Record]) -> None:
    """Log the sweeps below a path that holds several, as their runs are compared with each other."""
    for path in paths:
        inside = {record.folder.parent for record in records if record.folder.is_relative_to(path)}
        if len(inside) > 1:
            names = ", ".join(sorted(map(shorter_path, inside))[:MAX_NAMES]) + ", …" * (len(inside) > MAX_NAMES)
            log.warning("%s holds %d sweeps, whose runs are compared together: %s", path, len(inside), names)


def page_folder(args: argparse.Namespace) -> Path:
    """Return the output folder: ``report/`` for one sweep without options, else a folder named after the options.

    Raises:
        ConfigError: if ``--out`` would replace the main report of a sweep or a folder that is not a report.
    """
    from normlab.report.report import FOLDER

    first, *others = args.paths
    given = [f"{name}={getattr(args, name)}" for name in REPORT_OPTIONS if getattr(args, name) is not None]
    given += [f"with={os.path.relpath(path, first.parent)}" for path in others]
    default = first / (f"{FOLDER}-{run_name(given)}" if given else FOLDER)
    if args.out is None:
        return default
    out: Path = args.out
    main_reports = {(path / FOLDER).resolve() for path in args.paths}
    if given and (out.resolve() in main_reports or (out.name == FOLDER and (out.parent / SWEEP_CONFIG).exists())):
        raise ConfigError(
            f"--out must not be the main report, which has one sweep and no options, got {out} with "
            f"{', '.join(given)}; omit --out to write to {shorter_path(default)}"
        )
    require_report(out)
    return out


def require_report(folder: Path) -> None:
    """Raise ConfigError if a folder holds files but no report, since writing a page deletes figures and tables."""
    from normlab.report.page import PAGE

    is_output = any((folder / name).exists() for name in (HYDRA_CONFIG.parent, SWEEP_CONFIG, RESULT_FILE))
    if is_output or (folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).exists()):
        raise ConfigError(f"--out must be a new folder or an earlier report, got {folder}; choose another folder")


def parse_target_option(text: str | None) -> float | str | None:
    """Convert ``--target`` to a number, if it is one."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
