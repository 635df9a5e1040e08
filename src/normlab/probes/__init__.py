"""Measures of nets: a loss and its parameters in, numbers out; no class of net is known and no trace is left."""
