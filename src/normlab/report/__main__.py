"""``python -m normlab.report PATH``: the page of one sweep, or of several together."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from normlab.config import ConfigError, first_line
from normlab.records.folder import require_writable
from normlab.records.sweep import read_sweep
from normlab.report.close import shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for, or say in one line why not."""
    parser = argparse.ArgumentParser(prog="python -m normlab.report", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="the folder of a sweep")
    parser.add_argument("--compare", metavar="KEY", help="what is compared; model, if it varies")
    parser.add_argument(
        "--baseline", metavar="ARM", help="what the others are compared with; nobn, if it is there"
    )
    parser.add_argument("--metric", help="what is compared: val/loss, test/acc, …; what the runs optimized")
    parser.add_argument("--target", help="a value that times are counted to, or: baseline")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the report; report/ in the first PATH")
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
    records = [record for path in asked.paths for record in read_sweep(path)]
    if not records:
        raise ConfigError(
            f"no run is in {', '.join(map(str, asked.paths))}; give the folder of a sweep, as outputs/…"
        )
    from normlab.report.report import FOLDER, write_report
    from normlab.report.study import Asked, study

    out = asked.out or asked.paths[0] / FOLDER
    require_writable(out)
    chosen = Asked(asked.compare, asked.baseline, asked.metric, target_of(asked.target))
    print(shown(write_report(asked.paths, study(records, chosen), out)))


def target_of(text: str | None) -> float | str | None:
    """Return the target that was typed: a number where it is one."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
