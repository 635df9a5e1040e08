"""Every option in ``conf/`` trains, and every experiment runs."""

from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from normlab.config.validation import validate
from normlab.training.build import make_data

CONF = Path(__file__).parents[1] / "conf"
GROUPS = (
    "data",
    "net",
    "model",
    "optimizer",
    "scheduler",
    "module",
    "trainer",
    "callbacks",
    "logger",
    "metrics",
    "probes",
)
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
# Overrides that shorten an experiment from a minute to a second.
SHORTER = {
    "source_random": ["seed=0,1"],
    "source_fitness": ["seed=0", "probes.gradient_lipschitz.samples=3", "probes.aliased_lipschitz.samples=3"],
    "edge_of_stability": ["seed=0", "net.hidden=[5]", "probes.curvature.iterations=3"],
    "deep_sigmoid": ["seed=0,1", "net.hidden=[5,5]"],
    "landscape": ["seed=0", "net.hidden=[5,5]"],
    "lr_range": ["seed=0", "net.hidden=[5]", "optimizer.lr=0.01,0.1,1.0"],
}
# These need a user's table or a download; tests/data trains on both.
# The loggers need a process of their own; tests/training/test_extra.py trains with them.
TESTED_ELSEWHERE = {"data=csv", "data=openml", "logger=wandb", "logger=mlflow"}
NEEDED = {
    "net=cnn": ["data=digits"],
    "model=in": ["net=cnn", "data=digits"],
    "optimizer=muon": ["net.hidden=[8,8]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in TESTED_ELSEWHERE])
def test_option_trains(run_train, option):
    outcome = run_train(option, "trainer.max_epochs=1", *NEEDED.get(option, []))
    assert outcome.code == 0, outcome.err
    assert "finished after 1 epochs" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs(run_train, experiment):
    outcome = run_train(f"experiment={experiment}", "trainer.fast_dev_run=true", *SHORTER.get(experiment, []))
    assert outcome.code == 0, outcome.err
    assert "failed after" not in outcome.out


@pytest.mark.parametrize(
    ("experiment", "splits"),
    [
        *[(name, 1) for name in ("source_fitness", "edge_of_stability", "deep_sigmoid", "landscape")],
        *[(name, 3) for name in ("source_random", "lr_range", "overfit")],
    ],
)
def test_experiments_draw_expected_number_of_splits(experiment, splits):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        configs = [
            validate(compose("train", overrides=[f"experiment={experiment}", f"seed={k}"])) for k in (0, 1, 42)
        ]
    datasets = [make_data(config) for config in configs]
    assert len({tuple(data.parts[0].x.flatten().tolist()) for data in datasets}) == splits
    if experiment.startswith("source"):  # docs/source-experiments.md has results with these seeds
        assert [data.seed for data in datasets] == [42] * 3 if splits == 1 else [0, 1, 42]


def test_source_random_trains_both_arms_full_batch(run_train):
    """One step per epoch means that a batch holds all samples."""
    outcome = run_train("experiment=source_random", "seed=3", "trainer.max_epochs=2")
    assert outcome.code == 0, outcome.err
    (summary,) = Path().rglob("summary.csv")
    runs = pd.read_csv(summary)
    assert runs["model"].tolist() == ["bn", "nobn"]
    assert runs["steps"].tolist() == [2, 2]


@pytest.mark.slow
def test_overfit_experiment_reaches_near_zero_loss(run_train):
    for model in ("bn", "nobn"):
        assert run_train("experiment=overfit", f"model={model}", f"hydra.run.dir={model}").code == 0
        curve = pd.read_csv(Path(model) / "curves.csv")
        losses = curve[(curve["split"] == "train") & (curve["metric"] == "loss")]["value"]
        assert losses.iloc[0] > 100
        assert losses.min() < 0.1
