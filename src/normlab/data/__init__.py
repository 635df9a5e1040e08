"""Datasets in memory, one file each, and the LightningDataModule that serves them."""

from normlab.data.datamodule import InMemoryData
from normlab.data.fitness import Fitness
from normlab.data.random import Random
from normlab.data.table import Table

__all__ = ["Fitness", "InMemoryData", "Random", "Table"]
