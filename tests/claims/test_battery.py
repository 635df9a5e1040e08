"""``normlab claims`` as typed: real sweeps of two claims, resumed after a kill, and its errors."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normlab.claims.judge import read_record

ROOT = Path(__file__).parents[2]
TWO = ("wd_is_lr", "rank")
"""Claims whose sweeps take seconds, in the order in which they run."""
SEEDS = re.compile(r"(?<=    )(seed: range\(1000,)\d+\)")
"""The seeds of their sweeps."""


@pytest.fixture
def clone(tmp_path):
    """A folder with ``train.py`` and ``conf/``."""
    shutil.copy(ROOT / "train.py", tmp_path)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    return tmp_path


def start(folder, *words):
    """Start the command in a folder."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "normlab.claims", *words]
    return subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)


def run(folder, *words):
    """Run the command in a folder; return its exit code, stdout and stderr."""
    process = start(folder, *words)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--only", "larger_rl"],
            "error: larger_rl: no such claim; did you mean larger_lr?",
        ),
        (["--jobs", "0"], "error: --jobs must be at least 1, got 0"),
        (
            ["--with", "ln"],
            "error: --with must be model=NAME with a file of conf/model, got ln; did you mean model=ln?",
        ),
        (
            ["--with", "model=ghots"],
            "error: --with must be model=NAME with a file of conf/model, got model=ghots; did you mean "
            "model=ghost?",
        ),
    ],
)
def test_errors(clone, words, message):
    assert run(clone, *words) == (1, "", f"{message}\n")
    assert not (clone / "outputs").exists()


@pytest.mark.thorough
def test_outside_of_a_clone_the_package_is_used(tmp_path):
    code, out, err = run(tmp_path, "--only", "wd_is_lr")
    assert (code, err) == (0, "")
    assert out.startswith("wd_is_lr  ")
    assert (
        (tmp_path / "outputs/claims/wd_is_lr.log")
        .read_text()
        .startswith("$ python -m normlab train -m claim=wd_is_lr ")
    )
    assert "claim.json" in {path.name for path in (tmp_path / "outputs/claims/wd_is_lr").iterdir()}


def test_list(clone):
    code, out, err = run(clone, "--list", "--skip", "rank")
    assert (code, err) == (0, "")
    listed = [line.split()[0] for line in out.splitlines()]
    assert "rank" not in listed
    assert {"explosion", "small_batch", "small_batch-fresh"} <= set(listed)
    assert re.search(r"^explosion +not run, about [\d.]+ min +\S", out, re.M)


@pytest.mark.thorough
def test_two_claims_resumed_after_a_kill(clone):
    for name in TWO:
        file = clone / f"conf/claim/{name}.yaml"
        text, found = SEEDS.subn(r"\g<1>1006)", file.read_text())
        assert found == 1
        file.write_text(text)
    only = ["--only", ",".join(TWO), "--jobs", "1"]
    killed = start(clone, *only)
    deadline = time.monotonic() + 300
    while not (clone / "outputs/claims/rank").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    done, _ = killed.communicate(timeout=60)
    assert "wd_is_lr" in done

    code, out, err = run(clone, *only)
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert set(lines) == {*TWO, "page:"}
    assert lines["wd_is_lr"].endswith("(done before)")
    assert lines["rank"].endswith(" min)")
    page = (clone / "outputs/claims/index.html").read_text()
    for name in TWO:
        record = read_record(clone / "outputs" / "claims" / name)
        assert record["verdict"]["sentence"] in lines[name]
        assert (record["overrides"], set(record["runs"])) == ([], {"finished"})
        assert f'href="{name}/report/index.html"' in page

    # A claim that was changed is tested again.
    file = clone / "conf/claim/wd_is_lr.yaml"
    file.write_text(file.read_text() + "# changed\n")
    code, out, _ = run(clone, *only)
    assert re.search(r"^wd_is_lr .* min\)$", out, re.M)
    assert re.search(r"^rank .*\(done before\)$", out, re.M)
