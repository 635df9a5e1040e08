from normlab.report.figures import styles
from normlab.report.probe_data import split_by_panel
from normlab.report.sweep_summary import summarize_sweep
from normlab.results.result import Result
from normlab.results.sweep import read_sweep


def test_panel_configurations_vary_in_model_and_lr(make_run, tmp_path):
    for init in ("kaiming", "default"):
        for model in ("bn", "nobn"):
            for lr in ("0.01", "0.1"):
                make_run(f"net.init={init} model={model} optimizer.lr={lr} seed=0")
    parts = split_by_panel(summarize_sweep(read_sweep(tmp_path / "sweep")))
    assert list(parts) == ["init=default", "init=kaiming"]
    for part in parts.values():
        assert part.keys == ["model", "optimizer.lr"]
        assert part.configurations.index.tolist() == [
            f"model={model}, optimizer.lr={lr}" for model in ("bn", "nobn") for lr in ("0.01", "0.1")
        ]
        assert part.runs["configuration"].tolist() == part.configurations.index.tolist()
        all_styles = styles([tuple(settings) for settings in part.configurations[part.keys].to_numpy()])
        assert (
            [style.colour for style in all_styles[:2]]
            == [all_styles[0].colour] * 2
            != [style.colour for style in all_styles[2:]]
        )
    runs = [number for part in parts.values() for number in part.runs.index]
    assert sorted(runs) == list(range(8))


def test_implicit_learning_rate_makes_panels(make_run, tmp_path):
    for model in ("bn", "nobn"):
        for lr in (0.01, 0.1):
            folder = make_run(f"model={model} folder={lr}")
            result = Result.read(folder)
            result.config["optimizer"]["lr"] = lr
            result.overrides = [f"model={model}"]
            result.write(folder)
    parts = split_by_panel(summarize_sweep(read_sweep(tmp_path / "sweep")))
    assert {name: part.keys for name, part in parts.items()} == {"lr=0.01": ["model"], "lr=0.1": ["model"]}


def test_sweep_without_other_factors_is_one_panel(make_run, tmp_path):
    for lr in ("0.01", "0.1"):
        make_run(f"model=bn optimizer.lr={lr} seed=0")
    sweep = summarize_sweep(read_sweep(tmp_path / "sweep"))
    assert split_by_panel(sweep) == {"": sweep}
    make_run("model=nobn optimizer.lr=0.1 seed=0")
    sweep = summarize_sweep(read_sweep(tmp_path / "sweep"))
    assert split_by_panel(sweep) == {"": sweep}
