from pathlib import Path

import pytest

from normlab.report.figures import COLOURS, FAMILIES, LINES, arm_styles, styles


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


def test_arm_has_the_same_style_whatever_stands_beside_it():
    alone = {arm: arm_styles([arm])[arm] for family in FAMILIES for arm in family}
    assert arm_styles(list(alone)) == alone
    assert arm_styles(["nobn", "mine", "bn"])["bn"] == alone["bn"]
    assert arm_styles(["mine", "bn"])["mine"] == arm_styles(["mine", "bn", "nobn"])["mine"]


def test_every_model_has_a_style_of_its_own():
    names = {path.stem for path in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml")}
    assert names == {arm for family in FAMILIES for arm in family}


def test_settings_of_an_arm_have_its_colour():
    one, other, bare = arm_styles(["bn, momentum=0.1", "bn, momentum=0.5", "nobn"]).values()
    assert one != other
    assert one.colour == COLOURS[0]
    assert bare.colour == COLOURS[1]
