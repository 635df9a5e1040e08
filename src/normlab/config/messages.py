"""Errors of Hydra and OmegaConf as one line with a remedy; see :func:`format_error`."""

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError
from yaml import MarkedYAMLError

from normlab.config.renames import RENAMED_KEYS
from normlab.config.validation import is_group, keys_of, parameters_of, supplied
from normlab.errors import first_line, nearest

MAIN = "train.yaml"
"""The file that keys are looked up in; another entry script may have its configuration elsewhere."""


def find_line(text: str, folders: Iterable[Path]) -> str | None:
    """Return the first file and line of YAML below the folders that holds a text, None if none does."""
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
                # An interpolation without its brace is not found in one that is closed.
                if text in line and f"{text}}}" not in line:
                    return f"{relative_path(path)}, line {number}"
    return None


def relative_path(path: Path) -> str:
    """Return a path relative to the current folder where it is below it, as it is otherwise."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


REMEDIES: tuple[tuple[str, Callable[[str, Path], str]], ...] = (
    (r"Could not override '([^']+)'", lambda key, conf: f"{key}: {unknown_key(key, conf)}"),
    (
        r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'",
        lambda word, _: f"{word}: several values are a sweep, which needs -m: python train.py -m {word}",
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
"""Patterns of Hydra's messages, each with the function from the word it captures to our line."""


def format_error(error: BaseException, conf: Path) -> str:
    """Return one line for what went wrong; a mistyped key or option comes with the nearest right one."""
    text = str(error)
    for pattern, remedy in REMEDIES:
        if found := re.match(pattern, text):
            return remedy(found[1], conf)
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{relative_path(Path(mark.name))}, line {mark.line + 1}: cannot be read as YAML: {error.problem}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        meant, options = nearest(option, error.options), ", ".join(error.options)
        return f"{group}={option}: no such option; did you mean {meant}? There are {options}"
    if isinstance(error, OverrideParseException) or text.startswith("Error parsing override"):
        what = getattr(error, "override", None) or text.partition("'")[2].partition("'")[0]
        return f"cannot read {what}: write key=value, without spaces{quoting(what)}"
    if isinstance(error, InstantiationException) and error.__cause__:
        return first_line(error.__cause__)
    if isinstance(error.__cause__, GrammarParseError):
        return syntax_error(error.__cause__, conf)
    if isinstance(error, HydraException) and error.__cause__ and str(error.__cause__) not in text:
        return f"{first_line(error)}: {first_line(error.__cause__)}"
    return first_line(error)


def quoting(override: str) -> str:
    """Return advice on quoting an override that Hydra cannot read, with the words to type in a shell.

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
    """Return one line for an interpolation that cannot be read, with the file and line that it is written in."""
    written = re.search(r"input '(.*)'", str(error))
    place = find_line(written[1], [*typed_folders(), conf]) if written else None
    return f"{f'{place}: ' if place else ''}an interpolation is ${{key}}: {first_line(error)}"


def typed_folders() -> list[Path]:
    """Return the folders of configuration that were named on the command line."""
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    return [Path(folder) for folder in (given.config_dir, given.config_path) if folder]


def suggest_removal(key: str, conf: Path) -> str:
    """Return the remedy for removing a key that is null or missing."""
    if not (conf / MAIN).is_file():
        return "no such key, or null"
    if key in keys_of(composed(key, conf)):
        return f"{key} is null, which cannot be removed; write {key}=… to set it"
    return f"no such key; {suggest_key(key, conf)}"


def unknown_key(key: str, conf: Path) -> str:
    """Return the reason why a key cannot be set, and the remedy."""
    if key in RENAMED_KEYS:
        return f"the key is now {RENAMED_KEYS[key]}"
    if not (conf / MAIN).is_file():
        return f"no such key; to add it write +{key}=…"
    config = composed(key, conf)
    if key in keys_of(config):
        grouped = is_group(OmegaConf.select(config, key))
        fixed = f"its keys are fixed; to add one write +{key}=…"
        return fixed if grouped else "the choices and values typed besides leave it out; leave this out too"
    return f"no such key; {suggest_key(key, conf)}"


def composed(key: str, conf: Path) -> DictConfig:
    """Return the configuration that has a key, with Hydra's part for a key of Hydra's."""
    folders = [conf, *typed_folders()]
    searched = ",".join(f"'file://{folder.absolute()}'" for folder in folders[1:])
    words = [f"hydra.searchpath=[{searched}]", *typed_choices(folders)]
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return compose("train", words, return_hydra_config=key.startswith("hydra."))


def suggest_key(key: str, conf: Path) -> str:
    """Return the remedy for a key that the configuration does not have."""
    config = composed(key, conf)
    group, _, rest = key.partition(".")
    if rest in free_arguments(config, group):
        return f"to hand {rest} to {config[group]._target_}, write +{key}="
    options = [path.stem for path in sorted((conf / group).glob("*.yaml"))]
    having = [option for option in options if rest and option_has(conf / group / f"{option}.yaml", rest)]
    if having:
        return f"{', '.join(f'{group}={option}' for option in having)} {'has' if len(having) == 1 else 'have'} it"
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    if not is_group(node) or not node:
        keys = keys_of(config)
        same = [known for known in keys if known.rpartition(".")[2] == name]
        return f"did you mean {nearest(key, same or keys)}?"
    arguments = free_arguments(config, parent)
    if name in arguments:
        return f"to hand {name} to {node._target_}, write +{key}="
    meant = nearest(name, sorted(arguments | set(node)))
    return f"did you mean {'' if meant in node else '+'}{parent}.{meant}?"


def free_arguments(config: DictConfig, path: str) -> set[str]:
    """Return the arguments that the ``_target_`` of a group takes from the configuration, if it has one."""
    node = OmegaConf.select(config, path)
    target = node.get("_target_") if is_group(node) else None
    if not target:
        return set()
    parameters = parameters_of(path, target)
    return set(parameters) - supplied(node, parameters)


def typed_choices(folders: Sequence[Path]) -> list[str]:
    """Return the group choices among the words of the command line, the first of several."""
    words = [word.partition("=") for word in sys.argv[1:]]
    choices = [(group, options.partition(",")[0]) for group, _, options in words]
    return [
        f"{group}={option}"
        for group, option in choices
        if any((folder / group / f"{option}.yaml").is_file() for folder in folders)
    ]


def option_has(path: Path, key: str) -> bool:
    """Return whether an option's file has a key."""
    return key in keys_of(OmegaConf.load(path))  # type: ignore[arg-type]
