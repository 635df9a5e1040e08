"""``normlab report``: the page, its tables and its errors."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.report.__main__ import main
from normlab.report.console import num
from normlab.results.result import RESULT_FILE, Result, Status
from normlab.stats.sentences import p_value, ratio_text, two_digits


@pytest.fixture
def report(tmp_path, capsys):
    """Return a function that writes the report of the sweep and returns the text of the page without figures."""

    def write(*arguments, path=None):
        main([str(path or tmp_path / "sweep"), *arguments])
        (written,) = capsys.readouterr().out.splitlines()
        text = Path(written).read_text().replace("\u00a0", " ")
        return html.unescape(
            re.sub(r"<[^>]+>", " ", re.sub(r"<(svg|style|script).*?</\1>", "", text, flags=re.DOTALL))
        )

    return write


@pytest.fixture
def error_of(tmp_path, capsys):
    """Return a function that runs the command with invalid arguments and returns its error line."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        assert capsys.readouterr().out == ""
        assert "\n" not in str(end.value.code)
        return str(end.value.code)

    return run


def sweep(make_run, models=("bn", "nobn"), seeds=12, rates=("0.01", "0.1"), **how):
    """Write a sweep in which bn is better at the best learning rate, with final losses of about 2.5 and 3.5."""
    for model in models:
        for seed in range(seeds):
            for lr in rates:
                level = {"bn": 2.0, "ln": 2.5}.get(model, 3.0) + 0.01 * (seed % 5) + (lr == "0.1")
                make_run(f"model={model} optimizer.lr={lr} seed={seed}", (level + 1, level, level + 0.5), **how)


