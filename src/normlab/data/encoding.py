"""Words as one-hot vectors and missing values as means, fitted to the training samples by scikit-learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from normlab.data.columns import drop_remedy
from normlab.data.table import Table
from normlab.errors import ConfigError


@dataclass(frozen=True)
class Encoder:
    """Transform of a table as it was read into inputs that are all numbers.

    A column of words becomes a 0/1 input for each of its words among the training samples; a word that is not
    among them is 0 in all of these. With ``imputer``, a missing value becomes the mean over the training samples:
    in a column of words, the share of each word.

    Attributes:
        words: for each column the words that its values are the places of; empty for numbers.
        one_hot: scikit-learn's encoder of each column of words, by the column's place.
    """

    words: Sequence[tuple[str, ...]]
    one_hot: Mapping[int, Any]
    imputer: Any

    @classmethod
    def fit(cls, train: Table, words: Sequence[tuple[str, ...]], imputes: bool) -> "Encoder":
        """Fit to the training samples.

        Raises:
            ConfigError: for a column without any value among them.
        """
        encoder = cls(words, {place: one_hot(train, place) for place, known in enumerate(words) if known}, None)
        if not imputes:
            return encoder
        from sklearn.impute import SimpleImputer

        encoded = encoder(train)
        x = encoded.x.double().numpy()
        empty = np.isnan(x).all(axis=0)
        if empty.any():
            refuse_empty(encoded, int(empty.argmax()))
        return replace(encoder, imputer=SimpleImputer(strategy="mean").fit(x))

    def __call__(self, part: Table) -> Table:
        """Return samples with encoded inputs ``(N, inputs)``, in float64 where there is anything to encode."""
        if not self.one_hot and self.imputer is None:
            return part
        x = part.x.double().numpy()
        blocks, names = [], []
        for place, name in enumerate(part.names):
            block = x[:, [place]]
            known = self.one_hot[place].categories_[0] if place in self.one_hot else ()
            # scikit-learn refuses a split without samples.
            if place in self.one_hot and len(x):
                missing = np.isnan(block[:, 0])
                block = self.one_hot[place].transform(block)
                block[missing] = np.nan
            blocks.append(block if len(x) else np.zeros((0, len(known) or 1)))
            names += [f"{name}={self.words[place][int(code)]}" for code in known] or [name]
        x = np.concatenate(blocks, axis=1)
        if self.imputer is not None and len(x):
            x = self.imputer.transform(x)
        return replace(part, x=torch.tensor(x), names=tuple(names))


def one_hot(train: Table, place: int) -> Any:
    """Fit scikit-learn's OneHotEncoder to a column of words of the training samples."""
    from sklearn.preprocessing import OneHotEncoder

    codes = train.x[:, place].double()
    known = codes[~codes.isnan()]
    if not len(known):
        refuse_empty(train, place)
    return OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(known.unsqueeze(1).numpy())


def refuse_empty(train: Table, place: int) -> None:
    """Raise :class:`ConfigError` for a column that has no value among the training samples."""
    raise ConfigError(
        f"data: {train.name_of(place)} has no value among the {len(train)} training samples; "
        f"leave it out with {drop_remedy(train.names[place])}"
    )
