import re

from normlab.report.curves import bands
from normlab.report.tensorboard import layout


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
    assert [series.lower, series.value, series.upper] == bands("val/acc")
    assert charts_by_category(result)[title] == [["^val/loss$", "^train/loss$"], ["^train/lr$"]]


def test_layers_share_a_chart():
    names = [f"activation/hidden{k}/before_std" for k in (1, 2)] + ["probe/curvature/batch/hidden1/trace"]
    result = layout(tags(*names, "val/loss", "probe/curvature/batch/trace"), "val/loss")
    assert charts_by_category(result) == {
        "losses and metrics": [["^val/loss$"]],
        "activation": [[f"^activation/hidden{k}/before_std$" for k in (1, 2)]],
        "probe curvature": [["^probe/curvature/batch/hidden1/trace$", "^probe/curvature/batch/trace$"]],
    }
    assert [category.closed for category in result.category] == [False, True, True]


def test_special_characters_in_tag_match_literally():
    odd = "probe/of_a_user/batch/norm (max)"
    [[[pattern]]] = charts_by_category(layout([odd], "val/loss")).values()
    assert re.match(pattern, odd)
    assert not re.match(pattern, f"{odd} ")


def test_best_and_test_values_have_no_chart():
    assert charts_by_category(layout(["best/val/loss", "test/loss"], "val/loss")) == {}
