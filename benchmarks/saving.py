"""Share of a training's time that saving its state takes.

The default data and net. The time from the first epoch to the end is measured, and in it the time of all saves:
writing curves, probes and events that wait, and the state itself, until it is on the disk.

    python benchmarks/saving.py --members 256 --save-every 10s --epochs 120
    python benchmarks/saving.py --members 256 --save-every 10s --epochs 60 probes=light
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir

from normlab.config.frozen import FrozenConfig, replaced
from normlab.config.validation import validate
from normlab.training.dry_run import dry_run_once
from normlab.training.progress import Progress
from normlab.training.run_folders import Run
from normlab.training.saving import StateFile, state_path
from normlab.training.session import TrainingSession

CONF = Path(__file__).resolve().parent.parent / "conf"


class Clock(pl.Callback):
    """Measures the time from the first epoch to the end, and counts the saves.

    Args:
        file: of the state.
    """

    def __init__(self, file: StateFile) -> None:
        self.started = self.ended = 0.0
        self.saves, self.bytes = 0, 0
        self.write, file.write = file.write, self.count  # type: ignore[method-assign]
        self.file = file

    def count(self, save: Any) -> None:
        """Write the state, and note its size."""
        self.write(save)
        self.saves, self.bytes = self.saves + 1, self.file.path.stat().st_size

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.started = self.started or time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.ended = time.perf_counter()


def measure(members: int, words: list[str]) -> str:
    """Train a population, and return a line with the share of the time that its saves take."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        base = validate(compose("train", overrides=words))
    with tempfile.TemporaryDirectory() as folder:
        configs = [FrozenConfig.of(replaced(base, {("seed",): k})) for k in range(members)]
        sweep = Path(folder)
        runs = [Run(c, sweep / f"{k}", f"{k}", {"model": "bn"}, [], None, sweep) for k, c in enumerate(configs)]
        path = state_path(runs)
        session = TrainingSession(runs, Progress("", 0), dry_run_once(base), state_file=path)
        assert session.saved is not None
        clock = Clock(session.saved)
        session.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        session.run()
    seconds, saving = clock.ended - clock.started, session.module.save_seconds
    each = (
        f"{clock.saves} saves of {clock.bytes / 2**20:.1f} MiB, {saving / max(1, clock.saves) * 1e3:.0f} ms each"
    )
    return f"{members} members, {seconds:.1f} s of training: {each}, {saving / seconds:.2%} of the time"


def main() -> None:
    """Print the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=256)
    parser.add_argument("--save-every", default="10s")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    words = [f"trainer.save_every={options.save_every}", f"trainer.max_epochs={options.epochs}"]
    print(measure(options.members, ["model=bn", *words, *options.overrides]))


if __name__ == "__main__":
    main()
