"""Train nets with and without normalization: ``python train.py --help``."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from normlab.cli import run_cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train one configuration and return its objective."""
    from normlab.training.run import train
    from normlab.training.run_folders import Run

    return train([Run.composed(config, HydraConfig.get())])[0].objective.value


if __name__ == "__main__":
    run_cli(main)
