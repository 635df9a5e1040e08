"""In-memory datasets, each a LightningDataModule based on :class:`InMemoryData`."""

from normlab.data.csv import CSV
from normlab.data.datamodule import InMemoryData
from normlab.data.datasets import BreastCancer, Diabetes, Digits, Fitness, Random, Wine
from normlab.data.openml import OpenML
from normlab.data.table import Table
from normlab.data.teacher import Teacher

__all__ = [
    "CSV",
    "BreastCancer",
    "Diabetes",
    "Digits",
    "Fitness",
    "InMemoryData",
    "OpenML",
    "Random",
    "Table",
    "Teacher",
    "Wine",
]
