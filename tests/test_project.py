"""``normlab new`` writes a project whose commands and tests run, and never into a folder with files."""

import subprocess
import sys
from pathlib import Path

import pytest

from normlab.errors import ConfigError
from normlab.project import TEMPLATE, main, write_project
from normlab.results.result import Result


def test_files_have_the_name_of_the_project(tmp_path):
    files = write_project(tmp_path / "my-lab")
    assert len(files) == len([path for path in TEMPLATE.rglob("*") if path.is_file()])
    assert {".gitignore", "train.py", "my_lab/norms.py", "conf/model/mynorm.yaml"} <= set(files)
    texts = {name: (tmp_path / "my-lab" / name).read_text() for name in files}
    assert not any("mylab" in text for text in texts.values())
    assert "_target_: my_lab.norms.MyNorm" in texts["conf/model/mynorm.yaml"]


def test_empty_folder_is_filled(tmp_path, monkeypatch, capsys):
    (tmp_path / "lab").mkdir()
    monkeypatch.chdir(tmp_path)
    main(["lab"])
    assert capsys.readouterr().out.endswith("\n\n  cd lab\n  python train.py experiment=first\n")
    assert Path("lab/train.py").exists()


@pytest.mark.parametrize("existing", ["lab", "lab/notes.txt"])
def test_nothing_is_written_over(tmp_path, existing):
    path = tmp_path / existing
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="lab must be a new or empty folder, got one with files; choose another"):
        write_project(tmp_path / "lab")
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["3x", "my lab", "a.b", "class", "tests"],
            "be the name of a Python package, of letters, digits and _, got {}",
        ),
        (["normlab", "torch", "json"], "be new to Python, which has a package {0} already; take one as my_{0}"),
    ],
)
def test_names_that_are_refused(tmp_path, monkeypatch, names, reason):
    monkeypatch.chdir(tmp_path)
    for name in names:
        with pytest.raises(SystemExit, match=f"error: NAME must {reason.format(name)}"):
            main([name])
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_project_trains_and_its_tests_pass(warm_python, tmp_path):
    """As typed: the experiment with the script, a sweep with the command and two workers, and the tests."""
    lab = tmp_path / "mylab"
    write_project(lab)
    sweep = ["-m", "model=nobn,mynorm", "data=rings", "seed=range(2)", "hydra.launcher.n_jobs=2"]
    first = [sys.executable, "train.py", "experiment=first", "hydra.sweep.dir=first"]
    done = subprocess.run(first, cwd=lab, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for words in (
        ["-m", "normlab", "train", *sweep, "trainer.max_epochs=2", "hydra.sweep.dir=second"],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider"],
        [
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--line-length=115",
            "--select=E,F,B,UP,D1",
            "--ignore=D107",
            "mylab",
        ],
    ):
        done = warm_python.run(words, lab)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert Result.read(lab / "first/model=mynorm,seed=7").status == "finished"
    assert Result.read(lab / "second/model=mynorm,seed=1").config["data"]["_target_"] == "mylab.data.Rings"
