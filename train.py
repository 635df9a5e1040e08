"""Train nets with and without normalization: ``python train.py --help``."""

import hydra
from omegaconf import DictConfig

from normlab.cli import in_one_line


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train one configuration and return its objective."""
    from normlab.training.hydra_run import hydra_run
    from normlab.training.run import train

    return train([hydra_run(config)])[0].objective.value


if __name__ == "__main__":
    in_one_line(main)