def rows_of(tmp_path, name, page="report"):
    with (tmp_path / "sweep" / page / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_verdict_with_p_value_and_interval(make_run, report, tmp_path):
    sweep(make_run)
    page = report()
    # p = 2 · 2/256: eight replicates all on one side, at a first look.
    verdict = (
        "bn is better than nobn: test/loss ratio 0.72, 95 % CI 0.71–0.72, p = 0.016 (look 1), over 8 draws of the "
    )
    assert f"{verdict}data" in page
    assert "In all comparisons: at lr 0.01, chosen on 4 other seeds." in page
    assert "bn is better than nobn: train_eval/loss ratio 0.72, 95 % CI" in page
    for row, metric in zip(rows_of(tmp_path, "comparisons"), ("test/loss", "train_eval/loss"), strict=True):
        assert (row["arm"], row["baseline"], row["verdict"]) == ("bn", "nobn", "better")
        assert (row["metric"], row["replicates"], row["look"]) == (metric, "8", "1")
        assert float(row["estimate"]) == pytest.approx(2.52 / 3.52, rel=1e-3)
        assert float(row["p_adjusted"]) == pytest.approx(2 * 2 / 2**8)
    chosen = [(row["arm"], row["optimizer.lr"]) for row in rows_of(tmp_path, "settings") if row["chosen"] == "1.0"]
    assert chosen == [("bn", "0.01"), ("nobn", "0.01")]
    assert "replicates that choose settings: 4; reported replicates: 8" in page


def test_sentence_table_and_csv_agree(make_run, report, tmp_path):
    """With noise, ties and a margin, all numbers of a sentence equal the rounded numbers of the file."""
    for seed in range(9):
        for model, level in (("bn", 1.0), ("ln", 1.2), ("nobn", 1.5)):
            noise = ((7 * seed + 3 * len(model)) % 10) / 20
            final = {
                "val/loss": level,
                "test/loss": level + noise,
                "test/acc": 0.8 + (seed % 3) / 10 * (level == 1),
            }
            make_run(f"model={model} seed={seed}", (3.0, 2.0, level), final=final, margin=0.3)
    page = report("--margin", "0.3")
    rows = rows_of(tmp_path, "comparisons", "report-margin=0.3")
    assert [(row["arm"], row["metric"]) for row in rows] == [
        ("bn", "test/loss"),
        ("ln", "test/loss"),
        ("bn", "test/acc"),
        ("ln", "test/acc"),
    ]
    for row in rows:
        value, low, high, p = (
            float(row[key]) for key in ("estimate", "estimate_low", "estimate_high", "p_adjusted")
        )
        start = {
            "no difference shown": f"no difference shown between {row['arm']} and nobn: ",
            "too few replicates": f"too few replicates to compare {row['arm']} with nobn: ",
        }.get(row["verdict"], f"{row['arm']} is {row['verdict']} than nobn: ")
        sentence = next(line for line in page.splitlines() if start in line and f"{row['metric']} " in line)
        if row["effect"] == "ratio":
            assert f"ratio {ratio_text(value)}, 95 % CI {ratio_text(low)}–{ratio_text(high)}" in sentence
            assert f"× {num(value)} ({num(low)} to {num(high)})" in page
        else:
            assert f"difference {two_digits(value, plus=True)} points" in sentence
            assert f"{num(value)} ({num(low)} to {num(high)}) points" in page
        if row["verdict"] != "too few replicates":
            assert f"p = {p_value(p)} (4 comparisons, look 1), over 9 draws of the data" in sentence
        assert f"p = {p_value(float(row['equivalence_p_adjusted']))}" in sentence
        assert f"p = {num(float(row['equivalence_p_adjusted']), 2)}" in page


def test_second_report_of_the_same_runs_is_identical(make_run, report, tmp_path):
    """nobn is tuned to the worse of two learning rates that its tuning seeds cannot distinguish."""
    for seed in range(12):
        wave = 0.1 if seed % 2 else -0.1
        for lr, losses in (("0.01", (2.0, 2.0)), ("0.1", (2.0 + wave + 0.001 * (seed < 4), 1.0))):
            val, test = losses
            make_run(
                f"model=nobn optimizer.lr={lr} seed={seed}", final={"val/loss": val, "test/loss": test}, chance=9.0
            )
        make_run(f"model=bn optimizer.lr=0.01 seed={seed}", final={"val/loss": 1.0, "test/loss": 1.5})
    first = report()
    verdicts = (
        (tmp_path / "sweep/verdicts.json").read_text() if (tmp_path / "sweep/verdicts.json").exists() else ""
    )
    assert "no difference shown between bn and nobn" in first
    assert "near-best settings of nobn are not shown to be worse" in first
    assert "chosen on 4 other seeds" in first
    assert verdicts
    assert report() == first
    assert (tmp_path / "sweep/verdicts.json").read_text() == verdicts


def test_every_run_has_its_command(make_run, report, tmp_path):
    sweep(make_run, seeds=2)
    report()
    commands = [row["command"] for row in rows_of(tmp_path, "runs")]
    assert len(commands) == 8
    assert "python train.py model=bn optimizer.lr=0.01 seed=1" in commands


def test_order_of_folders_does_not_matter(make_run, report, tmp_path):
    sweep(make_run, models=("bn", "nobn", "ln"))
    first = report()
    folder = tmp_path / "sweep"
    for place, path in enumerate(sorted(folder.glob("model=*"), reverse=True)):
        path.rename(folder / f"{place:03}")
    again = report()
    assert first.split("All runs, each")[0] == again.split("All runs, each")[0]


def test_several_sweeps_in_one_report(make_run, report, tmp_path):
    sweep(make_run, models=("bn",))
    (tmp_path / "sweep").rename(tmp_path / "first")
    sweep(make_run, models=("nobn",))
    assert "bn is better than nobn" in report(str(tmp_path / "first"))


def test_options_baseline_compare_and_target(make_run, report, tmp_path):
    sweep(make_run)
    report("--baseline", "bn")
    rows = rows_of(tmp_path, "comparisons", "report-baseline=bn")
    assert [(row["arm"], row["verdict"]) for row in rows] == [("nobn", "worse")] * 2
    report("--compare", "optimizer.lr")
    rows = rows_of(tmp_path, "comparisons", "report-compare=optimizer.lr")
    assert {row["arm"] for row in rows} == {"0.1"}
    assert {row["panel"] for row in rows} == {"model=bn", "model=nobn"}
    report("--target", "2.5")
    assert "reached val/loss ≤ 2.5" in (tmp_path / "sweep/report-target=2.5/target.svg").read_text()
    assert "three quarters of the baseline" in report("--target", "baseline")


@pytest.mark.parametrize("metric", ["test/loss", "val/loss", "train/loss"])
def test_selection_uses_validation_for_any_metric(make_run, report, tmp_path, metric):
    """The other learning rate is better by test and training loss; times to target use the validation curve."""
    sweep(make_run)
    for folder in (tmp_path / "sweep").glob("*lr=0.1,*"):
        result = Result.read(folder)
        result.final |= {"test/loss": 0.1, "train/loss": 0.1}
        result.write(folder)
    page = report("--metric", metric, "--target", "2.5")
    folder = f"report-metric={metric.replace('/', '_')},target=2.5"
    (row,) = rows_of(tmp_path, "comparisons", folder)
    assert (row["metric"], row["verdict"]) == (metric, "better")
    assert f"bn is better than nobn: {metric} ratio 0.72, 95 % CI" in page
    chosen = [row["optimizer.lr"] for row in rows_of(tmp_path, "settings", folder) if row["chosen"] == "1.0"]
    assert chosen == ["0.01", "0.01"]
    # The validation losses of bn at 0.01 are at most 2.5 in the second epoch, step 10; those of nobn never are.
    assert "Target for the time to target: val/loss at most 2.5." in page
    reached = {row["arm"]: row["steps"] for row in rows_of(tmp_path, "times", folder)}
    assert reached == {"bn": "10.0", "nobn": "inf"}
    assert "val/loss by epoch" in page


def test_main_report_is_not_overwritten(make_run, report, error_of, tmp_path):
    sweep(make_run)
    (tmp_path / "second").mkdir()
    report()
    folder = tmp_path / "sweep"
    main = {path: path.read_bytes() for path in (folder / "report").iterdir()}
    report("--metric", "train/loss", "--baseline", "bn")
    report(str(tmp_path / "second"))
    arguments = (str(folder), "--baseline", "bn", "--out", str(folder / "report"))
    assert "--out must not be the main report" in error_of(*arguments)
    assert {path: path.read_bytes() for path in (folder / "report").iterdir()} == main
    pages = sorted(path.name for path in folder.glob("report*"))
    assert pages == ["report", "report-metric=train_loss,baseline=bn", "report-with=second"]


def test_other_folders_are_not_overwritten(make_run, report, error_of, tmp_path):
    run = make_run("model=bn seed=0")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.csv").touch()
    for out in (run, tmp_path / "notes", tmp_path / "sweep"):
        assert "--out must be a new folder or an earlier report" in error_of(str(run), "--out", str(out))
    assert (tmp_path / "notes" / "mine.csv").exists()
    report("--out", str(tmp_path / "page"))
    report("--out", str(tmp_path / "page"), "--metric", "train/loss")


DEGENERATE = {
    "one run": (["model=bn seed=0"], {}, "Nothing to compare: there is only one run."),
    "one arm": ([f"model=bn seed={k}" for k in range(9)], {}, "Nothing to compare: there is only one arm."),
    "one seed": (["model=bn seed=0", "model=nobn seed=0"], {}, "one replicate: the spread is unknown"),
    "all diverged": (
        [f"model={model} seed={k}" for model in ("bn", "nobn") for k in range(8)],
        {"status": Status.DIVERGED},
        "every run diverged",
    ),
    "all failed": (
        [f"model={model} seed={k}" for model in ("bn", "nobn") for k in range(2)],
        {"status": Status.FAILED},
        "no run finished or diverged",
    ),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_sweeps(make_run, report, case):
    overrides, how, text = DEGENERATE[case]
    for each in overrides:
        make_run(each, **how)
    assert text in report()


def test_diverged_and_failed_runs_are_counted(make_run, report, tmp_path):
    sweep(make_run, rates=("0.01",), seeds=10)
    for seed in (10, 11):
        make_run(f"model=nobn optimizer.lr=0.01 seed={seed}", (9.0,), status=Status.DIVERGED)
        make_run(f"model=bn optimizer.lr=0.01 seed={seed}", (9.0,), status=Status.FAILED)
    page = report()
    assert "failed runs, excluded: 2" in page
    (nobn,) = [row for row in rows_of(tmp_path, "arms") if row["arm"] == "nobn"]
    assert (nobn["diverged"], nobn["runs"]) == ("2", "12")


def test_runs_without_metric_are_counted(make_run, report):
    for seed in range(4):
        make_run(f"model=bn seed={seed}")
        make_run(f"model=nobn seed={seed}", recorded="val/mse" if seed == 3 else "val/loss")
    assert "finished runs without val/loss, excluded: 1" in report()


def test_damaged_records_are_named_and_counted(make_run, report, tmp_path, caplog):
    sweep(make_run, rates=("0.01",), seeds=3)
    folders = sorted((tmp_path / "sweep").glob("model=bn*"))
    (folders[0] / RESULT_FILE).write_text('{"name": ')
    (folders[1] / RESULT_FILE).unlink()
    page = report()
    assert "failed runs, excluded: 2" in page
    assert f"{folders[0] / RESULT_FILE} is damaged" in caplog.text
    assert f"{RESULT_FILE} is damaged" in page
    assert f"left no {RESULT_FILE}" in page


def test_names_from_configs_are_escaped(make_run, report, tmp_path):
    for seed in range(2):
        for model in ("bn", "nobn"):
            folder = make_run(f"model={model} seed={seed}")
            result = json.loads((folder / RESULT_FILE).read_text())
            result["name"] = result["error"] = "<img src=x onerror=alert(1)>"
            result["choices"]["model"] = f"<b>{model}</b>"
            (folder / RESULT_FILE).write_text(json.dumps(result))
    report()
    text = (tmp_path / "sweep/report/index.html").read_text()
    assert "&lt;b&gt;bn&lt;/b&gt;" in text
    assert "<b>" not in text
    assert "<img" not in text


def test_unknown_options_list_the_alternatives(make_run, error_of, tmp_path):
    sweep(make_run, seeds=2)
    folder = str(tmp_path / "sweep")
    assert error_of(folder, "--metric", "val/acc") == (
        "error: metric must be one of the runs' metrics (test/loss, train/loss, train_eval/loss, val/loss), "
        "got val/acc"
    )
    assert error_of(folder, "--margin", "-1") == "error: margin must be a number > 0, got -1.0; 0.05 is 5 %"
    assert "baseline must be a setting of model (bn, nobn), got 'ln'" in error_of(folder, "--baseline", "ln")
    assert "compare must be a key that varies (model, optimizer.lr), got 'net'" in error_of(
        folder, "--compare", "net"
    )
    target = "target must be a number or 'baseline' (the value that it reaches), got 'fast'"
    assert target in error_of(folder, "--target", "fast")
    assert not (tmp_path / "sweep/report/index.html").exists()


def test_folder_of_several_sweeps_is_announced(make_run, tmp_path):
    sweep(make_run, seeds=2)
    for name in ("one", "two"):
        shutil.copytree(tmp_path / "sweep", tmp_path / "outputs" / name)
    command = [sys.executable, "-m", "normlab", "report", "outputs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "outputs holds 2 sweeps, whose runs are compared together: outputs/one, outputs/two" in done.stdout


def test_metric_of_unknown_direction_raises(make_run, report, error_of, tmp_path):
    for seed in range(2):
        final = {"val/loss": 1.0, "test/loss": 1.0, "test/within": 0.5}
        make_run(f"model=bn seed={seed}", final=final)
    message = error_of(str(tmp_path / "sweep"), "--metric", "test/within")
    assert message == (
        "error: metric must be one of loss, mse, mae, r2, acc on a split, or the optimized val/loss, "
        "got test/within, whose direction is unknown"
    )


def test_custom_optimized_metric_keeps_its_direction(make_run, report, tmp_path):
    for seed in range(8):
        for model, share in (("bn", 0.9), ("nobn", 0.5)):
            how = {"metric": "val/within", "recorded": "val/within", "direction": "max"}
            make_run(f"model={model} seed={seed}", (0.1, 0.2, share), **how)
    page = report("--metric", "test/within")
    assert "bn is better than nobn: test/within difference +0.8, 95 % CI" in page


def test_folder_without_runs_raises(error_of, tmp_path):
    assert (
        error_of(str(tmp_path))
        == f"error: PATH must hold runs, got {tmp_path}; give the folder of a sweep, such as outputs/…"
    )
    assert "PATH must be a folder, got" in error_of(str(tmp_path / "nowhere"))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc, where even root cannot write")
def test_unwritable_folder_raises(make_run, error_of, tmp_path):
    make_run("model=bn seed=0")
    message = error_of(str(tmp_path / "sweep"), "--out", "/proc/self/report")
    assert message.startswith("error: cannot write to the output folder /proc/self/report")


def test_report_needs_no_torch(make_run, tmp_path):
    sweep(make_run, seeds=2)
    code = (
        "import sys; from normlab.report.__main__ import main; main(sys.argv[1:]); "
        "assert not {'torch', 'pytorch_lightning', 'tensorflow'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "sweep")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
