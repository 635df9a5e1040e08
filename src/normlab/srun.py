"""One process goes on of those in which SLURM's ``srun`` starts a command: :func:`exit_unless_first_task`."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

TASK = "SLURM_PROCID"
TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
"""Variables with the number of processes of a step; the second has it in the batch script of a job, too."""
STEP = "SLURM_STEP_ID"
"""Variable that is set in the processes that ``srun`` starts, and not in a batch script."""


def exit_unless_first_task(environment: Mapping[str, str] = os.environ) -> None:
    """Exit with 0 and a line on stderr in every process of ``srun -n 4 python train.py`` but the first."""
    task = environment.get(TASK, "0")
    tasks = next((environment[name] for name in TASKS if name in environment), "1")
    if STEP not in environment or task == "0" or tasks == "1":
        return
    script = Path(sys.argv[0]).name
    print(
        f"srun started {script} {tasks} times: process 0 goes on alone, process {task} ends here; use srun -n 1, "
        f"as a run starts its own processes, or set {TASK}=0 if each process has a command of its own",
        file=sys.stderr,
    )
    sys.exit(0)
