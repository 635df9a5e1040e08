"""Command-line entry :func:`run_cli`: calls a Hydra ``main`` and prints errors as one line with a remedy."""

import atexit
import gc
import inspect
import logging
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError
from yaml import MarkedYAMLError

from normlab.config.frozen import RENAMED_KEYS
from normlab.config.typed_targets import with_target_arguments
from normlab.config.validation import is_group, keys_of, parameters_of, supplied
from normlab.errors import ConfigError, first_line, nearest
from normlab.interrupts import Preempted, interrupts
from normlab.srun import exit_unless_first_task

T = TypeVar("T")
MULTIRUN_OPTIONS = ("-m", "--multirun", "hydra.mode=MULTIRUN")
TRACEBACK_VARIABLE = "HYDRA_FULL_ERROR"
MAIN_CONFIG = "train"
"""Name of the primary config; other entry scripts may not have it, and then keys are not looked up."""
PACKAGED_CONF = Path(__file__).parent / "conf"
"""The config groups within the package; in a clone, a link to the top folder ``conf``."""

WANTS_TRACEBACK = os.environ.get(TRACEBACK_VARIABLE) == "1"
"""True if the user asked for tracebacks with Hydra's environment variable."""

STARTED = time.time()
"""Time at which the process imported this module, in Unix seconds."""


def run_cli(main: Callable[[], Any], conf: Path | None = None) -> None:
    """Call a Hydra ``main``; print an error as one line and exit with 1, after a signal with 128 + its number.

    With ``HYDRA_FULL_ERROR=1`` the exception is raised, so that Python prints the traceback.

    Args:
        main: reads the command line.
        conf: the folder of the config groups; by default ``conf`` beside the file of ``main``.
    """
    exit_unless_first_task()
    # With a closed pipe, as in `train.py | head`, logging would print a traceback for every line.
    logging.raiseExceptions = False
    # Makes Hydra re-raise the exception; otherwise it prints part of the traceback itself and exits.
    os.environ[TRACEBACK_VARIABLE] = "1"
    # GOMP_SPINCOUNT is read when torch is imported. On a busy machine, waiting OpenMP threads that spin occupy the
    # core that the others need: a step then takes a hundred times as long. Sleeping costs microseconds.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # Imports and sweeps create many long-lived objects; with the default threshold of 700, garbage collection
    # takes a fifth of the time of the imports. The one at exit takes over a second; the memory is freed anyway.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    # Hydra warns in three lines that -m overrides hydra.mode=RUN; normlab rejects the combination in one.
    warnings.filterwarnings("ignore", message=r"\s*Running Hydra app with --multirun")
    sys.argv[1:] = options_first(sys.argv[1:])
    conf = conf or Path(inspect.getfile(inspect.unwrap(main))).parent / "conf"
    try:
        with interrupts.remembered():
            compose_and_run(main, conf)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Preempted as error:
        print(error, file=sys.stderr)
        sys.exit(128 + error.signum)
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        sys.exit(f"error: {format_error(error, conf)}")


def options_first(words: Sequence[str]) -> list[str]:
    """Move the options of a command line before its overrides, as Hydra requires.

    >>> options_first(["model=bn", "-m", "seed=0,1", "--config-dir", "mine"])
    ['-m', '--config-dir', 'mine', 'model=bn', 'seed=0,1']
    """
    known, unknown = get_args_parser().parse_known_args(list(words))
    for word in unknown:
        if word.startswith("-"):
            sys.exit(f"error: {word}: no such option; {program()} --help and --hydra-help list them")
    overrides = [*known.overrides, *unknown]
    options, remaining = [], list(overrides)
    for word in words:
        if word in remaining:
            remaining.remove(word)
        else:
            options.append(word)
    return [*options, *overrides]


