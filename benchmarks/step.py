"""Time per optimizer step of a plain PyTorch loop, normlab's two modules, and Lightning with its default features.

The task is the first source experiment: 1,000 samples, 10 → 50 → 1 with BatchNorm, mean squared error, Adam. All
are measured alternately in one process, several times; the table shows medians. The time of a normlab run includes
building, training, validation and metrics at every epoch, curves, event file, checkpoints and result.

    python benchmarks/step.py [--repeats 5] [--epochs 100] [--json]
"""

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normlab.config.validation import validate
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = Path(__file__).resolve().parent.parent / "conf"
SAMPLES, FEATURES, HIDDEN, LR = 1000, 10, 50, 0.01


def make_net(features: int = FEATURES, hidden: int = HIDDEN, normalized: bool = True) -> nn.Sequential:
    norm = nn.BatchNorm1d(hidden) if normalized else nn.Identity()
    return nn.Sequential(nn.Linear(features, hidden), norm, nn.ReLU(), nn.Linear(hidden, 1))


def make_data(features: int = FEATURES, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, features), torch.randn(samples, 1)


def plain_loop(batch_size: int, epochs: int, normalized: bool = True) -> None:
    """Train like the source program: a net, a loss, an optimizer and two loops, without logging."""
    x, y = make_data()
    net, loss_of = make_net(normalized=normalized), nn.MSELoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    for _ in range(epochs):
        order = torch.randperm(SAMPLES)
        for start in range(0, SAMPLES, batch_size):
            index = order[start : start + batch_size]
            optimizer.zero_grad()
            loss = loss_of(net(x[index]), y[index])
            loss.backward()
            optimizer.step()


class UsualModule(pl.LightningModule):
    """A minimal LightningModule, as in a tutorial."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val/loss", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LR)


def usual_lightning(
    batch_size: int, epochs: int, net: nn.Sequential | None = None, samples: int = SAMPLES
) -> None:
    """Train with a DataLoader, a progress bar, checkpoints and Lightning's TensorBoardLogger."""
    net = make_net() if net is None else net
    features: Any = net[0].in_features
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as null, redirect_stdout(null):
        loader = DataLoader(TensorDataset(*make_data(features, samples)), batch_size, shuffle=True)
        held_out = DataLoader(TensorDataset(*make_data(features, 200)), batch_size)
        logger = pl.loggers.TensorBoardLogger(folder)
        trainer = pl.Trainer(max_epochs=epochs, logger=logger, accelerator="cpu", enable_model_summary=False)
        trainer.fit(UsualModule(net), loader, held_out)


def normlab_run(batch_size: int, epochs: int, module: str = "population") -> None:
    """Train one run like ``python train.py``, with all output files; append its seconds to ``elapsed``."""
    changes = ["data=random", f"data.train={SAMPLES}", f"net.hidden=[{HIDDEN}]", f"optimizer.lr={LR}"]
    sizes = [f"data.batch_size={batch_size}", f"trainer.max_epochs={epochs}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate(compose("train", overrides=["model=bn", f"module={module}", *changes, *sizes]))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train([Run(config, Path(folder), "model=bn", {"model": "bn"}, changes)])
        elapsed.append(time.perf_counter() - started)


elapsed: list[float] = []
WAYS: dict[str, Callable[[int, int], None]] = {
    "plain PyTorch loop": plain_loop,
    "normlab": normlab_run,
    "normlab, module=lightning": partial(normlab_run, module="lightning"),
    "Lightning as usually set up": usual_lightning,
}


def measure(batch_size: int, epochs: int, repeats: int) -> dict[str, float]:
    """Return the median microseconds per optimizer step of each entry of ``WAYS``."""
    steps = epochs * -(-SAMPLES // batch_size)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, way in WAYS.items():
            elapsed.clear()
            started = time.perf_counter()
            way(batch_size, epochs)
            seconds = elapsed[0] if elapsed else time.perf_counter() - started
            times[name].append(seconds / steps * 1e6)
    return {name: median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = {size: measure(size, arguments.epochs, arguments.repeats + 1) for size in (128, 32)}
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'microseconds per optimizer step':32}{'batch 128':>12}{'batch 32':>12}")
    for name in WAYS:
        print(f"{name:32}{rows[128][name]:12.0f}{rows[32][name]:12.0f}")
    plain, single, usual = "plain PyTorch loop", "normlab, module=lightning", "Lightning as usually set up"
    for name, own, other in (
        ("normlab / plain loop", "normlab", plain),
        ("module=lightning / usual", single, usual),
    ):
        ratio = {size: row[own] / row[other] for size, row in rows.items()}
        print(f"{name:32}{ratio[128]:12.2f}{ratio[32]:12.2f}")


if __name__ == "__main__":
    main()
