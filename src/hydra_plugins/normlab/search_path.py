"""Hydra plugin that adds the folder ``conf`` of a user's project to the options in the package."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from normlab.option_folders import project_conf


class ProjectConf(SearchPathPlugin):
    """Adds ``conf`` of the project to the search path of an app whose primary config is that of the package."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder, if there is one."""
        main = [item.path.removeprefix("file://") for item in search_path.get_path() if item.provider == "main"]
        folder = project_conf(Path(main[0])) if main and "://" not in main[0] else None
        if folder is not None:
            search_path.append("project", f"file://{folder.absolute()}")
