"""Splits, sample order and batch sizes, as pure functions of seed and epoch."""

import hashlib

import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]
"""Inputs x and targets y."""


def derive_seed(seed: int, *names: object) -> int:
    """Return the 63-bit seed of an independent random stream identified by ``names``.

    >>> derive_seed(0, "order", 1) != derive_seed(0, "order", 2) != derive_seed(1, "order", 2)
    True
    """
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def split_rows(samples: int, sizes: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    """Return the sample indices of disjoint random splits, a pure function of ``seed``.

    Raises:
        ValueError: if the sizes add up to more than ``samples``.
    """
    if sum(sizes) > samples:
        total = " + ".join(map(str, sizes))
        raise ValueError(f"data: train + val + test must be at most {samples} samples, got {total}")
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(derive_seed(seed, "split")))
    return order[: sum(sizes)].split(sizes)


def batch_sizes(samples: int, batch_size: int) -> list[int]:
    """Return the minibatch sizes of an epoch; a single remaining sample joins the last minibatch.

    BatchNorm cannot normalize a batch of one sample. Dropping the sample would make the data depend on the batch
    size. The rule applies to every arm, with or without a normalizer.

    >>> batch_sizes(10, 4), batch_sizes(9, 4), batch_sizes(3, 1)
    ([4, 4, 2], [4, 5], [1, 1, 1])
    """
    full, rest = divmod(samples, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if leaves_single_sample(samples, batch_size):
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def leaves_single_sample(samples: int, batch_size: int) -> bool:
    """Return True if the last minibatch would be a single sample.

    >>> leaves_single_sample(9, 4), leaves_single_sample(3, 1), leaves_single_sample(1, 4)
    (True, False, False)
    """
    return samples > batch_size > 1 and samples % batch_size == 1


def epoch_order(seeds: list[int], epoch: int, samples: int) -> Tensor:
    """Return the permutation of the samples for each member's seed in an epoch, ``(K, N)``."""
    generator = torch.Generator()
    orders = [
        torch.randperm(samples, generator=generator.manual_seed(derive_seed(seed, "order", epoch)))
        for seed in seeds
    ]
    return torch.stack(orders)
