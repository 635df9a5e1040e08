"""Trains K nets as one in plain torch: stacked parameters, optimizers, schedulers and compiled steps."""
