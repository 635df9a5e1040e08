import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from normlab.config.frozen import FrozenConfig, recorded
from normlab.config.schema import POPULATION
from normlab.config.validation import resolve
from normlab.errors import ConfigError
from normlab.results.folder import (
    free_folder,
    require_run_folder,
    require_writable,
    reusable_result,
)
from normlab.results.result import Objective, Result, Status


def composed(lr: float = 0.1, **more) -> DictConfig:
    module = {"_target_": POPULATION}
    defaults = {
        "seed": 0,
        "replicate": "data",
        "module": module,
        "trainable": "all",
        "optimizer": {"lr": lr, "warm": "${seed}"},
        "sizes": [1, 2],
    }
    return OmegaConf.create(defaults | more)


def config(lr: float = 0.1, **more) -> FrozenConfig:
    return FrozenConfig.of(resolve(composed(lr, **more)))


def result_of(config: FrozenConfig, status: Status = Status.FINISHED) -> Result:
    return Result("run", status, recorded(config), {}, [], Objective("val/loss", "min", 0.5))


def leave_killed_run(folder: Path, **more) -> None:
    """Write the unresolved config that Hydra leaves of a killed run."""
    (folder / ".hydra").mkdir()
    OmegaConf.save(composed(**more), folder / ".hydra" / "config.yaml")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("status", list(Status))
def test_earlier_result_is_returned_for_any_status(tmp_path, status):
    result = result_of(config(), status)
    result.write(tmp_path)

    assert reusable_result(tmp_path, config()) == result


def test_record_without_replicate_is_not_replicate_data(tmp_path):
    result_of({key: value for key, value in config().items() if key != "replicate"}).write(tmp_path)

    assert reusable_result(tmp_path, config(replicate="seed")) is not None
    with pytest.raises(ConfigError, match=r"another configuration \(it differs in replicate\)"):
        require_run_folder(tmp_path, config())


def test_earlier_result_with_infinite_number_is_found(tmp_path):
    result_of(config(float("inf"))).write(tmp_path)

    assert reusable_result(tmp_path, config(float("inf"))) is not None


def test_earlier_result_with_numeric_keys_is_found(tmp_path):
    result_of(config(milestones={10: 0.1, 20: 0.01})).write(tmp_path)

    assert reusable_result(tmp_path, config(milestones={10: 0.1, 20: 0.01})) is not None


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_folder_without_run_has_no_earlier_result(tmp_path, folder):
    (tmp_path / "empty").mkdir()

    assert reusable_result(tmp_path / folder, config()) is None


@pytest.mark.parametrize("finished", [True, False], ids=["with a result", "killed"])
def test_folder_of_another_configuration_raises(tmp_path, finished):
    if finished:
        result_of(config()).write(tmp_path)
    else:
        leave_killed_run(tmp_path)
    before = contents(tmp_path)

    with pytest.raises(ConfigError, match=r"another configuration \(it differs in optimizer\.lr\)") as error:
        require_run_folder(tmp_path, config(0.2))
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False], ids=["with a result", "killed"])
@pytest.mark.parametrize("more", [{"baseline": "ln"}, {"margin": 0.05}, {"pairs": True}, {"max_replicates": 40}])
def test_report_keys_do_not_distinguish_configurations(tmp_path, more, finished):
    null = {"baseline": None, "margin": None, "pairs": False, "max_replicates": None}
    if finished:
        result_of(config(**null)).write(tmp_path)
        assert reusable_result(tmp_path, config(**(null | more))) is not None
    else:
        leave_killed_run(tmp_path, **null)
    require_run_folder(tmp_path, config(**(null | more)))
    with pytest.raises(ConfigError, match=r"it differs in replicate\)"):
        require_run_folder(tmp_path, config(**(null | more | {"replicate": "seed"})))


def test_record_without_replicate_is_replicate_seed(tmp_path):
    result_of({key: value for key, value in config().items() if key != "replicate"}).write(tmp_path)

    assert reusable_result(tmp_path, config(replicate="seed")) is not None
    with pytest.raises(ConfigError, match="it differs in replicate"):
        reusable_result(tmp_path, config(replicate="data"))


def test_folder_of_same_killed_run_is_accepted(tmp_path):
    leave_killed_run(tmp_path)

    require_run_folder(tmp_path, config())


def test_damaged_result_is_logged_once_and_counts_as_none(tmp_path, caplog):
    (tmp_path / "result.json").write_text("{")

    assert reusable_result(tmp_path, config()) is None
    assert reusable_result(tmp_path, config()) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'result.json'} is damaged: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1); the run is trained again"
    ]


def test_free_folder_numbers_existing_names(tmp_path):
    made = [free_folder(tmp_path / "day" / "12-00-00").name for _ in range(3)]

    assert made == ["12-00-00", "12-00-00-2", "12-00-00-3"]


def test_free_folder_avoids_existing_file(tmp_path):
    (tmp_path / "sweep").write_text("mine")

    assert free_folder(tmp_path / "sweep").name == "sweep-2"
    assert (tmp_path / "sweep").read_text() == "mine"


def test_threads_get_distinct_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: free_folder(tmp_path / "a" / "sweep"), range(40)))

    assert len(set(made)) == 40
    assert all(folder.is_dir() for folder in made)


ASK = """
import sys
from pathlib import Path
from normlab.results.folder import free_folder
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    print(free_folder(Path(sys.argv[1])), flush=True)
"""


def test_processes_get_distinct_folders(tmp_path):
    command = [sys.executable, "-c", ASK, str(tmp_path / "sweep")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        for process in (one, other):
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            process.stdin.write("go\n")
            process.stdin.flush()
        made = [*one.stdout, *other.stdout]

    assert len(set(made)) == len(made) == 40


def test_require_writable_creates_empty_folder(tmp_path):
    require_writable(tmp_path / "a" / "b")
    require_writable(tmp_path / "a" / "b")

    assert [*(tmp_path / "a" / "b").iterdir()] == []


@pytest.mark.parametrize("below", ["", "run", "day/run"])
def test_path_at_or_below_a_file_raises(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below

    with pytest.raises(ConfigError, match="cannot write to the output folder") as error:
        require_writable(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_folder_without_permission_raises(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(ConfigError, match="Permission denied"):
        require_writable(tmp_path / "run")


def test_require_writable_is_thread_safe(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(require_writable, [tmp_path] * 400))

    assert [*tmp_path.iterdir()] == []