def program() -> str:
    """Return the command before its arguments, such as ``python train.py`` or ``normlab train``."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name


@contextmanager
def called_as(name: str, words: Sequence[str]) -> Iterator[None]:
    """Context manager in which the command line of this process is another one."""
    before = sys.argv
    sys.argv = [name, *words]
    try:
        yield
    finally:
        sys.argv = before


def compose_and_run(main: Callable[[], T], conf: Path) -> T:
    """Call a Hydra ``main`` with the command line; in a sweep, retry a failed override as a one-value choice.

    Hydra applies single values to the sweep's own config, which is composed without the swept choices: with
    ``model=gn,ws_gn model.norm.num_groups=8`` it has no key ``num_groups``. A choice is applied to the jobs only.
    """
    require_new_options(config_folders(conf), conf)
    sys.argv[1:] = with_target_arguments(sys.argv[1:], lambda group: keys_in_group(group, conf))
    return run_with_retries(main)


def run_with_retries(main: Callable[[], T]) -> T:
    """Call ``main``; retry with one override rewritten, until none of the failed ones can be."""
    try:
        return main()
    except ConfigCompositionException as error:
        words = wrap_in_choice(sys.argv[1:], error)
        if words is None:
            raise
        sys.argv[1:] = words
        try:
            return run_with_retries(main)
        except ConfigCompositionException as second:
            # The experiment is not a sweep, so the original error is the relevant one.
            raise error if "requires --multirun" in str(second) else second from None


def wrap_in_choice(words: Sequence[str], error: Exception) -> list[str] | None:
    """Rewrite the failed override of a sweep as ``choice(value)``; return None if that does not apply.

    >>> missing = ConfigCompositionException("Could not override 'model.norm.num_groups'.")
    >>> wrap_in_choice(["-m", "model=gn,ws_gn", "model.norm.num_groups=8"], missing)
    ['-m', 'model=gn,ws_gn', 'model.norm.num_groups=choice(8)']
    """
    failed_key = re.match(r"Could not override '([^']+)'", str(error))
    is_sweep = any(word in MULTIRUN_OPTIONS or word.startswith(("experiment=", "claim=")) for word in words)
    if not failed_key or not is_sweep or failed_key[1].startswith("hydra"):
        return None
    key = failed_key[1]
    override = re.compile(rf"{re.escape(key)}=(?!choice\()(.+)", re.DOTALL)
    changed = [override.sub(rf"{key}=choice(\1)", word) if override.match(word) else word for word in words]
    return changed if changed != list(words) else None


def find_line(text: str, folders: Iterable[Path]) -> str | None:
    """Return "file, line N" of the first YAML line below ``folders`` that contains ``text``, or None."""
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
                # An interpolation that lacks its closing brace must not match a complete one.
                if text in line and f"{text}}}" not in line:
                    return f"{relative_path(path)}, line {number}"
    return None


def source_location(error: Exception, config: DictConfig) -> str:
    """Return "file, line N: " of the interpolation that caused an error.

    Empty if the error has no interpolation, or it comes from the command line.
    """
    interpolation = getattr(error, "interpolation", None)
    words: Any = OmegaConf.to_container(config.hydra.overrides.task)
    if not interpolation or any(interpolation in word for word in words):
        return ""
    sources = config.hydra.runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    location = find_line(interpolation, folders)
    return f"{location}: " if location else ""


def relative_path(path: Path) -> str:
    """Return ``path`` relative to the working directory if it lies below it, otherwise unchanged."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


REMEDIES: tuple[tuple[str, Callable[[str, Path], str]], ...] = (
    (r"Could not override '([^']+)'", lambda key, conf: f"{key}: {unknown_key(key, conf)}"),
    (
        r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'",
        lambda word, _: f"{word}: several values make a sweep, which needs -m: {program()} -m {word}",
    ),
    (
        r"Could not delete from config. '([^']+)' does not exist",
        lambda key, conf: f"~{key}: {suggest_removal(key, conf)}",
    ),
    (
        r"Could not append to config. An item is already at '([^']+)'",
        lambda key, _: f"+{key}: the key is there already; write {key}=… without +",
    ),
    (
        r"Multiple values for ([\w/]+)\. To override",
        lambda group, _: f"{group} is chosen already; to choose another option write {group}=… without +",
    ),
    (
        r"force-add of config groups is not supported: '\+\+([^']+)'",
        lambda word, _: f"++{word}: a group is chosen without ++; write {word}",
    ),
)
"""Regular expressions for Hydra's messages, each with a function ``(captured text, conf) -> our message``."""

REMOVED_OPTIONS = {"hydra/launcher=joblib": "add hydra.launcher.n_jobs=2, which trains in parallel processes"}
"""Options of earlier versions, each with what does its work now."""

