import re

from normlab.report.tensorboard import bands, curve_tag, layout
from normlab.results.events import tag_of


def charts_by_category(result):
    """Return the charts by category: the tag of a band chart, the patterns of a line chart."""
    return {
        category.title: [
            chart.margin.series[0].value if chart.HasField("margin") else list(chart.multiline.tag)
            for chart in category.chart
        ]
        for category in result.category
    }


def tags(*names, banded=()):
    return [*names, *(band for name in banded for band in bands(name))]


def test_band_charts_and_optimized_metric_come_first():
    metrics = ["train/loss", "val/acc", "val/loss"]
    result = layout(tags("train/lr", *metrics, banded=metrics), "val/acc")
    title = "losses and metrics"
    assert [category.title for category in result.category] == [f"{title}: median and quartiles", title]
    assert not any(category.closed for category in result.category)
    # The tab shows band charts in reverse order.
    assert [chart.title for chart in reversed(result.category[0].chart)] == ["val/acc", "val/loss", "train/loss"]
    [series] = result.category[0].chart[-1].margin.series
    lower, _, upper = bands("val/acc")
    assert [series.lower, series.value, series.upper] == [f"~{lower}", "val/acc/median", f"~{upper}"]
    losses, rates = charts_by_category(result)[title]
    assert losses == ["^val/loss(/median)?$", "^train/loss(/median)?$"]
    assert rates == ["^train/lr(/median)?$"]


def test_layers_share_a_chart_and_activations_are_last():
    activations = [f"activation/hidden{k}/before_std" for k in (1, 2)]
    probes = ["probe/curvature/batch/hidden1/trace", "probe/curvature/batch/trace"]
    result = layout(tags(*activations, *probes, "val/loss"), "val/loss")
    assert list(charts_by_category(result).items()) == [
        ("losses and metrics", [["^val/loss(/median)?$"]]),
        ("probe curvature", [[rf"^\~{name}(/median)?$" for name in probes]]),
        ("activation", [[rf"^\~val_{name}(/median)?$" for name in activations]]),
    ]
    assert [category.closed for category in result.category] == [False, True, True]


def test_special_characters_in_tag_match_literally():
    odd = "probe/of_a_user/batch/norm (max)"
    [[[pattern]]] = charts_by_category(layout([odd], "val/loss")).values()
    for tag in (tag_of(odd), curve_tag(odd)):
        assert re.match(pattern, tag)
        assert not re.match(pattern, f"{tag} ")


def test_best_and_test_values_and_repeated_losses_have_no_chart():
    names = tags("best/val/loss", "test/loss", "val/mse", banded=["val/mse"])
    assert charts_by_category(layout(names, "val/mse")) == {}
