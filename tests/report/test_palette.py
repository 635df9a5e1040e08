import pytest

from normlab.report.figures import COLOURS, LINES, styles


def test_first_factor_sets_colour_and_others_line():
    all_styles = styles([(model, lr) for model in ("bn", "nobn") for lr in ("0.1", "0.01")])
    assert [style.colour for style in all_styles] == [COLOURS[0], COLOURS[0], COLOURS[1], COLOURS[1]]
    assert [style.line for style in all_styles] == [LINES[0], LINES[1]] * 2


@pytest.mark.parametrize(
    "configurations",
    [
        [()],
        [(str(k),) for k in range(20)],
        [(str(k % 10), str(k // 10)) for k in range(20)],
        [(str(k % 2), str(k // 2)) for k in range(20)],
        [(str(k % 4), str(k // 4)) for k in range(20)],
    ],
)
def test_styles_are_distinct(configurations):
    all_styles = styles(configurations)
    assert len(all_styles) == len(configurations) == len(set(all_styles))


def test_any_number_of_configurations_has_styles():
    assert len(styles([(str(k),) for k in range(500)])) == 500
