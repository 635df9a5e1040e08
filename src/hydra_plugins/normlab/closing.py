"""The end of a sweep: its arms are timed if asked, and it is closed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from hydra_plugins.normlab.job_context import environment_of
from normlab.report.finalize import close_sweep


@contextmanager
def closing(folder: Path, config: DictConfig) -> Iterator[None]:
    """Context manager of a sweep: afterwards times its arms if ``timing=true``, and closes it however it ended.

    The arms are timed also if a run failed, but not after Ctrl-C.
    """
    is_timed = config.get("timing") is True
    try:
        try:
            yield
        except KeyboardInterrupt:
            is_timed = False
            raise
        finally:
            if is_timed:
                from normlab.sweep.timing import time_arms

                with environment_of(config):
                    time_arms(folder)
    finally:
        close_sweep(folder)
