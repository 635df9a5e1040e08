"""The Ray cluster of the tests: what the tests of sweeps on it rely on."""

import json
import subprocess
import sys
from contextlib import ExitStack
from subprocess import PIPE

import pytest
from tests.clusters.processes import wait_until

pytestmark = pytest.mark.slow

DRIVER = """
import json, os, sys, time
import ray
ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="error")

@ray.remote(num_cpus=1)
def place(seconds):
    time.sleep(seconds)
    return os.getpid(), ray.util.get_node_ip_address()

print(json.dumps(ray.get([place.remote(float(word)) for word in sys.argv[1:]])))
"""


@pytest.fixture
def drive(ray_cluster):
    """Return a function that starts a driver whose tasks take the given seconds."""
    with ExitStack() as stack:

        def start(*seconds):
            command = [sys.executable, "-c", DRIVER, *map(str, seconds)]
            driver = stack.enter_context(subprocess.Popen(command, stdout=PIPE, text=True))
            stack.callback(driver.kill)
            return driver

        yield start


def result(driver):
    """Return the processes and the nodes of a driver's tasks."""
    output, _ = driver.communicate(timeout=90)
    assert driver.returncode == 0
    # Ray prints messages of its own to stdout before.
    return zip(*json.loads(output.splitlines()[-1]), strict=True)


def test_tasks_run_on_both_nodes_at_once(drive):
    processes, nodes = result(drive(3, 3))
    assert len(set(processes)) == 2
    assert sorted(nodes) == ["127.0.0.2", "127.0.0.3"]


def test_a_task_whose_worker_is_killed_runs_again(ray_cluster, drive):
    driver = drive(4, 4)
    wait_until(lambda: list(ray_cluster.workers().values()).count("place") == 2, 60, "two tasks run")
    killed = ray_cluster.kill_worker()
    processes, _ = result(driver)
    assert killed not in processes


def test_workers_end_with_their_driver(ray_cluster, drive):
    driver = drive(600)
    wait_until(lambda: "place" in ray_cluster.workers().values(), 60, "the task runs")
    driver.kill()
    wait_until(lambda: "place" not in ray_cluster.workers().values(), 30, "the worker ends")
