"""Command line ``python eval.py``, or ``normlab eval``: parses it and evaluates the checkpoints: :func:`main`."""

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from normlab.cli import run_cli
from normlab.config.frozen import FrozenConfig, config_leaves
from normlab.config.validation import check_targets
from normlab.errors import ConfigError, require
from normlab.evaluation.configuration import (
    check_overrides,
    compose_options,
    evaluation_config,
    written_config,
)
from normlab.evaluation.output import Evaluation, common_folder, print_tables, write_files
from normlab.evaluation.runs import find_runs, matches
from normlab.option_folders import PACKAGED_CONF, program
from normlab.report import shorter_path
from normlab.results.folder import require_writable, run_name
from normlab.results.provenance import sources_of
from normlab.results.result import Result
from normlab.results.sweep import Record

log = logging.getLogger("normlab")
CHECKPOINTS = ("best", "last")
HELP = """\
Evaluate checkpoints of trained runs on the training, validation and test split; nothing is trained.

  {program} run=outputs/mine/model=bn,seed=0
  {program} run=outputs/mine/model=bn,seed=0 statistics=batch     other statistics of the normalizers
  {program} run=outputs/mine/model=bn,seed=0 data=wine            other data, on which the net is not trained
  {program} 'run=outputs/mine/*' checkpoint=last                  several runs, with means over the seeds
  {program} 'run=[outputs/a/model=bn,outputs/b/model=bn]'

  run=FOLDER           the folder of a run, several as [A,B], or a pattern with * and ?
  checkpoint=best      or last
  KEY=VALUE            replaces a value of the run's configuration, below or at data, net, model, loss, metrics,
                       statistics, seed, replicate, trainer.accelerator, trainer.precision or trainer.threads
  --config-dir FOLDER  more options of data, net, model, loss and metrics

The table is printed, and written with all metrics to a new folder beside the runs: eval.csv and eval.json."""


@dataclass(frozen=True)
class Request:
    """A parsed command line.

    Attributes:
        runs: the value of ``run=``.
        checkpoint: ``best`` or ``last``.
        overrides: of the runs' configurations.
    """

    runs: str
    checkpoint: str
    overrides: list[Override]

    @property
    def remedy(self) -> str:
        """The remedy for a checkpoint that does not fit the net of the configuration."""
        shaping = [word for word in self.words if word.lstrip("+~").startswith(("data", "net", "model"))]
        return f"leave out {' '.join(shaping)}" if shaping else "only a net of net= can be evaluated"

    @property
    def words(self) -> list[str]:
        """The overrides as they are typed."""
        return [str(override.input_line) for override in self.overrides]

    @property
    def name(self) -> str:
        """The name of the output folder, made of all but the runs."""
        last = [f"checkpoint={self.checkpoint}"] if self.checkpoint != CHECKPOINTS[0] else []
        words = [*self.words, *last]
        return f"eval-{run_name(words)}" if words else "eval"


def main(conf: Path = PACKAGED_CONF) -> None:
    """Evaluate the runs that the command line names, with the config groups of a folder; see :func:`evaluate`."""
    run_cli(lambda: evaluate(sys.argv[1:], conf), conf)


def evaluate(words: Sequence[str], conf: Path) -> None:
    """Evaluate the checkpoints that a command line names, print a table and write ``eval.csv`` and ``eval.json``.

    Args:
        words: the arguments of the command.
        conf: the folder of the config groups.

    Raises:
        ConfigError: for a mistake on the command line, or a checkpoint that cannot be evaluated.
    """
    options = get_args_parser().parse_args(list(words))
    if options.help or options.hydra_help:
        print(HELP.format(program=program()))
        return
    require_supported(options)
    log_to_terminal()
    request = parse_request(options.overrides)
    folders = find_runs(request.runs, request.checkpoint)
    require_writable(common_folder(folders))
    composed = compose_options(request.overrides, conf)
    records, configs = [Record.read(folder) for folder in folders], list[FrozenConfig]()
    for record in records:
        with named_if(len(records) > 1, record.folder):
            configs.append(evaluation_config(written_config(record), composed, request.overrides, conf))
    evaluations = []
    for record, config in zip(records, configs, strict=True):
        with named_if(len(records) > 1, record.folder):
            evaluations.append(evaluate_run(record, config, request))
    print_tables(evaluations)
    folder = write_files(evaluations, request.name, words)
    log.info("files: %s: eval.csv, eval.json", shorter_path(folder))


