"""Checks settings that depend on the LightningModule, such as arguments of the Trainer: :func:`check_module`."""

from pathlib import Path

from normlab.config.frozen import FrozenConfig, is_population
from normlab.errors import ConfigError, require

PRECISIONS = ("32-true", "64-true")
"""Precisions of a population."""

WHOLE_EPOCHS = "Lightning runs whole epochs here, not single batches"
ONE_DEVICE = "each run trains on one device"
NOT_USED = "this feature of Lightning is not used"
REFUSED_TRAINER_ARGUMENTS = {
    "callbacks": "callbacks are a group; use +callbacks.extra.NAME._target_=…",
    "logger": "loggers are a group; use logger=csv, or +logger.extra.NAME._target_=…",
    "barebones": "it switches off the logging that every result is read from; remove it",
}
"""Arguments of Lightning's Trainer that no module gets from ``trainer``, each with the alternative."""

UNSUPPORTED_TRAINER_ARGUMENTS = {
    "max_steps": f"{WHOLE_EPOCHS}; use trainer.max_epochs",
    "min_steps": f"{WHOLE_EPOCHS}; use callbacks=early_stopping",
    "min_epochs": "early stopping counts validations; use callbacks.early_stopping.patience",
    "max_time": "results must not depend on the speed of the machine; use trainer.max_epochs",
    "limit_train_batches": f"{WHOLE_EPOCHS}; use data.train",
    "limit_val_batches": f"{WHOLE_EPOCHS}; use data.val",
    "limit_test_batches": f"{WHOLE_EPOCHS}; use data.test",
    "limit_predict_batches": "runs make no predictions; load checkpoints/best.pt to predict",
    "overfit_batches": f"{WHOLE_EPOCHS}; use experiment=overfit",
    "val_check_interval": f"{WHOLE_EPOCHS}; use trainer.check_val_every_n_epoch",
    "accumulate_grad_batches": f"{WHOLE_EPOCHS}; use data.batch_size",
    "log_every_n_steps": f"{WHOLE_EPOCHS}, and logs every epoch; use trainer.check_val_every_n_epoch",
    "reload_dataloaders_every_n_epochs": "all data are held in memory; remove it",
    "num_sanity_val_steps": "a dry run checks one step and one validation of every run before training; remove it",
    "num_nodes": f"{ONE_DEVICE}; remove it",
    "strategy": f"{ONE_DEVICE}; use trainer.accelerator",
    "sync_batchnorm": f"{ONE_DEVICE}; remove it",
    "use_distributed_sampler": f"{ONE_DEVICE}; remove it",
    "plugins": "no configuration group creates plugin objects; use trainer.precision",
    "enable_checkpointing": f"{NOT_USED}: best.pt and last.pt are always written; remove it",
    "enable_progress_bar": f"{NOT_USED}: a progress bar is shown only on a terminal; to hide it, pipe the output",
    "enable_model_summary": f"{NOT_USED}; use +callbacks.extra.NAME._target_=… with its ModelSummary",
    "enable_autolog_hparams": f"{NOT_USED}: TensorBoard gets all hyperparameters; to write none, use logger=csv",
    "model_registry": f"{NOT_USED}; remove it",
    "profiler": f"{WHOLE_EPOCHS}, so a profiler would see no steps; use python -m cProfile train.py",
}
"""Arguments of Lightning's Trainer without effect in a population, each with the reason and the alternative."""


def check_module(config: FrozenConfig) -> None:
    """Raise :class:`ConfigError` for settings that the module of the run cannot honour."""
    trainer = config.trainer
    if trainer.get("accelerator") == "mps" and str(trainer.get("precision")).startswith("64"):
        raise ConfigError(
            f"trainer.precision={trainer.precision}: MPS has no float64; use trainer.accelerator=cpu, or 32-true"
        )
    for key in REFUSED_TRAINER_ARGUMENTS.keys() & trainer.keys():
        raise ConfigError(f"trainer.{key} has no effect here: {REFUSED_TRAINER_ARGUMENTS[key]}")
    path = config.get("ckpt_path")
    if not is_population(config):
        is_file = path is None or Path(path).is_file()
        require(is_file, "ckpt_path", "null or the path of a checkpoint", f"{path}, which is no file")
        alone = f"with module._target_={config.module._target_}; remove it, or use module=population"
        require(not config.timing, "timing", f"false {alone}", config.timing)
        require(not trainer.get("compile"), "trainer.compile", f"null or false {alone}", trainer.get("compile"))
        of_torch = any("torch.nn.BatchNorm" in str(node) for node in config.model.values())
        if trainer.get("sync_batchnorm") and not of_torch:
            raise ConfigError(
                "trainer.sync_batchnorm has no effect: it replaces torch's layers, as in model=bn_torch; "
                "write +model.norm.sync=true, and +model.norm2d.sync=true for images"
            )
        return
    if path is not None:
        raise ConfigError(f"ckpt_path must be null with module=population, got {path}; use module=lightning")
    for key in config.module.keys() - {"_target_"}:
        raise ConfigError(
            f"module.{key}: module=population takes no arguments; remove it, or use module=lightning"
        )
    for key in UNSUPPORTED_TRAINER_ARGUMENTS.keys() & trainer.keys():
        reason = UNSUPPORTED_TRAINER_ARGUMENTS[key]
        raise ConfigError(f"trainer.{key} has no effect here: {reason}; or module=lightning, which has it")
    devices, precision = trainer.get("devices", 1), trainer.get("precision", "32-true")
    remedy = "module=lightning takes others"
    require(
        devices == 1, "trainer.devices", f"1, as a run in a population trains on one device ({remedy})", devices
    )
    require(precision in PRECISIONS, "trainer.precision", f"{' or '.join(PRECISIONS)} ({remedy})", precision)
