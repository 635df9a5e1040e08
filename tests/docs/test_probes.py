"""What docs/probes.md shows works as it stands there."""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "probes.md").read_text()
ON_ANY_LOSS, OWN = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
(SETTINGS,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^    python train\.py (.+)$", TEXT, re.MULTILINE)


def test_every_option_of_the_group_is_explained():
    options = {path.stem for path in (ROOT / "conf" / "probes").glob("*.yaml")}
    of_experiments = {"source", "aliased_lipschitz", "landscape"}
    assert {
        name for name in options if f"`{name}`" in TEXT or f"`probes={name}`" in TEXT
    } == options - of_experiments


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(run_train, command):
    outcome = run_train(*shlex.split(command), "trainer.fast_dev_run=true", "logger=csv")
    assert outcome.code == 0, outcome.err


def test_probes_of_any_loss(capsys):
    exec(ON_ANY_LOSS, {})
    assert capsys.readouterr().out.count("tensor(") == 2


def test_a_probe_of_ones_own(run_train, monkeypatch):
    module = ModuleType("mine.probes")
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))
    monkeypatch.setitem(sys.modules, "mine.probes", module)
    exec(OWN, module.__dict__)
    ((name, settings),) = yaml.safe_load(SETTINGS).items()
    given = [f"+probes.{name}.{key}={value}" for key, value in settings.items()]
    outcome = run_train(*given, "trainer.max_epochs=5", "logger=csv", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    found = pd.read_csv("run/probes.csv")
    assert found["quantity"].unique().tolist() == ["norm"]
    assert (found["value"] > 0).all()
