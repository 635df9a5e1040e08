import numpy as np
import pandas as pd
import pytest

from normlab.data.columns import Source
from normlab.data.frame import FrameData
from normlab.data.reading import Reading, table_of


class Given(FrameData):
    """A frame of ten rows."""

    def reading(self) -> Reading:
        frame = pd.DataFrame({"a": range(10), "y": np.arange(10) / 4})
        return table_of(frame, self.choices, Source("some.table", str))


def given(train: int, **options) -> Given:
    return Given(train=train, val=2, test=2, batch_size=2, seed=0, target_column="y", **options)


def test_rows_that_are_left_over_are_said():
    taken = "data: target y taken as a number to predict; "

    assert [line.startswith(taken) for line in given(6).notices] == [True]
    assert given(4).notices[1:] == [
        "data: 8 of the 10 rows are used; data.train=6 data.val=2 data.test=2 would use all"
    ]


def test_an_unknown_task_is_refused_and_a_dataset_without_a_reading_says_what_it_lacks():
    with pytest.raises(ValueError, match=r"data\.task must be auto, regression or classification, got regresion"):
        given(4, task="regresion")
    with pytest.raises(NotImplementedError, match=r"FrameData must define reading\(\)"):
        FrameData(train=1, val=0, test=0, batch_size=1, seed=0).table()
