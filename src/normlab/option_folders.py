"""Folders of config groups: that of the package, and those that a command line or a project adds.

The entries are :func:`config_folders` and :func:`compose_for_key`.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from normlab.config.frozen import config_leaves
from normlab.errors import ConfigError, nearest, relative_path, similarity

NEARLY = 0.8
"""Similarity from which the name of a folder is taken for a misspelt group."""
MAIN_CONFIG = "train"
"""Name of the primary config; other entry scripts may not have it, and then keys are not looked up."""
PACKAGED_CONF = Path(__file__).parent / "conf"
"""The config groups within the package; in a clone, a link to the top folder ``conf``."""


def program() -> str:
    """Return the command before its arguments, such as ``python train.py`` or ``normlab train``."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name


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


def misspelt_groups(folders: Iterable[Path], conf: Path) -> list[str]:
    """Return a warning for each folder of options whose name is nearly that of a group, and which is not chosen.

    A user may have groups of other names; those of a script with a primary config of its own are not looked at.
    """
    if not (conf.is_dir() and conf.samefile(PACKAGED_CONF)):
        return []
    groups = config_groups(conf)
    chosen = {word.lstrip("+").partition("=")[0] for word in sys.argv[1:]}
    inside = (path for folder in (*folders, conf) for path in sorted(folder.glob("*")) if any(path.glob("*.yaml")))
    return [
        f"{relative_path(path)} is no group of normlab, which finds no option in it; did you mean "
        f"{relative_path(path.with_name(meant))}?"
        for path in inside
        if groups
        and path.name not in {*groups, *chosen}
        and similarity(path.name, meant := nearest(path.name, groups)) >= NEARLY
    ]


def config_groups(conf: Path) -> list[str]:
    """Return the groups that the primary config selects from, and Hydra's; none if it cannot be read."""
    try:
        defaults = yaml.safe_load((conf / f"{MAIN_CONFIG}.yaml").read_text())["defaults"]
    except (yaml.YAMLError, KeyError, TypeError):  # Hydra reports it
        return []
    return [*(group for entry in defaults if isinstance(entry, dict) for group in entry), "hydra"]


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


def chosen_options(folders: Sequence[Path]) -> list[str]:
    """Return the group choices on the command line; of a swept choice, the first option."""
    words = [word.partition("=") for word in sys.argv[1:]]
    choices = [(group, options.partition(",")[0]) for group, _, options in words]
    return [f"{group}={option}" for group, option in choices if option in option_names(group, folders)]


def option_names(group: str, folders: Iterable[Path]) -> list[str]:
    """Return the options of a group, such as ``model`` or ``hydra/sweeper``: those of folders, then of plugins."""
    files = [path.stem for folder in folders for path in sorted((folder / group).glob("*.yaml"))]
    return [*files, *(Path(name).stem for name in plugin_options(group) if name.endswith(".yaml"))]


def plugin_options(group: str) -> dict[str, Any]:
    """Return the content of a group in Hydra's ConfigStore, which has the options of plugins."""
    node: Any = ConfigStore.instance().repo
    for part in group.split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def option_keys(group: str, option: str, folders: Iterable[Path]) -> list[str]:
    """Return the dotted keys of the leaves of an option; none if its file cannot be read."""
    content: Any = None
    if f"{option}.yaml" in plugin_options(group):
        content = OmegaConf.to_container(plugin_options(group)[f"{option}.yaml"].node)
    for path in (folder / group / f"{option}.yaml" for folder in folders):
        if path.is_file():
            try:
                content = yaml.safe_load(path.read_text())
            except (yaml.YAMLError, UnicodeDecodeError):
                return []
    return [key for key, _ in config_leaves(content)] if isinstance(content, dict) else []
