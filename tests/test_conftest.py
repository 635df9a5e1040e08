"""The fixtures that all tests share."""

import subprocess
import sys
from pathlib import Path

import pytest

SLEEP = "import time; time.sleep(600)"
CODE = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
LEFT: list[subprocess.Popen] = []


@pytest.mark.skipif(not list(Path("/proc/self/task").glob("*/children")), reason="needs /proc")
class TestNoProcessLeft:
    def test_a_process_is_left(self):
        LEFT.append(subprocess.Popen([sys.executable, "-c", CODE]))

    def test_it_is_gone(self):
        if not LEFT:
            pytest.skip("the test before ran in another process")
        assert LEFT.pop().wait(30) == -9
