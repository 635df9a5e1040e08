"""``hydra/launcher=ray`` on a real Ray cluster."""

import signal

import pytest
from run_files import require_same_sweep
from tests.clusters.processes import wait_until
from tests.clusters.sweeps import run, start
from tests.clusters.test_slurm import SWEEP, is_training, submitted

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.mark.thorough
def test_killed_worker_and_driver_change_no_bit(ray_cluster, warm_python, tmp_path):
    ray = ["hydra/launcher=ray", f"hydra.launcher.address={ray_cluster.address}"]
    long = [
        *SWEEP,
        "trainer.max_epochs=300",
        "trainer.threads=1",
        "trainer.compile=false",
        "trainer.save_every=2s",
    ]
    sweep = tmp_path / "cluster"
    driver = start(warm_python, tmp_path, *long, *ray, "hydra.sweep.dir=cluster")
    wait_until(lambda: is_training(sweep) and any(sweep.glob(".normlab/*.pt")), 120, "both train", interval=0.2)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    training = {number for number, task in ray_cluster.workers().items() if "TrainingActor" in task}
    assert len(training) == 2, "the actors outlive their driver"
    ray_cluster.kill_worker(training.pop())
    out = run(warm_python, tmp_path, *long, *ray, "hydra.sweep.dir=cluster")
    assert "waiting for 1 job, submitted before" in out
    assert len(submitted(sweep)) == 3
    run(warm_python, tmp_path, *long, "hydra.sweep.dir=here")
    require_same_sweep(sweep, tmp_path / "here")
    wait_until(lambda: not any("TrainingActor" in task for task in ray_cluster.workers().values()), 20, "they end")


def test_address_without_a_cluster_is_told_in_one_line(warm_python, tmp_path):
    process = start(warm_python, tmp_path, *SWEEP, "hydra/launcher=ray", "hydra.launcher.address=127.0.0.9:1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: hydra.launcher.address=127.0.0.9:1: " in err.strip().splitlines()[-1]