class Unrepeated(logging.Filter):
    """Drops warnings that were logged before, since several runs may give the same."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for a warning that is new, and for other lines."""
        text = record.getMessage()
        is_new = record.levelno < logging.WARNING or text not in self.seen
        self.seen.add(text)
        return is_new


def log_to_terminal() -> None:
    """Print log lines without time and level, as a training does."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(Unrepeated())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)


@contextmanager
def named_if(several: bool, folder: Path) -> Iterator[None]:
    """Context manager that prefixes errors with the folder of the run, if there are several runs."""
    try:
        yield
    except ConfigError as error:
        if not several or str(folder) in str(error):
            raise
        raise ConfigError(f"{shorter_path(folder)}: {error}") from error


def evaluate_run(record: Record, config: FrozenConfig, request: Request) -> Evaluation:
    """Evaluate a checkpoint of a run, and log warnings about other data and changed code."""
    from normlab.evaluation.checkpoint import checkpoint_of, evaluate_checkpoint, shared_samples  # imports torch

    check_targets(config)
    loaded, trained = checkpoint_of(record, request.checkpoint), record.result.config
    metrics, data = evaluate_checkpoint(loaded, config, request.remedy)
    for notice in data.notices if config.data != trained["data"] else ():
        log.warning(notice)
    for key in changed_sources(record.result, config):
        log.warning("the file of %s has changed since the training", key)
    shared = shared_samples(FrozenConfig.of(trained), config, data)
    return Evaluation(
        record, config, request.checkpoint, loaded.epoch, loaded.step, metrics, data.description(), shared
    )


def changed_sources(result: Result, config: FrozenConfig) -> list[str]:
    """Return the keys that name the same file of code or data as in the training, which has changed since."""
    now, before = dict(config_leaves(config)), dict(config_leaves(result.config))
    digests = sources_of(config)
    same = [key for key in result.sources if key in digests and now.get(key) == before.get(key)]
    return [key for key in same if digests[key] != result.sources[key]]


def require_supported(options: Namespace) -> None:
    """Raise ConfigError for an option of Hydra that an evaluation does not support."""
    for name, value in vars(options).items():
        if value and name == "multirun":
            raise ConfigError("-m: an evaluation is no sweep; several runs are run=[A,B] or 'run=outputs/mine/*'")
        if value and name not in ("overrides", "config_dir"):
            raise ConfigError(f"--{name.replace('_', '-')}: an evaluation has no such option; leave it out")
    folder = options.config_dir
    require(folder is None or Path(folder).is_dir(), "--config-dir", "a folder", folder)


def parse_request(words: Sequence[str]) -> Request:
    """Parse ``run=``, ``checkpoint=`` and the overrides.

    Paths may have characters that Hydra's grammar reserves, as in ``model=bn,seed=0``; ``run=`` is parsed here.

    Raises:
        ConfigError: if a key is missing, unknown, without effect or given twice.
    """
    given: dict[str, list[str]] = {"run": [], "checkpoint": []}
    others = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in given:
            given[key].append(value)
        else:
            others.append(word)
    for key, values in given.items():
        remedy = "write run=[A,B] for several" if key == "run" else "keep one"
        require(len(values) <= 1, key, f"given once; {remedy}", " and ".join(values))
    if not any(given["run"]):
        expected = "the folder of a run, such as run=outputs/mine/model=bn"
        raise ConfigError(f"run must be {expected}, got {without_key(others)}")
    checkpoint = next(iter(given["checkpoint"]), CHECKPOINTS[0])
    require(checkpoint in CHECKPOINTS, "checkpoint", " or ".join(CHECKPOINTS), checkpoint)
    overrides = OverridesParser.create().parse_overrides(others)
    check_overrides(overrides)
    return Request(given["run"][0], checkpoint, overrides)


def without_key(words: Sequence[str]) -> str:
    """Return the path that a command line gives without ``run=``, with the remedy; "nothing" if it has none."""
    for word in words:
        exists = len(matches(word)) > 0
        if exists or "/" in word.partition("=")[0]:
            return f"{word} without run=; write run={word}" if exists else f"{word}, which does not exist"
    return "nothing"
