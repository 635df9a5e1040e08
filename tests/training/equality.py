"""Checks that members of a population equal runs trained alone, in float64: :func:`compare`."""

from functools import cache
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from normlab.config.validation import validate
from normlab.training.build import make_data, net_maker
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
# The gradient of a bias before a norm is pure rounding error. Where gradients or batches are large, the error is,
# too, and a larger ε keeps Adam from scaling it to steps that change the running mean.
EPS = "optimizer.eps=1e-6"
CASES = {
    "random": ["data=random", "data.batch_size=128"],
    "fitness": ["data=fitness", "data.standardize=true", "data.batch_size=150", EPS],
    "resmlp": ["net=resmlp", "net.width=16", "net.blocks=2", "data=random", "data.batch_size=128", EPS],
    "cnn": [
        *("net=cnn", "net.channels=[8,8]", "data=digits", "data.batch_size=30", EPS),
        *("data.train=150", "data.val=40", "data.test=40"),
    ],
}
IMAGES_ONLY = {"in"}
STEPS = ["trainer.precision=64-true", "trainer.max_epochs=20", "logger=csv"]
MEMBERS = [
    ["seed=0", "optimizer.lr=0.01"],
    ["seed=1", "optimizer.lr=0.003"],
    ["seed=2", "optimizer.lr=0.02", "optimizer.weight_decay=0.1"],
]
# In deeper nets rounding differences grow from step to step, faster with larger steps.
GENTLE = [
    ["seed=0", "optimizer.lr=0.001"],
    ["seed=1", "optimizer.lr=0.0003"],
    ["seed=2", "optimizer.lr=0.002", "optimizer.weight_decay=0.01"],
]
TOLERANCES = {"train": 1e-9, "train_eval": 1e-8, "val": 1e-8, "test": 1e-8, "best": 1e-8, "activation": 1e-7}


@cache
def composed(*common: str) -> DictConfig:
    """Return the configuration shared by all members; cached, since composing is slow."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*STEPS, *common])


def runs_of(folder: Path, common: list[str], members: list[list[str]]) -> list[Run]:
    """Return a run for each member."""
    runs = []
    for number, own in enumerate(members):
        config = validate(OmegaConf.merge(composed(*common), OmegaConf.from_dotlist(own)))
        runs.append(Run(config, folder / str(number), str(number), {"model": "x"}, own))
    return runs


def curves(folder: Path) -> pd.DataFrame:
    """Return a run's curves, a column for each metric."""
    frame = pd.read_csv(folder / "curves.csv")
    frame["name"] = frame["split"] + "/" + frame["metric"]
    return frame.drop_duplicates(["epoch", "name"]).pivot(index="epoch", columns="name", values="value")


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Return True if two tensors differ by at most ``tolerance``, relative to the largest entry."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


def check_equal(run: Run, alone: Run) -> None:
    """Check that curves, states and outputs of a member equal those of the run trained alone."""
    stacked, single = curves(run.folder), curves(alone.folder)
    assert sorted(stacked) == sorted(single)
    assert list(stacked.index) == list(single.index)
    states = [torch.load(r.folder / "checkpoints/last.pt", weights_only=True)["state_dict"] for r in (run, alone)]
    # A bias before a norm that subtracts each feature's mean has no effect; rounding errors, which Adam turns into
    # steps, change it, and with it the inputs of the norm.
    idle = any("running_mean" in name for name in states[1]) or "InstanceNorm" in str(run.config.model)
    for name in single:
        ours, theirs = (torch.tensor(frame[name].dropna().to_numpy()) for frame in (stacked, single))
        if not (idle and "before" in name):
            assert close(ours, theirs, TOLERANCES[name.partition("/")[0]]), name
    nets = [net_maker(run.config, make_data(run.config))().double() for _ in states]
    for net, state in zip(nets, states, strict=True):
        net.load_state_dict(state)
    for name, tensor in states[1].items():
        shifted = idle and (name.endswith("running_mean") or (name.endswith("bias") and ".norm." not in name))
        if not tensor.is_floating_point():
            assert torch.equal(states[0][name], tensor), name
        elif not shifted or name.startswith("output"):
            assert close(states[0][name], tensor, 1e-9), name
    x = make_data(run.config).parts[1].x.double()
    outputs = [net.eval()(x) for net in nets]
    assert close(outputs[0], outputs[1], 1e-8)


def compare(folder: Path, common: list[str], members: list[list[str]]) -> None:
    """Train members together and each alone, and check that their files are equal."""
    together = runs_of(folder / "together", common, members)
    alone = runs_of(folder / "alone", common, members)
    train(together)
    for run, other in zip(together, alone, strict=True):
        train([other])
        check_equal(run, other)
