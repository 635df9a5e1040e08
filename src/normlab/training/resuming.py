"""Resumes a LightningModule from a checkpoint of ModelCheckpoint, which :func:`check_checkpoint` checks.

Lightning restores module, optimizers, schedulers and loops. The other functions restore the numbers of the epoch,
the steps that Lightning leaves out, and the random generators: a resumed training ends as an undisturbed one.
"""

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.seed import _collect_rng_states

from normlab.config.frozen import FrozenConfig, config_leaves, differing_keys, recorded, without_report_keys
from normlab.data.datamodule import InMemoryData
from normlab.errors import ConfigError, first_line, require
from normlab.training.lightning_parts import make_single_module
from normlab.training.schedules import with_total_steps

STATE_KEY = "normlab"
"""Key of normlab's state among those of the callbacks in a checkpoint."""

CHANGEABLE = ("trainer", "callbacks", "logger", "probes")
"""Groups of the configuration that a resumed run may change."""

State = dict[str, Any]


def check_checkpoint(config: FrozenConfig, data: InMemoryData) -> None:
    """Raise ConfigError unless the run can be resumed from the checkpoint at ``ckpt_path``."""
    path = config.ckpt_path
    checkpoint = read_checkpoint(path)
    state = checkpoint["callbacks"].get(STATE_KEY)
    require(state is not None, "ckpt_path", "a checkpoint of a run of normlab", f"{path}, of another program")
    if state["sums"]:  # the numbers of the epoch so far are those of the first process
        wanted = f"1 to resume from the middle of an epoch, where {path} was saved"
        require(config.trainer.devices in (1, "1"), "trainer.devices", wanted, config.trainer.devices)
    module, _ = make_single_module(config, data)
    require_same_net(path, checkpoint["state_dict"], module.state_dict())
    require_same_config(path, state["config"], recorded(config))
    begun = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
    most = config.trainer.max_epochs
    require(most >= begun, "trainer.max_epochs", f"at least {begun}, the epochs begun in {path}", most)


def read_checkpoint(path: str) -> State:
    """Read a checkpoint of Lightning's ModelCheckpoint, without its code.

    Raises:
        ConfigError: if it is damaged, of another kind, or holds weights alone.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any other, depending on the bytes of the file
        reason = f"it is damaged or no checkpoint ({first_line(error).partition('. ')[0]})"
        if "Unsupported global" in str(error):
            reason = "it holds other objects than tensors; leave them out with save_hyperparameters(ignore=…)"
        raise ConfigError(f"ckpt_path: {path} cannot be read: {reason}") from error
    is_lightning = isinstance(checkpoint, dict) and "pytorch-lightning_version" in checkpoint
    wanted = "a checkpoint of Lightning's ModelCheckpoint (best.pt and last.pt hold weights alone)"
    require(is_lightning, "ckpt_path", wanted, path)
    whole = all(key in checkpoint for key in ("callbacks", "optimizer_states", "loops"))
    require(whole, "ckpt_path", "a checkpoint with the state of the training", f"{path}, of weights alone")
    found: State = checkpoint
    return found


def require_same_net(path: str, saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first tensor whose name or shape differs from that in the checkpoint."""
    for name in [*saved, *(name for name in ours if name not in saved)]:
        was, now = (tuple(state[name].shape) if name in state else "missing" for state in (saved, ours))
        if was != now:
            raise ConfigError(
                f"ckpt_path: {path} is of another net: its {name} is {was}, that of this run {now}; "
                "choose another checkpoint or net"
            )


def require_same_config(path: str, saved: State, ours: State) -> None:
    """Raise ConfigError for keys that differ from those of the checkpoint's run and so would have no effect."""
    was, now = (
        {key: value for key, value in without_report_keys(config).items() if key not in CHANGEABLE}
        for config in (saved, ours)
    )
    keys = differing_keys(was, now)
    if keys:
        values = dict(config_leaves(was))
        named = ", ".join(f"{key}={values[key]}" if key in values else f"no {key}" for key in keys[:3])
        more = ", …" if len(keys) > 3 else ""
        raise ConfigError(
            f"ckpt_path: {path} is of a run with {named}{more}, which a resumed run keeps; "
            "use these values, or train from the start"
        )
    total = [with_total_steps(FrozenConfig.of(config)).get("total_steps") for config in (saved, ours)]
    epochs = [config["trainer"]["max_epochs"] for config in (saved, ours)]
    wanted = f"{epochs[0]}, as the schedule in {path} has that length"
    require(total[0] == total[1], "trainer.max_epochs", wanted, epochs[1])


