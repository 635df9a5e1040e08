"""``scheduler=`` and ``optimizer=`` with any ``_target_``, as a user types them."""

import pandas as pd
import pytest

from normlab.results.result import Result

SHORT = (
    "trainer.max_epochs=4",
    "logger=csv",
    "data.train=60",
    "data.val=20",
    "data.test=20",
    "data.batch_size=30",
)
TORCH = "torch.optim.lr_scheduler"
SEQUENTIAL = (
    f"scheduler._target_={TORCH}.SequentialLR",
    f"scheduler.schedulers=[{{_target_:{TORCH}.LinearLR,total_iters:4}},{{_target_:{TORCH}.CosineAnnealingLR,T_max:4}}]",
    "scheduler.milestones=[4]",
    "scheduler.interval=step",
)
SCHEDULES = {
    "step": (f"scheduler._target_={TORCH}.StepLR", "scheduler.step_size=3"),
    "one cycle": ("scheduler=onecycle",),
    "sequential": SEQUENTIAL,
    "every second": ("scheduler=step", "scheduler.step_size=1", "scheduler.frequency=2"),
    "replaced": ("scheduler=step", f"scheduler._target_={TORCH}.ExponentialLR", "scheduler.gamma=0.5"),
    "monitored": ("scheduler=plateau", "scheduler.patience=0", "scheduler.monitor=train/loss"),
}


def rates(folder) -> list[float]:
    curves = pd.read_csv(folder / "curves.csv")
    return curves[(curves["split"] == "train") & (curves["metric"] == "lr")]["value"].tolist()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", SCHEDULES)
def test_members_have_the_rates_of_single_runs(run_train, tmp_path, name):
    words = [*SCHEDULES[name], *SHORT, "trainer.precision=64-true"]
    outcome = run_train("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert "2 runs in 1 population" in outcome.out + outcome.err
    assert run_train(*words, "seed=1", "hydra.run.dir=alone").code == 0
    together, alone = (tmp_path / path for path in ("sweep/seed=1", "alone"))
    assert rates(together) == rates(alone)
    assert len(set(rates(alone))) > 1 or name == "monitored"
    assert Result.read(together).last.metrics == pytest.approx(Result.read(alone).last.metrics, rel=1e-9)


def test_rates_by_hand(run_train, tmp_path):
    for name in ("step", "every second", "replaced"):
        assert run_train(*SCHEDULES[name], *SHORT, "optimizer.lr=0.1", f"hydra.run.dir={name[:4]}").code == 0
    assert rates(tmp_path / "step") == pytest.approx([0.1, 0.1, 0.1, 0.01])
    assert rates(tmp_path / "ever") == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert rates(tmp_path / "repl") == pytest.approx([0.1, 0.05, 0.025, 0.0125])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"scheduler._target_={TORCH}.StepLR"], f"scheduler: {TORCH}.StepLR needs the argument step_size; write"),
        (
            ["scheduler=onecycle", "+scheduler.total_steps=5"],
            "scheduler.total_steps must be at least 8, the steps",
        ),
        (
            ["scheduler=plateau", "scheduler.interval=step"],
            "scheduler.interval must be epoch: the metric of Reduce",
        ),
        (
            ["scheduler=step", "scheduler.monitor=val/loss"],
            "scheduler.monitor must be null, as StepLR uses no metric",
        ),
        (["scheduler=plateau", "scheduler.monitor=val/foo"], "scheduler.monitor must be one of train/loss"),
        (["scheduler=step", "scheduler.interval=minute"], "scheduler.interval must be epoch or step, got minute"),
        (["scheduler=step", "scheduler.frequency=0"], "scheduler.frequency must be at least 1, got 0"),
        (
            ["scheduler._target_=normlab.population.schedulers.StepLR"],
            f"scheduler._target_=normlab.population.schedulers.StepLR is now {TORCH}.StepLR",
        ),
        (
            ["optimizer._target_=torch.optim.LBFGS"],
            "needs a closure, which a population lacks; use module=lightning",
        ),
    ],
)
def test_faulty_schedule_raises(run_train, words, message):
    outcome = run_train(*words, *SHORT)
    assert outcome.code == 1
    assert message in outcome.err


@pytest.mark.parametrize("name", ["RMSprop", "NAdam", "Adagrad"])
def test_torch_optimizer_trains_a_population(run_train, tmp_path, name):
    words = [f"optimizer._target_=torch.optim.{name}", "scheduler=cosine", *SHORT, "trainer.precision=64-true"]
    words += ["trainer.gradient_clip_val=0.5"]
    outcome = run_train("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert "2 runs in 1 population" in outcome.out + outcome.err
    assert run_train(*words, "seed=1", "hydra.run.dir=alone").code == 0
    together, alone = (Result.read(tmp_path / path).last.metrics for path in ("sweep/seed=1", "alone"))
    assert together == pytest.approx(alone, rel=1e-8)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["optimizer._target_=torch.optim.Adafactor", "~optimizer.eps"],
            "torch.optim.Adafactor: its step of a par",
        ),
        (
            ["optimizer._target_=torch.optim.RMSprop", "scheduler=plateau"],
            "gives each run a learning rate of its own",
        ),
    ],
)
def test_other_optimizers_train_one_by_one(run_train, words, reason):
    outcome = run_train("-m", *words, *SHORT, "seed=0,1")
    assert outcome.code == 0, outcome.err
    assert "2 runs, one by one" in outcome.out
    assert reason in " ".join(outcome.out.split())
