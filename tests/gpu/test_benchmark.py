"""benchmarks/gpu.py, which a machine without a GPU runs at small sizes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.thorough
def test_benchmark_runs_on_the_cpu():
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    blocks = done.stdout.split("\nnet=")
    assert " passed" in blocks[0]
    assert [block.partition(",")[0] for block in blocks[1:]] == ["mlp", "resmlp", "cnn"]
    for block in blocks[1:]:
        rows = [line.split() for line in block.splitlines()[2:4]]
        assert [row[0] for row in rows] == ["2", "4"]
        for row in rows:
            steps, epoch, order, lightning, faster, megabytes = (row[k] for k in (1, 3, 4, 6, 7, 8))
            assert 0 < float(order) < float(steps) < float(epoch)
            assert float(faster) == pytest.approx(float(lightning) / float(epoch), rel=0.1, abs=0.06)
            assert float(megabytes) > 50
        assert [row[2] == "-" for row in rows] == [True, False], "the larger population is compiled, too"


@pytest.mark.slow
def test_without_gpu_the_benchmark_ends_with_the_remedy(monkeypatch):
    command = [sys.executable, "benchmarks/gpu.py"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "error: torch finds no GPU; python benchmarks/gpu.py --device cpu --tiny runs on the CPU" in done.stderr
