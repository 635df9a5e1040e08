"""Groups the runs of a sweep into populations, trains them in one or more processes, and times steps."""
