"""normlab compares normalization layers in controlled training experiments."""

__version__ = "0.1.0"
