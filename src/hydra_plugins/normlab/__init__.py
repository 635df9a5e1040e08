"""normlab's plugins for Hydra, which imports them at every start: no torch at import."""
