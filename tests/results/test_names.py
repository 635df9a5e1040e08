import hypothesis.strategies as st
import pytest
from hypothesis import given

from normlab.results.folder import MAX_NAME_LENGTH, run_name, run_names

VALUES = st.text(alphabet="ab1 ./\\:*?\"<>|'-[],β", max_size=6)
JOB = st.tuples(VALUES, VALUES).map(lambda values: [f"model={values[0]}", f"tag={values[1]}"])
LONG = [f"net.hidden=[{','.join(['64'] * 40)}]", "seed=0"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model=bn", "seed=0"], "model=bn,seed=0"),
        (["experiment=deep/sigmoid"], "experiment=deep_sigmoid"),
        (["net.hidden=[10, 10]"], "net.hidden=[10,10]"),
        (["tag='a b'"], "tag=ab"),
        (['path="C:\\x*?"'], "path=_C__x___"),
        ([], ""),
    ],
)
def test_run_name_has_no_invalid_characters(overrides, name):
    assert run_name(overrides) == name


def test_long_name_is_cut_and_hashed():
    one, other = run_name(LONG), run_name([*LONG[:-1], "seed=1"])

    assert len(one) == len(other) == MAX_NAME_LENGTH
    assert one != other
    assert one.startswith("net.hidden=[64,64")
    assert run_name(LONG) == one


def test_name_of_maximum_length_is_unchanged():
    name = "x" * MAX_NAME_LENGTH

    assert run_name([name]) == name
    assert run_name([name + "x"]) != name


@pytest.mark.parametrize(
    ("jobs", "names"),
    [
        ([["model=bn", "seed=0"], ["model=nobn", "seed=0"]], ["model=bn", "model=nobn"]),
        (
            [["model=bn", "seed=0", "lr=1"], ["model=bn", "seed=1", "lr=1"], ["model=nobn", "seed=0", "lr=1"]],
            ["model=bn,seed=0", "model=bn,seed=1", "model=nobn,seed=0"],
        ),
        ([["model=bn", "seed=0"]], ["model=bn,seed=0"]),
        ([[]], ["run"]),
        ([["seed=0"], ["seed=0"], ["seed=0"]], ["run", "run#2", "run#3"]),
        ([["x=a/b"], ["x=a_b"], ["x=c"]], ["x=a_b", "x=a_b#2", "x=c"]),
        ([], []),
    ],
)
def test_run_names_use_differing_overrides(jobs, names):
    assert run_names(jobs) == names


@given(jobs=st.lists(JOB, min_size=1, max_size=8))
def test_run_names_are_unique_valid_folder_names(jobs):
    names = run_names(jobs)

    assert len(set(names)) == len(jobs)
    for name in names:
        assert name.strip(".")
        assert not set(name) & set("/\\:*?\"<>| '")
        assert len(name.partition("#")[0]) <= MAX_NAME_LENGTH


@pytest.mark.parametrize(
    "jobs", [[["x=a"], ["x=a "], ["x=a#2"]], [["x=a#1"], ["x=a #1"], ["x=b"]], [["x=a#2"], ["x=a"], ["x=a "]]]
)
def test_number_sign_in_value_keeps_names_unique(jobs):
    assert len(set(run_names(jobs))) == 3


def test_long_run_names_are_unique():
    jobs = [[*LONG[:-1], f"seed={seed}", *["x=1"] * (seed % 2)] for seed in range(10)]
    shared_none = [[f"net.hidden=[{seed},{'64,' * 40}1]"] for seed in range(10)]

    for names in (run_names(jobs), run_names(shared_none)):
        assert len(set(names)) == 10
