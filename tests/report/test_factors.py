"""Tests of :func:`find_factors`: the keys that are factors, from the resolved configurations of runs."""

import copy

from normlab.report.factors import find_factors
from normlab.results.result import Objective, Result, Status
from normlab.stats.design import ABSENT

BN = {"norm": {"_target_": "BatchNorm1d", "momentum": 0.1}, "norm2d": {"momentum": 0.1}}
MODELS = {"bn": BN, "nobn": {"norm": None, "norm2d": None}, "ln": {"norm": {"_target_": "LayerNorm"}}}


def run(*overrides, choices=None, status=Status.FINISHED, **changed):
    """Return a run with overrides; ``changed`` are keys that a YAML file sets, with __ for a dot."""
    settings = dict(word.lstrip("+").split("=") for word in overrides)
    model = settings.get("model", "bn")
    config = {
        "seed": int(settings.get("seed", 0)),
        "data": {"seed": 42},
        "model": copy.deepcopy(MODELS.get(model, {})),
        "net": {"hidden": [64]},
        "optimizer": {"lr": 0.01},
        "trainer": {"max_epochs": 100, "threads": None},
        "logger": {"tensorboard": True},
    }
    typed = {key: value for key, value in settings.items() if "." in key}
    for key, value in (typed | {key.replace("__", "."): value for key, value in changed.items()}).items():
        node = config
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = float(value) if isinstance(value, str) and value[0].isdigit() else value
    chosen = {"model": model, "optimizer": "adam", "data": "fitness"} | (choices or {})
    return Result("run", status, config, chosen, list(overrides), Objective("val/loss", "min", 1.0))


def never():
    raise AssertionError("the files of the runs are read without need")


def keys(*runs, unresolved=never, compare=None):
    factors = find_factors(runs, unresolved, compare)
    return factors.keys, factors.implicit


class TestUntyped:
    def test_difference_not_on_command_line_makes_panels(self):
        short = {"optimizer__lr": 0.1, "trainer__max_epochs": 3}
        runs = run("model=bn", **short), run("model=nobn")
        assert keys(*runs, unresolved=lambda: [{}, {}]) == (
            ["model", "optimizer.lr", "trainer.max_epochs"],
            ("optimizer.lr", "trainer.max_epochs"),
        )

    def test_key_confounded_with_arm_is_factor(self):
        factors = find_factors([run("model=bn", net__dropout=0.5), run("model=nobn")], lambda: [{}, {}])
        assert factors.implicit == ("net.dropout",)
        assert factors.settings["net.dropout"].tolist() == ["0.5", ABSENT]

    def test_key_without_effect_is_no_factor(self):
        assert keys(run(), run(logger__tensorboard=False, trainer__threads=2, seed=3)) == ([], ())

    def test_report_option_is_no_factor(self):
        typed = run("baseline=ln", "margin=0.1", "pairs=true", "max_replicates=40", baseline="ln", margin=0.1)
        assert keys(run(baseline=None, margin=None), typed) == ([], ())

    def test_replicate_setting_makes_panels(self):
        runs = run("model=bn", replicate="seed"), run("model=nobn", replicate="data")
        assert keys(*runs, unresolved=lambda: [{}, {}]) == (["model", "replicate"], ("replicate",))

    def test_choice_explains_keys_below_it(self):
        assert keys(run("model=bn"), run("model=nobn"), run("model=ln")) == (["model"], ())

    def test_choice_does_not_explain_difference_within_it(self):
        runs = run("optimizer=sgd", optimizer__beta=0.5), run("optimizer=sgd"), run("optimizer=adam")
        for each, name in zip(runs, ("sgd", "sgd", "adam"), strict=True):
            each.choices["optimizer"] = name
        assert keys(*runs, unresolved=lambda: [{}] * 3) == (["optimizer", "optimizer.beta"], ("optimizer.beta",))

    def test_implicit_choice_is_one_factor(self):
        other = run("model=nobn", choices={"optimizer": "sgd"}, optimizer__lr=0.5, optimizer__momentum=0.9)
        assert keys(run("model=bn"), other) == (["model", "optimizer"], ("optimizer",))

    def test_experiment_explains_keys_it_sets(self):
        changed = {"trainer__max_epochs": 3, "optimizer__lr": 0.5}
        runs = [
            run("experiment=short", f"model={model}", choices={"experiment": "short"}, **changed)
            for model in ("bn", "nobn")
        ]
        assert keys(*runs, run("model=bn"), run("model=nobn")) == (["experiment", "model"], ())

    def test_implicit_experiment_is_factor(self):
        short = run("model=bn", choices={"experiment": "short"}, trainer__max_epochs=3)
        assert keys(short, run("model=nobn")) == (["model", "experiment"], ("experiment",))

    def test_group_without_section_explains_like_experiment(self):
        one = run("setup=a", choices={"setup": "a"}, trainer__max_epochs=3)
        other = run("setup=b", choices={"setup": "b"}, optimizer__lr=0.5)
        assert keys(one, other) == (["setup"], ())

    def test_experiment_and_choice_together_explain_key(self):
        runs = [
            run(f"experiment={name}", f"model={model}", choices={"experiment": name}, **changed)
            for name, momentum in (("a", 0.1), ("b", 0.2))
            for model, changed in (("bn", {"model__norm__momentum": momentum}), ("nobn", {}))
        ]
        assert keys(*runs) == (["experiment", "model"], ())

    def test_reference_follows_referenced_key(self):
        runs = [run(f"trainer.max_epochs={n}", scheduler__T_max=n) for n in (3, 9)]
        unresolved = [{"scheduler": {"T_max": "${trainer.max_epochs}"}}] * 2
        assert keys(*runs, unresolved=lambda: unresolved) == (["trainer.max_epochs"], ())

    def test_bug_group_reference_made_panels(self):
        typed = [f"model.norm.momentum={momentum}" for momentum in (0.01, 0.1)]
        runs = [run("model=bn", word, model__norm2d__momentum=float(word.partition("=")[2])) for word in typed]
        assert keys(*runs, unresolved=lambda: 2 * [{"model": {"norm2d": "${model.norm}"}}]) == (
            ["model.norm.momentum"],
            (),
        )

    def test_environment_reference_explains_nothing(self):
        unresolved = [{"trainer": {"max_epochs": "${oc.env:EPOCHS}"}}] * 2
        assert keys(run(), run(trainer__max_epochs=3), unresolved=lambda: unresolved)[0] == ["trainer.max_epochs"]

    def test_key_equal_to_seed_is_no_factor(self):
        assert keys(*(run(f"seed={seed}", data__seed=seed) for seed in (0, 1))) == ([], ())

    def test_failed_run_makes_no_factor(self):
        lost = run("model=nobn", status=Status.FAILED, data__seed="${seed}")
        assert keys(run("model=bn"), lost) == (["model"], ())

    def test_equal_numbers_do_not_differ(self):
        assert keys(run(optimizer__lr=1), run(optimizer__lr=1.0)) == ([], ())


