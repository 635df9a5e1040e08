"""Planted truths for claims about BatchNorm: sweeps in which a claim holds, and in which it does not."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tests.claims.planted import CLAIMS, PlantedSweep, load_criterion

from normlab.claims import Answer
from normlab.claims.claim import read_claim

BATCH, EPOCHS = "data.batch_size", "trainer.max_epochs"


def judge(name, center, n=24, scatter=0.05, **options):
    """Return the verdict on a claim from a sweep with given values."""
    return load_criterion(name)(PlantedSweep(center, n, scatter, **options))


def levels(**by_arm):
    """Return values that depend on the arm alone."""
    return lambda metric, arm, panel: by_arm[arm]


def settings(sweep):
    """Return the settings of each key of a claim's sweep, as lower-case text."""
    words = [
        f"{key}={value}" for grid in (sweep["params"], *sweep.get("grids", [])) for key, value in grid.items()
    ]
    found = {EPOCHS: ["15"]}  # beside the sweeps that set them
    for override in OverridesParser.create().parse_overrides(words):
        values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
        found.setdefault(override.key_or_group, []).extend(str(value).lower() for value in values)
    return found


@pytest.mark.parametrize("name", ["source_random", "source_fitness", "larger_lr", "faster", "small_batch"])
def test_arms_and_panels_are_in_the_sweep(name):
    swept = settings(read_claim(CLAIMS / f"{name}.yaml")[1])

    def center(metric, arm, panel):
        for key, value in {"model": arm, **panel}.items():
            assert str(value) in swept[key]
        return 1.0

    judge(name, center)


def larger_lr(largest=0.1, own=0.8, common=1.0):
    """Return values relative to nobn: the largest rate, and test losses at own best rates and at a common rate."""

    def center(metric, arm, panel):
        if arm == "nobn":
            return 0.01 if metric.startswith("largest") else 1.0
        return largest if metric.startswith("largest") else common if "optimizer.lr" in panel else own

    return center


class TestLargerLr:
    def test_benefit_of_larger_rates(self):
        assert judge("larger_lr", larger_lr(), scatter=0.02).answer == Answer.HOLDS

    def test_all_draws_one_step_larger(self):
        """The rates of draws are those of a grid, so that the ratio may be the same in each."""
        assert judge("larger_lr", larger_lr(largest=0.0178), scatter=0.0).answer == Answer.HOLDS

    @pytest.mark.parametrize(
        "values",
        [{"largest": 0.01}, {"own": 1.1}, {"common": 0.8}],
        ids=["no larger rate", "no benefit", "benefit at the same rate"],
    )
    def test_one_part_is_false(self, values):
        verdict = judge("larger_lr", larger_lr(**values), scatter=0.02)
        assert verdict.answer == Answer.FAILS
        assert sum(part.answer == Answer.FAILS for part in verdict.parts) == 2


def test_source_random():
    assert judge("source_random", levels(bn=0.8, nobn=1.0)).answer == Answer.HOLDS
    assert judge("source_random", levels(bn=1.05, nobn=1.0)).answer == Answer.FAILS


def test_source_random_only_at_the_rate_of_the_source():
    """The claim is about tuned arms as well."""
    verdict = judge(
        "source_random", lambda metric, arm, panel: (0.8 if panel else 1.2) if arm == "bn" else 1.0, scatter=0.02
    )
    assert verdict.answer == Answer.FAILS
    assert [part.answer for part in verdict.parts] == [Answer.HOLDS] * 2 + [Answer.FAILS] * 2


def test_source_fitness():
    assert judge("source_fitness", levels(bn=100.0, nobn=1e6), scatter=0.3).answer == Answer.HOLDS


def test_source_fitness_only_for_raw_inputs():
    """Each of the four combinations of inputs and statistics is a part."""
    verdict = judge(
        "source_fitness",
        lambda metric, arm, panel: (
            1.0 if arm == "nobn" else {"false": 0.01, "true": 2.0}[panel["data.standardize"]]
        ),
    )
    assert (verdict.answer, len(verdict.parts)) == (Answer.FAILS, 4)
    assert "data.standardize=true" in verdict.sentence


class TestFaster:
    def test_fewer_steps(self):
        assert judge("faster", levels(bn=36.0, nobn=108.0)).answer == Answer.HOLDS

    def test_target_never_reached_without_normalization(self):
        assert judge("faster", levels(bn=36.0, nobn=math.inf)).answer == Answer.HOLDS

    def test_only_by_initialization(self):
        """BatchNorm helps a net that does not train with torch's initialization, and no other."""

        def center(metric, arm, panel):
            trains = arm == "bn" or panel.get("net.init") != "default"
            return (110.0 if arm == "bn" else 100.0) if trains else math.inf

        verdict = judge("faster", center, scatter=0.02)
        assert verdict.answer == Answer.FAILS
        assert [part.answer for part in verdict.parts] == [Answer.FAILS, Answer.HOLDS, Answer.FAILS]


def small_batch(bn=(1.7, 0.6), gn=(0.7, 0.7)):
    """Return losses relative to nobn, at a batch of 4 and of 60, with more loss after more epochs."""

    def center(metric, arm, panel):
        extra = 1.3 if panel.get(EPOCHS) == 225 else 1.0
        return {"bn": bn, "gn": gn, "nobn": (1.0, 1.0)}[arm][panel[BATCH] == 60] * extra

    return center


class TestSmallBatch:
    @pytest.mark.parametrize("rows", [None, (1080, 357)])
    def test_only_batchnorm_needs_large_batches(self, rows):
        assert judge("small_batch", small_batch(), scatter=0.02, rows=rows).answer == Answer.HOLDS

    def test_batchnorm_does_not_depend_on_the_batch(self):
        assert judge("small_batch", small_batch(bn=(0.6, 0.7))).answer == Answer.FAILS

    def test_group_norm_needs_large_batches_too(self):
        verdict = judge("small_batch", small_batch(bn=(6.0, 0.6), gn=(1.7, 0.7)))
        assert [part.answer for part in verdict.parts] == [Answer.HOLDS, Answer.HOLDS, Answer.FAILS]
        assert verdict.answer == Answer.FAILS
