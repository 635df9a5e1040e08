"""The median rule stops a trial that is worse than the median of the others."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from normlab.training.median_pruning import MedianPruning, MedianRule, read_values, write_values


@pytest.mark.parametrize(
    ("direction", "values", "stopped"),
    [
        ("min", [1.0, 2.0, 3.0, 4.0, 5.0], [False, False, False, True, True]),
        ("max", [1.0, 2.0, 3.0, 4.0, 5.0], [True, True, False, False, False]),
        ("min", [1.0, 1.0, 1.0], [False, False, False]),
        ("min", [1.0, math.nan, math.inf], [False, False, False]),
    ],
)
def test_members_worse_than_the_median_of_the_others_stop(direction, values, stopped):
    assert MedianRule(direction, 1, 0, {}).stops(1, np.array(values)).tolist() == stopped


def test_earlier_trials_count_with_their_last_value():
    rule = MedianRule("min", 2, 1, {1: [9.0], 2: [1.0, 1.0], 5: [7.0, 7.0]})
    assert [rule.stops(epoch, np.array([4.0]))[0] for epoch in (1, 2, 4, 5)] == [False, True, True, False]


def test_too_few_trials_stop_none():
    assert not MedianRule("min", 4, 0, {1: [0.0, 0.0]}).stops(1, np.array([4.0, 5.0])).any()
    assert MedianRule("min", 3, 0, {1: [0.0, 0.0]}).stops(1, np.array([4.0, 5.0])).all()


def test_values_are_read_as_written(tmp_path):
    assert read_values(tmp_path) == {}
    write_values(tmp_path, {2: [1.5, math.inf]})
    assert read_values(tmp_path) == {2: [1.5, math.inf]}


def epoch(callback: MedianPruning, module: SimpleNamespace, number: int, values: list[float]) -> list[int]:
    """End an epoch with the metric of each member; return the mask of members that still train."""
    module.metrics = {"val/loss": torch.tensor(values)}
    callback.on_train_epoch_end(SimpleNamespace(current_epoch=number - 1, max_epochs=5), module)
    return module.active.nonzero().flatten().tolist()


def members(number: int) -> SimpleNamespace:
    """Return the masks of a population."""
    return SimpleNamespace(active=torch.ones(number) > 0, diverged=torch.zeros(number) > 0, pruned=None)


def test_stopped_members_still_count():
    """Otherwise the rule would halve a population in every epoch."""
    callback, module = MedianPruning(4, "val/loss", MedianRule("min", 3, 0, {})), members(4)
    assert epoch(callback, module, 1, [1.0, 2.0, 3.0, 4.0]) == [0, 1]
    # The numbers of a frozen member go on, but are not used.
    assert epoch(callback, module, 2, [1.0, 2.0, 0.0, 0.0]) == [0, 1]
    assert epoch(callback, module, 3, [1.0, 3.5, 0.0, 0.0]) == [0]
    assert module.pruned.tolist() == [False, True, True, True]


def test_last_epoch_and_diverged_members_are_not_pruned():
    callback, module = MedianPruning(4, "val/loss", MedianRule("min", 3, 0, {})), members(4)
    assert epoch(callback, module, 1, [1.0, 1.0, 1.0, math.nan]) == [0, 1, 2, 3]
    assert epoch(callback, module, 5, [1.0, 2.0, 3.0, 4.0]) == [0, 1, 2, 3]


def test_resumed_callback_goes_on():
    rule, module = MedianRule("min", 3, 0, {}), members(4)
    first, second = MedianPruning(4, "val/loss", rule), MedianPruning(4, "val/loss", rule)
    epoch(first, module, 1, [1.0, 2.0, 3.0, 4.0])
    second.resume_from(first.resume_state())
    assert epoch(second, module, 2, [1.0, 3.5, 0.0, 0.0]) == [0]
