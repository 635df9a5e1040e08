"""The wheel and the sdist: complete, and installed in a fresh environment outside the clone they train."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def run(folder: Path, *words: object) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the sdist, and from it the wheel, of the tracked files; return the path of the wheel."""
    source, built = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    subprocess.run(["tar", "cf", built / "source.tar", *files.stdout.split()], cwd=ROOT, check=True)
    run(source, "tar", "xf", built / "source.tar")
    # Without isolation nothing is downloaded.
    run(source, sys.executable, "-m", "build", "--no-isolation", "--outdir", built / "dist")
    run(built, sys.executable, "-m", "twine", "check", "--strict", *sorted((built / "dist").iterdir()))
    return next((built / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Install the wheel into an environment whose other packages are those of this one; return its programs."""
    folder = tmp_path_factory.mktemp("environment")
    run(folder, sys.executable, "-m", "venv", "--without-pip", folder)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=scheme))
    # Only the path is added: the .pth file of the editable installation is not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(folder, sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--no-deps", wheel)
    return folder / "bin"


def test_wheel_has_all_configuration_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    conf = {f"normlab/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert conf <= set(names)
    assert {"normlab/py.typed", "normlab/project_template/train.py.template"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"normlab", "hydra_plugins", "normlab-0.1.0.dist-info"}


def test_wheel_trains_outside_the_clone(installed, tmp_path):
    words = ["-m", "model=bn,nobn", "trainer.max_epochs=2", "hydra.sweep.dir=sweep"]
    assert "report: sweep/report/index.html" in run(tmp_path, installed / "normlab", "train", *words)
    assert "mylab/norms.py" in run(tmp_path, installed / "normlab", "new", "mylab")
    run(tmp_path / "mylab", installed / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    code = "import normlab; sweep = normlab.load_sweep('sweep'); print(len(sweep), sweep.net(0).training)"
    answer, where = run(tmp_path, installed / "python", "-c", f"{code}; print(normlab.__file__)").splitlines()
    assert answer == "2 False"
    assert Path(where).is_relative_to(installed.parent)
