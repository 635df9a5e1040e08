"""Messages for the errors of a command line, in one line with a remedy; the entry is :func:`format_error`."""

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
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
from normlab.config.validation import HYDRA_KEYS, is_group, keys_of, parameters_of, supplied
from normlab.errors import first_line, is_near, nearest, relative_path
from normlab.option_folders import (
    MAIN_CONFIG,
    chosen_options,
    compose_for_key,
    config_folders,
    option_keys,
    option_names,
    program,
)


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
    (
        r"(Unexpected type for root: NoneType)",
        lambda *_: (
            "a key below null cannot be set; values of a sweep are typed as KEY=A,B, without hydra.sweeper.params"
        ),
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
    >>> print(unbalanced("net.activation='relu"))
    the quote ' is not closed; close it, or leave it out
    """
    value = re.sub("'[^']*'|\"[^\"]*\"", "", override.partition("=")[2])
    opened: list[str] = []
    for mark in value if re.match(r"[\[{]|\w+\(", value) else "":
        if mark in BRACKETS:
            opened.append(mark)
        elif mark in BRACKETS.values() and (not opened or BRACKETS[opened.pop()] != mark):
            return f"the bracket {mark} closes none; leave it out"
    if not opened:
        quote = re.search("['\"]", value)
        return f"the quote {quote[0]} is not closed; close it, or leave it out" if quote else ""
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
    """Return a hint for an unknown key: an option that has it, a ``+key=`` form, a similar key, or all keys."""
    config, folders = compose_for_key(key, conf), [conf, *config_folders(conf)]
    group, rest = split_group(key, folders)
    if rest in free_arguments(config, group):
        return f"to pass {rest} to {config[group]._target_}, write +{key}="
    keys = {option: option_keys(group, option, folders) for option in option_names(group, folders)}
    having = [
        f"{group}={option}" for option in keys if any(f"{own}.".startswith(f"{rest}.") for own in keys[option])
    ]
    null = null_part(config, key)
    in_option = f" in {chosen}" if (chosen := chosen_option(group, folders)) else ""
    if having:
        lacking = f"{null} is null{in_option}; " if null and in_option else ""
        return f"{lacking}{', '.join(having)} {'has' if len(having) == 1 else 'have'} it"
    parent, _, name = key.rpartition(".")
    node: Any = (OmegaConf.select(config, parent) if parent else None) or {}
    if not null and (not is_group(node) or not node):
        known = keys_of(config)
        same_name = [other for other in known if other.rpartition(".")[2] == name]
        return f"did you mean {nearest(key, same_name or known)}?"
    arguments = free_arguments(config, parent)
    if name in arguments:
        return f"to pass {name} to {node._target_}, write +{key}="
    own, beside = set(node), f"{rest.rpartition('.')[0]}.".lstrip(".")
    siblings = {
        other.removeprefix(beside) for names in keys.values() for other in names if other.startswith(beside)
    }
    for choices in (own | arguments, {other.partition(".")[0] for other in siblings}):
        if choices and is_near(name, meant := nearest(name, sorted(choices))):
            return f"did you mean {'+' * (meant in arguments - own)}{parent}.{meant}?"
    if null:
        return f"{null} is null{in_option}, and no option of {group} has {key}"
    more = f"; other arguments of {node._target_} are added with +{parent}." if arguments - own else ""
    return f"{parent} has {', '.join(str(key) for key in node if key not in HYDRA_KEYS)}{more}"


def split_group(key: str, folders: Sequence[Path]) -> tuple[str, str]:
    """Split a key into its config group and the rest.

    ``hydra.sweeper.sampler.seed`` is ``seed`` in the group ``hydra/sweeper/sampler``.
    """
    parts = key.split(".")
    groups = ("/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    group = next((group for group in groups if option_names(group, folders)), parts[0])
    return group, ".".join(parts[group.count("/") + 1 :])


def null_part(config: DictConfig, key: str) -> str:
    """Return the first part of a dotted key that is null, without the key itself; empty if none is."""
    parts, known = key.split("."), keys_of(config)
    paths = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((path for path in paths if path in known and OmegaConf.select(config, path) is None), "")


def chosen_option(group: str, folders: Sequence[Path]) -> str:
    """Return the choice of a group on the command line, such as ``model=nobn``; empty without one."""
    return next((word for word in chosen_options(folders) if word.startswith(f"{group}=")), "")


def free_arguments(config: DictConfig, path: str) -> set[str]:
    """Return the arguments of a group's ``_target_`` that the configuration may set, empty without one."""
    node = OmegaConf.select(config, path)
    target = node.get("_target_") if is_group(node) else None
    if not target:
        return set()
    parameters = parameters_of(path, target)
    return set(parameters) - supplied(node, parameters)
