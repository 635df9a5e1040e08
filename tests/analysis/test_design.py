import pandas as pd
import pytest

from normlab.analysis.design import design_of, split, split_for


def runs(*rows, keys=("model", "optimizer.lr")):
    """Settings, seed, value; a run without a value failed."""
    frame = pd.DataFrame(rows, columns=[*keys, "seed", "value"]).astype({"seed": "Int64", "value": float})
    return frame.assign(status=["finished" if known else "failed" for known in frame["value"].notna()])


def grid(arms, rates, seeds):
    return runs(*((arm, rate, seed, 1.0) for arm in arms for rate in rates for seed in seeds))


def design(frame, keys=("model", "optimizer.lr"), **given):
    return design_of(frame, keys, "val/loss", "min", **given)


class TestWhatIsCompared:
    def test_the_model_and_what_the_optimizer_takes_is_tuned(self):
        found = design(grid(["nobn", "bn"], ["0.1", "0.01"], range(12)))
        assert (found.compare, found.arms, found.baseline) == ("model", ("bn", "nobn"), "nobn")
        assert (found.tuned, found.panels) == (("optimizer.lr",), ())

    def test_the_rest_are_panels(self):
        keys = ("data.batch_size", "model", "optimizer", "scheduler.gamma")
        frame = runs(("10", "bn", "sgd", "0.1", 0, 1.0), ("20", "ln", "adam", "0.2", 0, 1.0), keys=keys)
        found = design(frame, keys)
        assert (found.compare, found.tuned) == ("model", ("scheduler.gamma",))
        assert found.panels == ("data.batch_size", "optimizer")
        assert found.baseline == "bn", "without nobn the first in natural order"

    def test_a_setting_that_is_no_number_is_not_tuned(self):
        keys = ("model", "optimizer.nesterov")
        frame = runs(("bn", "true", 0, 1.0), ("nobn", "false", 0, 1.0), keys=keys)
        assert design(frame, keys).panels == ("optimizer.nesterov",)

    def test_a_failed_run_of_which_nothing_is_known_does_not_stop_tuning(self):
        frame = runs(("bn", "0.1", 0, 1.0), ("bn", "0.2", 0, 1.0), ("unknown", "unknown", None, None))
        assert design(frame).tuned == ("optimizer.lr",)

    def test_without_a_model_the_first_key_that_is_not_tuned(self):
        keys = ("optimizer.lr", "net.depth", "data.batch_size")
        frame = runs(("0.1", "20", "32", 0, 1.0), ("0.2", "3", "64", 0, 1.0), keys=keys)
        found = design(frame, keys)
        assert (found.compare, found.arms, found.baseline) == ("net.depth", ("3", "20"), "3")

    def test_one_arm_where_all_that_varies_is_tuned(self):
        frame = runs(("0.1", 0, 1.0), ("0.2", 0, 1.0), keys=("optimizer.lr",))
        found = design(frame, ("optimizer.lr",))
        assert (found.compare, found.arms, found.baseline, found.tuned) == ("", ("",), "", ("optimizer.lr",))

    def test_what_is_asked_for(self):
        found = design(grid(["bn", "ln"], ["0.1", "1e-2"], [0]), compare="optimizer.lr", baseline="0.1")
        assert (found.compare, found.arms, found.baseline) == ("optimizer.lr", ("1e-2", "0.1"), "0.1")
        assert (found.tuned, found.panels) == ((), ("model",))

    def test_what_cannot_be_compared_is_said_in_one_line(self):
        frame = grid(["bn", "ln"], ["0.1"], [0])
        with pytest.raises(ValueError, match=r"'net' cannot be compared: .* varies in this sweep is model$"):
            design(frame, ("model",), compare="net")
        with pytest.raises(ValueError, match=r"'nobn' cannot be the baseline: the settings of model are bn, ln$"):
            design(frame, ("model",), baseline="nobn")
        with pytest.raises(ValueError, match=r"none$"):
            design(frame, (), compare="model")

    def test_large_is_good(self):
        frame = grid(["bn"], ["0.1"], [0])
        assert design_of(frame, (), "val/acc", "max").sign == -1.0
        assert design_of(frame, (), "val/loss", "min").sign == 1.0


class TestSeeds:
    @pytest.mark.parametrize(("count", "tuning"), [(5, 4), (12, 4), (13, 5), (24, 8), (48, 16)])
    def test_a_third_tunes_and_at_least_four(self, count, tuning):
        assert split(list(range(count))) == (list(range(tuning)), list(range(tuning, count)))

    @pytest.mark.parametrize("count", [1, 4])
    def test_too_few_are_for_both_and_allow_no_verdict(self, count):
        found = design(grid(["bn", "nobn"], ["0.1", "0.2"], range(count)))
        assert found.tuning_seeds == found.report_seeds == tuple(range(count))
        assert not found.apart

    def test_none_tunes_where_nothing_is_tuned(self):
        found = design(grid(["bn", "nobn"], ["0.1"], range(12)), ("model",))
        assert (found.tuning_seeds, found.report_seeds) == ((), tuple(range(12)))
        assert found.apart

    def test_none_tunes_where_every_arm_has_one_setting(self):
        frame = runs(
            *((arm, rate, seed, 1.0) for arm, rate in (("bn", "1"), ("nobn", "0.1")) for seed in range(12))
        )
        assert design(frame).tuning_seeds == ()

    def test_arms_that_share_seeds_give_up_the_same(self):
        assert split_for([[0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]) == ([0, 1, 2, 3], [4, 5, 6])

    def test_arms_that_share_none_give_up_their_own(self):
        assert split_for([list(range(12)), list(range(20, 32))]) == (
            [0, 1, 2, 3, 20, 21, 22, 23],
            [*range(4, 12), *range(24, 32)],
        )

    def test_an_arm_with_few_seeds_does_not_move_the_others(self):
        assert split_for([list(range(12)), [11]]) == ([0, 1, 2, 3], list(range(4, 12)))

    def test_a_run_without_a_value_or_a_seed_has_no_seed(self):
        frame = runs(("bn", "0.1", 0, 1.0), ("bn", "0.1", 1, None), ("bn", "0.1", None, 1.0))
        assert design(frame).report_seeds == (0,)

    def test_a_sweep_in_which_nothing_came_to_its_end(self):
        found = design(runs(("bn", "0.1", 0, None), ("nobn", "0.1", 0, None)), ("model",))
        assert (found.arms, found.report_seeds) == (("bn", "nobn"), (0,))


def test_the_order_of_the_runs_does_not_matter():
    frame = grid(["nobn", "bn", "ln"], ["0.1", "0.01", "1"], range(13))
    assert design(frame.sample(frac=1.0, random_state=1)) == design(frame)
