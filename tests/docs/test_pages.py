"""README, docs, notebooks: links lead somewhere, commands and code run as printed, the reference is complete."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from normlab import __main__ as command
from normlab.project import write_project
from normlab.results.result import Result

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
GENERATED = ("reference/config.md",)
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^ {4,7}((?:python (?:train|eval)\.py|normlab [a-z]+) .*)$", re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {
    "docs/extending.md": "tests/docs/test_extending.py runs them",
    "docs/clusters.md": "tests/clusters trains on SLURM and Ray",
    "docs/tutorials/normalizer.md": "test_tutorial_of_a_normalizer follows it",
    "docs/performance.md": "the benchmarks measure",
    "docs/reference/commands.md": "test_commands_print_their_help",
}
DOWNLOADS = "data=openml"
PUBLIC = ("normlab", "normlab.norms", "normlab.models", "normlab.data", "normlab.probes", "normlab.claims")


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if any(str(target).endswith(generated) for generated in GENERATED):
            continue
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_notebook_links_lead_somewhere():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        assert all((notebook.parent / link).exists() for link in LINK.findall(text))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def shortened(line: str) -> list[str]:
    """Return the words of a command with few epochs and seeds."""
    words = shlex.split(line)
    if "train.py" not in words[1] and words[1] != "train":
        return words
    if any(word.startswith(("claim=", "experiment=")) for word in words):
        return [*words, "--cfg", "job"]  # tests/test_conf.py and tests/claims train them
    words = [re.sub(r"seed=range\(\d+\)", "seed=range(2)", word) for word in words]
    # A resumed run needs more epochs than the first one.
    given = [word for word in words if word.startswith("trainer.max_epochs=")]
    epochs = 3 if any(word.startswith("ckpt_path=") for word in words) else 2
    return [*(word for word in words if word not in given), f"trainer.max_epochs={epochs}"]


def commands_of(name: str) -> list[str]:
    """Return the commands of a page, without those that need the network."""
    lines = COMMAND.findall((ROOT / name).read_text().replace("\\\n", ""))
    return [line for line in lines if DOWNLOADS not in line and "to its first optimizer step" not in line]


def test_pages_with_commands_are_found():
    assert sum(len(commands_of(name)) for name in NAMES) > 80
    assert all(commands_of(name) for name in ELSEWHERE)


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # docs/resuming.md says so
@pytest.mark.parametrize("name", [name for name in NAMES if commands_of(name) and name not in ELSEWHERE])
def test_commands_run(name, run_script: Callable, monkeypatch):
    """Run the commands of a page in their order, in one folder."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    if "people.csv" in (ROOT / name).read_text():
        rows = "\n".join(f"{k % 7},{k % 5},{k % 11 / 10}" for k in range(500))
        Path("people.csv").write_text(f"age,size,score\n{rows}\n")
    if name != "docs/evaluation.md" and "outputs/mine" in (ROOT / name).read_text():
        words = ["-m", "model=bn,nobn,ln", "seed=0,1", "trainer.max_epochs=1", "hydra.sweep.dir=outputs/mine"]
        assert run_script("train.py", *words).code == 0
    for line in commands_of(name):
        program, script, *words = shortened(line)
        if script == "claims":
            words.append("--list")
        typed = [script, *words] if program == "python" else ["src/normlab/__main__.py", script, *words]
        outcome = run_script(*typed)
        assert outcome.code == 0, f"{line}\n{outcome.err}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_python_runs(warm_python, name, tmp_path):
    """Run the Python code of a page, from top to bottom, as one script."""
    code = "\n".join(PYTHON.findall((ROOT / name).read_text()))
    assert "normlab.sweep(" in code
    # A figure needs no screen.
    (tmp_path / "page.py").write_text(f"import matplotlib\nmatplotlib.use('agg')\n{code}")
    train = [ROOT / "train.py", "-m", "model=bn,nobn", "hydra.sweep.dir=outputs/one", "trainer.max_epochs=1"]
    assert warm_python.run(train, tmp_path).returncode == 0
    code = (tmp_path / "page.py").read_text().replace("outputs/mine/model=bn/", "outputs/one/model=bn/")
    (tmp_path / "page.py").write_text(code)
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_tutorial_of_a_normalizer(warm_python, tmp_path):
    """Do what the tutorial says, with few epochs and seeds."""
    text, lab = (ROOT / "docs/tutorials/normalizer.md").read_text(), tmp_path / "mylab"
    write_project(lab)
    layer, test = PYTHON.findall(text)
    norms = lab / "mylab/norms.py"
    norms.write_text(f"{norms.read_text()}\n\n{layer}")
    (lab / "conf/model/power.yaml").write_text(
        re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0]
    )
    (lab / "tests/test_power.py").write_text(test)
    trainings = [line for line in COMMAND.findall(text) if "model=" in line and "claims" not in line]
    assert len(trainings) == 2
    outputs = []
    for words in [*map(shortened, trainings), ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]]:
        done = warm_python.run(words[1:], lab)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    assert "one by one" not in outputs[0]
    assert "model.norm.power does not apply to model=bn" in outputs[1]


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "notebooks/first-sweep.ipynb", 4)
    assert len((ROOT / "notebooks/first-sweep.ipynb").read_bytes()) < 200_000
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    result = next(cell for cell in notebook.cells if cell.source.startswith("sweep = normlab.sweep("))
    assert result.outputs[-1].data["text/plain"] == "<Sweep outputs/first-sweep: 48 finished>"
    widgets = [out for out in result.outputs if "application/vnd.jupyter.widget-view+json" in out.get("data", {})]
    assert len(widgets) == 1, "a notebook shows a progress bar"


