"""Messages for the errors of a command line, in one line with a remedy; the entry is :func:`format_error`."""

import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError
from yaml import MarkedYAMLError

from normlab.config.frozen import RENAMED_KEYS
from normlab.config.validation import is_group, keys_of, parameters_of, supplied
from normlab.errors import first_line, nearest, relative_path
from normlab.option_folders import MAIN_CONFIG, compose_for_key, config_folders, program


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
BRACKETS = {"(": ")", "[": "]", "{": "}"}
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
        reason = unbalanced(override) or f"write key=value, without spaces{quoting(override)}"
        return f"cannot read {override}: {reason}"
    if isinstance(error, InstantiationException) and error.__cause__:
        return first_line(error.__cause__)
    if isinstance(error.__cause__, GrammarParseError):
        return syntax_error(error.__cause__, conf)
    if isinstance(error, HydraException) and error.__cause__ and str(error.__cause__) not in text:
        return f"{first_line(error)}: {first_line(error.__cause__)}"
    return first_line(error)


def unbalanced(override: str) -> str:
    """Return which bracket of a list, mapping or function has no partner, with the remedy; empty if all have one.

    >>> print(unbalanced("seed=range(3"))
    the bracket ( is not closed; write the whole in quotes, without spaces: 'seed=range(3)'
    >>> print(unbalanced("net.hidden=[8,"))
    the bracket [ is not closed; write the whole in quotes, without spaces: 'net.hidden=[8,…]'
    >>> print(unbalanced("seed=range(3))"))
    the bracket ) closes none; leave it out
    """
    value = re.sub("'[^']*'|\"[^\"]*\"", "", override.partition("=")[2])
    opened: list[str] = []
    for mark in value if re.match(r"[\[{]|\w+\(", value) else "":
        if mark in BRACKETS:
            opened.append(mark)
        elif mark in BRACKETS.values() and (not opened or BRACKETS[opened.pop()] != mark):
            return f"the bracket {mark} closes none; leave it out"
    if not opened:
        return ""
    closed = override + "…" * override.endswith(",") + "".join(BRACKETS[mark] for mark in reversed(opened))
    return f"the bracket {opened[-1]} is not closed; write the whole in quotes, without spaces: '{closed}'"


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


def option_has(path: Path, key: str) -> bool:
    """Return True if the YAML file of an option has a key."""
    return key in keys_of(OmegaConf.load(path))  # type: ignore[arg-type]
