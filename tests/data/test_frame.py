from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from normlab.data.parsing import Source
from normlab.data.sampling import split_rows
from normlab.data.tabular import FrameData, ParsedTable, parse_table
from normlab.errors import ConfigError


class TenRows(FrameData):
    """A data frame of ten rows."""

    def read(self) -> ParsedTable:
        frame = pd.DataFrame({"a": range(10), "y": np.arange(10) / 4})
        return parse_table(frame, self.parsing_options, Source("some.table", str))


def make_data(train: int, **options) -> TenRows:
    return TenRows(train=train, val=2, test=2, batch_size=2, seed=0, target_column="y", **options)


def test_notice_reports_unused_rows():
    notice = "data: target y taken as a regression target; "

    assert [line.startswith(notice) for line in make_data(6).notices] == [True]
    assert make_data(4).notices[1:] == [
        "data: 8 of the 10 rows are used; data.train=6 data.val=2 data.test=2 would use all"
    ]


@dataclass(kw_only=True, eq=False)
class LargeNumbers(FrameData):
    """Ten rows beyond float32; a held-out row of column a is ``largest``."""

    largest: float = 1e39

    def read(self) -> ParsedTable:
        a = 1e39 * np.arange(1, 11)
        a[split_rows(10, (6, 2, 2), 0)[1][0]] *= self.largest / 1e39
        return parse_table(pd.DataFrame({"a": a, "y": a}), self.parsing_options, Source("some.table", str))


def make_large(**options) -> LargeNumbers:
    return LargeNumbers(
        train=6, val=2, test=2, batch_size=2, seed=0, target_column="y", task="regression", **options
    )


def test_float32_overflow_raises_unless_standardized():
    for part in make_large(standardize=True, standardize_target=True).parts:
        assert part.x.isfinite().all()
        assert part.x.dtype == part.y.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"^0, column a: 1e\+39 is not a finite 32-bit number; standardize it"):
        _ = make_large(standardize_target=True).parts
    with pytest.raises(ConfigError, match=r"^0, column y: 1e\+39 is not a finite 32-bit number; standardize it"):
        _ = make_large(standardize=True).parts
    with pytest.raises(ConfigError, match=r"^data: column a must be at most 3\.4e\+38 after preprocessing, got "):
        _ = make_large(standardize=True, standardize_target=True, largest=1e100).parts


def test_unknown_task_and_missing_read_raise():
    with pytest.raises(ValueError, match=r"data\.task must be auto, regression or classification, got regresion"):
        make_data(4, task="regresion")
    with pytest.raises(NotImplementedError, match=r"FrameData must define read\(\)"):
        FrameData(train=1, val=0, test=0, batch_size=1, seed=0).table()
