"""Evaluation of checkpoints: the command ``python eval.py``, its configuration, metrics and files."""