@pytest.mark.slow
def test_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    words = ["-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    api = (tmp_path / "site/reference/api.html").read_text()
    for module in PUBLIC:
        for name in import_module(module).__all__:
            assert f">{name}<" in api or f'id="{module}.{name}"' in api, f"{module}.{name} is not on the page"
    config = (tmp_path / "site/reference/config.html").read_text()
    for path in (ROOT / "conf").glob("[!h]*/*.yaml"):
        assert f"{path.parent.name}={path.stem}" in config
    assert "a finite number &gt; 0" in config, "limits of the schema"
    pages = [page.read_text() for page in (tmp_path / "site").rglob("*.html")]
    assert not any(":class:" in page or 'src="http' in page or 'href="../../' in page for page in pages)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_documented(module):
    names = import_module(module)
    for name in names.__all__:
        found = getattr(names, name)
        assert inspect.getdoc(found), f"{module}.{name}"
        if inspect.isclass(found):
            own = {key: value for key, value in vars(found).items() if not key.startswith("_")}
            methods = {
                key: value
                for key, value in own.items()
                if inspect.isfunction(value) or isinstance(value, property)
            }
            assert all(inspect.getdoc(getattr(found, key)) for key in methods), f"{module}.{name}"


def test_records_page_has_all_fields():
    page = (ROOT / "docs/reference/records.md").read_text()
    section = page.partition("## result.json")[2].partition("\n## ")[0]
    listed = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert listed == {"schema", *(each.name for each in fields(Result))}


def test_commands_print_their_help(monkeypatch, capsys):
    """argparse words its help differently in other versions of Python."""
    if sys.version_info >= (3, 13):
        pytest.skip("the page has the help of Python 3.11 and 3.12")
    page = (ROOT / "docs/reference/commands.md").read_text()
    monkeypatch.setenv("COLUMNS", "100")
    for name in (None, *(name for name in command.COMMANDS if name != "train")):
        words = ["--help"] if name is None else [name, "--help"]
        done = subprocess.run(
            [sys.executable, "-m", "normlab", *words], capture_output=True, text=True, check=True
        )
        text = "".join(f"    {line}\n" if line else "\n" for line in done.stdout.rstrip().splitlines())
        assert f"    $ normlab {' '.join(words)}\n{text}" in page, words