SEARCH = "hydra/sweeper=optuna"
SEARCH_OPTIONS = (
    "n_trials",
    "n_jobs",
    "sampler",
    "pruner",
    "direction",
    "storage",
    "study_name",
    "max_failure_rate",
)
"""Keys below ``hydra.sweeper`` that only the sweeper of a search has."""


def format_error(error: BaseException, conf: Path) -> str:
    """Return a one-line message for an error; misspelled keys and options get a "did you mean" hint."""
    text = str(error)
    for pattern, remedy in REMEDIES:
        if match := re.match(pattern, text):
            return remedy(match[1], conf)
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{relative_path(Path(mark.name))}, line {mark.line + 1}: cannot be read as YAML: {error.problem}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if instead := REMOVED_OPTIONS.get(f"{group}={option}"):
            return f"{group}={option}: no such option; {instead}"
        meant, options = nearest(option, error.options), ", ".join(error.options)
        return f"{group}={option}: no such option; did you mean {meant}? There are {options}"
    if isinstance(error, OverrideParseException) or text.startswith("Error parsing override"):
        override = getattr(error, "override", None) or text.partition("'")[2].partition("'")[0]
        return f"cannot read {override}: write key=value, without spaces{quoting(override)}"
    if isinstance(error, InstantiationException) and error.__cause__:
        return first_line(error.__cause__)
    if isinstance(error.__cause__, GrammarParseError):
        return syntax_error(error.__cause__, conf)
    if isinstance(error, HydraException) and error.__cause__ and str(error.__cause__) not in text:
        return f"{first_line(error)}: {first_line(error.__cause__)}"
    return first_line(error)


def quoting(override: str) -> str:
    """Return a hint with the shell quoting of an override that Hydra cannot parse, empty if none applies.

    >>> print(quoting("data.target_column=median value ($)"))
    ; a value with spaces or special characters is quoted twice: 'data.target_column="median value ($)"'
    """
    key, equals, value = override.partition("=")
    if not equals or not value or value[0] in "[{":
        return ""
    escaped = value.strip("\"'").replace('"', '\\"')
    typed = shlex.quote(f'{key}="{escaped}"')
    return f"; a value with spaces or special characters is quoted twice: {typed}"


def syntax_error(error: GrammarParseError, conf: Path) -> str:
    """Return a message for a malformed interpolation, with its file and line."""
    interpolation = re.search(r"input '(.*)'", str(error))
    location = find_line(interpolation[1], [*config_folders(conf), conf]) if interpolation else None
    return f"{f'{location}: ' if location else ''}an interpolation is ${{key}}: {first_line(error)}"


def config_folders(conf: Path) -> list[Path]:
    """Return the folders of options beside ``conf``: of ``--config-dir``, ``--config-path`` and the project."""
    options, _ = get_args_parser().parse_known_args(sys.argv[1:])
    given = [Path(folder) for folder in (options.config_dir, options.config_path) if folder]
    project = project_conf(conf)
    return given if project is None else [*given, project]


def project_conf(conf: Path) -> Path | None:
    """Return the folder ``conf`` of a project that uses the installed package, None if there is none.

    It lies beside the script that was started; with the command ``normlab``, in the working directory.

    Args:
        conf: the folder of the primary config; only that of the package is extended.
    """
    if not (conf.is_dir() and conf.samefile(PACKAGED_CONF)):
        return None
    script = Path(sys.argv[0])
    folder = (script.parent if script.suffix == ".py" else Path()) / "conf"
    return folder if folder.is_dir() and not folder.samefile(conf) else None


def require_new_options(folders: Iterable[Path], conf: Path) -> None:
    """Raise :class:`ConfigError` for a file that Hydra would ignore, as ``conf`` has another of that name."""
    for folder in folders:
        if not (folder.is_dir() and conf.is_dir()) or folder.samefile(conf):
            continue
        for ours in sorted(conf.rglob("*.yaml")):
            path = folder / ours.relative_to(conf)
            if path.is_file() and path.read_bytes() != ours.read_bytes():
                raise ConfigError(
                    f"{relative_path(path)}: normlab has an option of this name, which Hydra would use instead; "
                    "rename the file, or start in another folder"
                )