class TestAbsent:
    def test_single_setting_of_absent_key_is_no_factor(self):
        runs = run("model=bn", "model.norm.momentum=0.05"), run("model=nobn")
        assert keys(*runs) == (["model"], ())

    def test_several_settings_extend_arm_name(self):
        runs = [run("model=bn", f"model.norm.momentum={m}", model__norm2d__momentum=m) for m in ("0.05", "0.1")]
        references = [{"model": {"norm2d": {"momentum": "${oc.select:model.norm.momentum,0.1}"}}}] * 2
        factors = find_factors([*runs, run("model=nobn")], lambda: [*references, {}])
        assert (factors.keys, factors.named) == (["model"], ("model.norm.momentum",))
        assert factors.settings["model"].tolist() == ["bn, momentum=0.05", "bn, momentum=0.1", "nobn"]
        assert factors.settings["model.norm.momentum"].tolist() == ["0.05", "0.1", ABSENT]

    def test_key_of_uncompared_group_makes_panels(self):
        runs = [
            run("model=bn", "net=mlp", f"net.width={n}", choices={"net": "mlp"}, net__width=n) for n in ("1", "2")
        ]
        factors = find_factors([*runs, run("model=nobn", "net=cnn", choices={"net": "cnn"})], never)
        assert (factors.keys, factors.named) == (["model", "net", "net.width"], ())
        assert factors.settings["net.width"].tolist() == ["1", "2", ABSENT]

    def test_other_compared_factor_extends_arm_name(self):
        runs = [run("net=mlp", f"net.width={n}", choices={"net": "mlp"}) for n in ("1", "2")]
        factors = find_factors([*runs, run("model=nobn", "net=cnn", choices={"net": "cnn"})], never, compare="net")
        assert factors.settings["net"].tolist() == ["mlp, width=1", "mlp, width=2", "cnn"]

    def test_key_absent_in_some_runs_of_arm_is_factor(self):
        runs = run("+net.dropout=0.5", "model=bn"), run("model=bn"), run("model=nobn")
        assert keys(*runs)[0] == ["net.dropout", "model"]

    def test_lost_configuration_is_unknown_not_absent(self):
        broken = Result("run", Status.FAILED, {}, {}, [], Objective("", "", 1.0))
        factors = find_factors([run("model=bn", "optimizer.lr=0.1"), run("optimizer.lr=0.2"), broken], never)
        assert factors.settings["optimizer.lr"].tolist() == ["0.1", "0.2", "unknown"]
