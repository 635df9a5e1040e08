"""normlab puts the claims about normalization to the test."""

__version__ = "0.1.0"
