"""Output files of runs and sweeps: their schemas, writers and readers."""
