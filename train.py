"""Entry script: train networks with different normalizers; see ``python train.py --help``."""

if __name__ == "__main__":  # before the other imports, in which a Ctrl-C could be lost
    from normlab.interrupts import interrupts

    interrupts.record_from_start()

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from normlab.cli import run_cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train one run and return its objective, which Hydra sweepers such as Optuna optimize."""
    from normlab.training.run import train
    from normlab.training.run_folders import Run

    return train([Run.composed(config, HydraConfig.get())])[0].objective.value


if __name__ == "__main__":
    run_cli(main)
