import pytest

from normlab.report.figures import COLOURS, LINES, styles


def test_first_factor_sets_colour_and_others_line():
    looks = styles([(model, lr) for model in ("bn", "nobn") for lr in ("0.1", "0.01")])
    assert [look.colour for look in looks] == [COLOURS[0], COLOURS[0], COLOURS[1], COLOURS[1]]
    assert [look.line for look in looks] == [LINES[0], LINES[1]] * 2


@pytest.mark.parametrize(
    "arms",
    [
        [()],
        [(str(k),) for k in range(20)],
        [(str(k % 10), str(k // 10)) for k in range(20)],
        [(str(k % 2), str(k // 2)) for k in range(20)],
        [(str(k % 4), str(k // 4)) for k in range(20)],
    ],
)
def test_styles_are_distinct(arms):
    looks = styles(arms)
    assert len(looks) == len(arms) == len(set(looks))


def test_any_number_of_configurations_has_styles():
    assert len(styles([(str(k),) for k in range(500)])) == 500
