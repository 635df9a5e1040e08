"""``module=lightning`` on a GPU: in bf16, and with DDP on one device."""

import numpy as np
import pytest
from tests.training.equality import CASES, GENTLE, curves, runs_of

from normlab.results.result import Result, Status
from normlab.training.run import train

pytestmark = pytest.mark.gpu


@pytest.fixture
def train_one(tmp_path, accelerator):
    """Return a function that trains a run with these overrides, and returns its curves."""

    def train_with(name, *words):
        common = ["module=lightning", "model=bn", *CASES["random"], "trainer.max_epochs=5", accelerator, *words]
        (run,) = runs_of(tmp_path / name, common, GENTLE[:1])
        train([run])
        assert Result.read(run.folder).status is Status.FINISHED
        return curves(run.folder)

    return train_with


def test_bf16(train_one):
    full, mixed = (
        train_one("full", "trainer.precision=32-true"),
        train_one("mixed", "trainer.precision=bf16-mixed"),
    )
    assert not mixed["train/loss"].equals(full["train/loss"]), "bf16 was not used"
    np.testing.assert_allclose(mixed["train/loss"], full["train/loss"], rtol=0.05)


def test_ddp_on_one_device(train_one):
    plain, ddp = train_one("plain"), train_one("ddp", "+trainer.strategy=ddp")
    np.testing.assert_allclose(ddp["train/loss"], plain["train/loss"], rtol=1e-12)
