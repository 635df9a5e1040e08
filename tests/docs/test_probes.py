"""The commands and code of docs/probes.md run unchanged."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "probes.md").read_text()
(ON_ANY_LOSS,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^    python train\.py (.+)$", TEXT, re.MULTILINE)


def test_page_explains_every_option():
    options = {path.stem for path in (ROOT / "conf" / "probes").glob("*.yaml")}
    of_experiments = {"source", "aliased_lipschitz", "landscape"}
    assert {
        name for name in options if f"`{name}`" in TEXT or f"`probes={name}`" in TEXT
    } == options - of_experiments


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(run_train, command):
    outcome = run_train(*shlex.split(command), "trainer.fast_dev_run=true", "logger=csv")
    assert outcome.code == 0, outcome.err


def test_example_measures_any_loss(capsys):
    exec(ON_ANY_LOSS, {})
    assert capsys.readouterr().out.count("tensor(") == 2
