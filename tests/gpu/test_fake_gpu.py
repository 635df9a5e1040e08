"""Steps of populations keep to one device and do not wait for it, as far as a machine without a GPU can tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gpu.fake_gpu import WRONG, cases

SCRIPT = Path(__file__).with_name("fake_gpu.py")


@pytest.mark.thorough
def test_steps_on_one_device_without_waiting():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    errors = json.loads(done.stdout)
    assert list(errors) == [name for name, *_ in cases()]
    found = {name: errors.pop(name).partition(":")[0] for name in WRONG}
    assert found == WRONG
    assert {name: error for name, error in errors.items() if error} == {}
