"""The runs of a sweep: grouped into populations, trained in this process or in worker processes, and timed."""
