import math

import pandas as pd
import pytest

from normlab.stats.design import GENERALIZATION, Metric, design_of

LOSS = Metric("test/loss", "min", GENERALIZATION)
CHOICE = Metric("val/loss", "min")


def runs(*rows, keys=("model", "optimizer.lr")):
    """Return a frame of runs; a row is the settings, seed and validation; None is a failed run."""
    return pd.DataFrame(rows, columns=[*keys, "seed", "validation"]).astype({"seed": "Int64", "validation": float})


def grid(arms, rates, seeds):
    return runs(*((arm, rate, seed, 1.0) for arm in arms for rate in rates for seed in seeds))


def design(frame, keys=("model", "optimizer.lr"), **given):
    return design_of(frame, keys, [LOSS], CHOICE, **given)


class TestDesign:
    def test_model_is_compared_and_optimizer_keys_are_tuned(self):
        found = design(grid(["nobn", "bn"], ["0.1", "0.01"], range(12)))
        assert (found.compare, found.arms, found.baseline) == ("model", ("bn", "nobn"), "nobn")
        assert (found.tuned, found.panels) == (("optimizer.lr",), ())
        assert (found.primary, found.choice, found.metrics) == (LOSS, CHOICE, (LOSS,))

    def test_other_keys_are_panels(self):
        keys = ("data.batch_size", "model", "optimizer", "scheduler.gamma")
        frame = runs(("10", "bn", "sgd", "0.1", 0, 1.0), ("20", "ln", "adam", "0.2", 0, 1.0), keys=keys)
        found = design(frame, keys)
        assert (found.compare, found.tuned) == ("model", ("scheduler.gamma",))
        assert found.panels == ("data.batch_size", "optimizer")
        assert found.baseline == "bn", "without nobn the first in natural order"

    def test_nonnumeric_key_is_not_tuned(self):
        keys = ("model", "optimizer.nesterov")
        frame = runs(("bn", "true", 0, 1.0), ("nobn", "false", 0, 1.0), keys=keys)
        assert design(frame, keys).panels == ("optimizer.nesterov",)

    def test_failed_run_does_not_prevent_tuning(self):
        frame = runs(("bn", "0.1", 0, 1.0), ("bn", "0.2", 0, 1.0), ("unknown", "unknown", None, None))
        assert design(frame).tuned == ("optimizer.lr",)

    def test_first_untuned_key_is_compared_without_model(self):
        keys = ("optimizer.lr", "net.depth", "data.batch_size")
        frame = runs(("0.1", "20", "32", 0, 1.0), ("0.2", "3", "64", 0, 1.0), keys=keys)
        found = design(frame, keys)
        assert (found.compare, found.arms, found.baseline) == ("net.depth", ("3", "20"), "3")

    def test_single_arm_if_all_keys_are_tuned(self):
        frame = runs(("0.1", 0, 1.0), ("0.2", 0, 1.0), keys=("optimizer.lr",))
        found = design(frame, ("optimizer.lr",))
        assert (found.compare, found.arms, found.baseline, found.tuned) == ("", ("",), "", ("optimizer.lr",))
        assert found.comparisons_among(found.arms) == []

    def test_implicit_key_is_neither_tuned_nor_compared(self):
        keys = ("optimizer.lr", "net.depth", "data.batch_size")
        frame = runs(("0.1", "20", "32", 0, 1.0), ("0.2", "3", "64", 0, 1.0), keys=keys)
        found = design(frame, keys, implicit=["optimizer.lr", "net.depth"])
        assert (found.compare, found.tuned) == ("data.batch_size", ())
        assert found.panels == ("optimizer.lr", "net.depth")

    def test_explicit_compare_and_baseline(self):
        found = design(grid(["bn", "ln"], ["0.1", "1e-2"], [0]), compare="optimizer.lr", baseline="0.1")
        assert (found.compare, found.arms, found.baseline) == ("optimizer.lr", ("1e-2", "0.1"), "0.1")
        assert (found.tuned, found.panels) == ((), ("model",))

    def test_sweep_without_finished_runs(self):
        assert design(runs(("bn", "0.1", 0, None), ("nobn", "0.1", 0, None)), ("model",)).arms == ("bn", "nobn")

    def test_invalid_compare_or_baseline_raises(self):
        frame = grid(["bn", "ln"], ["0.1"], [0])
        with pytest.raises(ValueError, match=r"compare must be a key that varies \(model\), got 'net'$"):
            design(frame, ("model",), compare="net")
        with pytest.raises(ValueError, match=r"baseline must be a setting of model \(bn, ln\), got 'nobn'$"):
            design(frame, ("model",), baseline="nobn")
        with pytest.raises(ValueError, match=r"a key that varies \(none does\), got 'model'$"):
            design(frame, (), compare="model")

    @pytest.mark.parametrize("margin", [0, -0.05, math.inf, math.nan])
    def test_nonpositive_margin_raises(self, margin):
        with pytest.raises(ValueError, match=r"margin must be a number > 0, got .*; 0\.05 is 5 %"):
            design(grid(["bn", "ln"], ["0.1"], [0]), margin=margin)

    def test_run_order_does_not_matter(self):
        frame = grid(["nobn", "bn", "ln"], ["0.1", "0.01", "1"], range(13))
        assert design(frame.sample(frac=1.0, random_state=1)) == design(frame)


class TestComparisons:
    ARMS = ("bn", "gn", "ln", "nobn")

    def test_each_arm_against_baseline(self):
        found = design(grid(self.ARMS, ["0.1"], [0]), ("model",))
        assert found.comparisons_among(self.ARMS) == [("bn", "nobn"), ("gn", "nobn"), ("ln", "nobn")]

    def test_all_pairs_once_baseline_first(self):
        found = design(grid(self.ARMS, ["0.1"], [0]), ("model",), pairs=True, baseline="gn")
        assert found.comparisons_among(self.ARMS) == [
            *(("bn", "gn"), ("ln", "gn"), ("nobn", "gn")),
            *(("ln", "bn"), ("nobn", "bn"), ("nobn", "ln")),
        ]

    def test_panel_without_the_inferred_baseline_infers_its_own(self):
        found = design(grid(self.ARMS, ["0.1"], [0]), ("model",))
        assert found.comparisons_among({"gn", "ln"}) == [("ln", "gn")]
        assert found.comparisons_among({"ln"}) == [("ln", "nobn")]
        assert found.comparisons_among({"nobn"}) == []

    def test_given_baseline_stays(self):
        found = design(grid(self.ARMS, ["0.1"], [0]), ("model",), baseline="nobn")
        assert found.comparisons_among({"gn", "ln"}) == [("gn", "nobn"), ("ln", "nobn")]


class TestMetric:
    def test_sign_makes_small_values_good(self):
        assert (Metric("val/loss", "min").sign, Metric("val/acc", "max").sign) == (1.0, -1.0)

    def test_accuracy_is_a_share(self):
        assert [Metric(name, "max").is_share for name in ("test/acc", "acc", "val/loss", "test/acc5")] == [
            *(True, True, False, False)
        ]