def correct_loops(checkpoint: State) -> bool:
    """Change the progress of the loops in a checkpoint, so that Lightning continues where it was saved.

    With ``max_steps``, Lightning would end a finished epoch a second time. After a batch, it would leave out a
    validation that is due, and after the last batch of an epoch also the end of the epoch.

    Returns:
        Whether the checkpoint was saved after a batch, which is not yet in the loggers' count of steps.
    """
    loops: State = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epochs["total"]["processed"] == epochs["total"]["ready"]:
        for counts in epochs.values():
            counts["completed"] = counts["processed"]
    if batches["total"]["completed"] == batches["total"]["processed"]:
        return False
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    for counts in loops["epoch_loop.val_loop.batch_progress"].values():
        if isinstance(counts, dict):  # Lightning takes this for a validation that has begun
            counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    for loader in loops["state_dict"].get("combined_loader", []) if batches["is_last_batch"] else ():
        loader["position"] = sys.maxsize
    return True


def step_plateau_schedulers(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Step schedulers by a metric for the previous epoch: Lightning does so after it has saved a checkpoint."""
    for config in trainer.lr_scheduler_configs if module.automatic_optimization else ():
        due = config.interval == "epoch" and trainer.current_epoch % config.frequency == 0
        if config.reduce_on_plateau and due and config.monitor in trainer.callback_metrics:
            module.lr_scheduler_step(config.scheduler, trainer.callback_metrics[config.monitor])


def epoch_sums(trainer: pl.Trainer) -> State:
    """Return the sums over the batches so far of the numbers logged per epoch, and of the batch sizes."""
    return {
        key: {
            "names": [metric.meta.name, metric.meta.forked_name(on_step=False)],
            "logger": metric.meta.logger,
            "value": metric.value,
            "weight": metric.cumulated_batch_size if metric.meta.is_mean_reduction else None,
        }
        for key, metric in trainer.fit_loop.epoch_loop._results.items()
        if metric.is_tensor and metric.meta.on_epoch
    }


def continue_epoch_sums(trainer: pl.Trainer, sums: State) -> None:
    """Start each logged number of the epoch from its sum in ``sums``, and remove that entry."""
    results = trainer.fit_loop.epoch_loop._results
    update = results.update_metrics

    def update_metrics(key: str, *arguments: Any) -> None:
        if key in sums:
            metric, entry = results[key], sums.pop(key)
            metric.value = entry["value"].to(metric.value.device)
            if entry["weight"] is not None:
                metric.cumulated_batch_size = entry["weight"].to(metric.value.device)
        update(key, *arguments)

    results.update_metrics = update_metrics


def epoch_values(sums: State) -> State:
    """Return the numbers of an epoch by name, where no batch was left after the checkpoint."""
    return {
        name: entry["value"] if entry["weight"] is None else entry["value"] / entry["weight"]
        for entry in sums.values()
        for name in entry["names"]
    }


def log_epoch_values(trainer: pl.Trainer, sums: State) -> None:
    """Log the numbers of an epoch where no batch was left after the checkpoint, at Lightning's step."""
    values = epoch_values(sums)
    logged: State = {entry["names"][1]: values[entry["names"][1]] for entry in sums.values() if entry["logger"]}
    if logged:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        logged["epoch"] = trainer.current_epoch
        trainer._logger_connector.log_metrics(logged, step)


def generator_states() -> State:
    """Return the states of the global random generators, as tensors and plain numbers."""
    states = _collect_rng_states()
    name, words, *rest = states["numpy"]
    return {**states, "numpy": (name, words.tolist(), *rest)}