def suggest_removal(key: str, conf: Path) -> str:
    """Return the remedy for ``~key`` of a key that is null or missing."""
    if not (conf / f"{MAIN_CONFIG}.yaml").is_file():
        return "no such key, or null"
    if key in keys_of(compose_for_key(key, conf)):
        return f"{key} is null, which cannot be removed; write {key}=… to set it"
    return f"no such key; {suggest_key(key, conf)}"


def unknown_key(key: str, conf: Path) -> str:
    """Return the reason and the remedy for an override of a key that cannot be set."""
    if key in RENAMED_KEYS:
        return f"the key is now {RENAMED_KEYS[key]}"
    option = key.replace("/", ".").removeprefix("hydra.sweeper.").partition(".")[0]
    if option in SEARCH_OPTIONS and SEARCH not in sys.argv and key.startswith("hydra"):
        return f"an option of a search; add {SEARCH}"
    if not (conf / f"{MAIN_CONFIG}.yaml").is_file():
        return f"no such key; to add it write +{key}=…"
    config = compose_for_key(key, conf)
    if key in keys_of(config):
        grouped = is_group(OmegaConf.select(config, key))
        fixed = f"its keys are fixed; to add one write +{key}=…"
        return fixed if grouped else "the other overrides remove this key; leave out this override"
    return f"no such key; {suggest_key(key, conf)}"


def compose_for_key(key: str, conf: Path) -> DictConfig:
    """Compose the configuration to look up ``key`` in; it includes Hydra's own part for a key ``hydra.…``."""
    folders = [conf, *config_folders(conf)]
    search_path = ",".join(f"'file://{folder.absolute()}'" for folder in folders[1:])
    words = [f"hydra.searchpath=[{search_path}]", *chosen_options(folders)]
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return compose(MAIN_CONFIG, words, return_hydra_config=key.startswith("hydra."))


def keys_in_group(group: str, conf: Path) -> list[str]:
    """Return the keys of a group with the chosen options; none if the configuration cannot be composed."""
    try:
        return [str(key) for key in compose_for_key(group, conf)[group]]
    except Exception:  # Hydra reports it when it composes the run
        return []


def suggest_key(key: str, conf: Path) -> str:
    """Return a hint for an unknown key: an option that has it, a ``+key=`` form, or the most similar key."""
    config = compose_for_key(key, conf)
    group, _, rest = key.partition(".")
    if rest in free_arguments(config, group):
        return f"to pass {rest} to {config[group]._target_}, write +{key}="
    options = [path.stem for path in sorted((conf / group).glob("*.yaml"))]
    having = [option for option in options if rest and option_has(conf / group / f"{option}.yaml", rest)]
    if having:
        return f"{', '.join(f'{group}={option}' for option in having)} {'has' if len(having) == 1 else 'have'} it"
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    if not is_group(node) or not node:
        keys = keys_of(config)
        same_name = [other for other in keys if other.rpartition(".")[2] == name]
        return f"did you mean {nearest(key, same_name or keys)}?"
    arguments = free_arguments(config, parent)
    if name in arguments:
        return f"to pass {name} to {node._target_}, write +{key}="
    suggestion = nearest(name, sorted(arguments | set(node)))
    return f"did you mean {'' if suggestion in node else '+'}{parent}.{suggestion}?"


def free_arguments(config: DictConfig, path: str) -> set[str]:
    """Return the arguments of a group's ``_target_`` that the configuration may set, empty without one."""
    node = OmegaConf.select(config, path)
    target = node.get("_target_") if is_group(node) else None
    if not target:
        return set()
    parameters = parameters_of(path, target)
    return set(parameters) - supplied(node, parameters)


def chosen_options(folders: Sequence[Path]) -> list[str]:
    """Return the group choices on the command line; of a swept choice, the first option."""
    words = [word.partition("=") for word in sys.argv[1:]]
    choices = [(group, options.partition(",")[0]) for group, _, options in words]
    return [
        f"{group}={option}"
        for group, option in choices
        if any((folder / group / f"{option}.yaml").is_file() for folder in folders)
    ]


def option_has(path: Path, key: str) -> bool:
    """Return True if the YAML file of an option has a key."""
    return key in keys_of(OmegaConf.load(path))  # type: ignore[arg-type]
