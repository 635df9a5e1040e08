"""The order in which a run sees its samples: a pure function of its seed and the epoch."""

import hashlib

import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]
"""Inputs and targets."""


def derive_seed(seed: int, *names: object) -> int:
    """Return the 63-bit seed of an independent random stream, named by what it is for.

    >>> derive_seed(0, "order", 1) != derive_seed(0, "order", 2) != derive_seed(1, "order", 2)
    True
    """
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def batch_sizes(samples: int, batch_size: int) -> list[int]:
    """Return the sizes of an epoch's minibatches; one sample left over joins the last of them.

    A batch of one has no variance, so BatchNorm cannot take it; dropping it would change the data with the batch
    size; and it must be the same for every arm, with or without a normalizer.

    >>> batch_sizes(10, 4), batch_sizes(9, 4), batch_sizes(3, 1)
    ([4, 4, 2], [4, 5], [1, 1, 1])
    """
    full, rest = divmod(samples, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if leaves_one_over(samples, batch_size):
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def leaves_one_over(samples: int, batch_size: int) -> bool:
    """Return whether the last minibatch would be a single sample.

    >>> leaves_one_over(9, 4), leaves_one_over(3, 1), leaves_one_over(1, 4)
    (True, False, False)
    """
    return samples > batch_size > 1 and samples % batch_size == 1


def epoch_order(seeds: list[int], epoch: int, samples: int) -> Tensor:
    """Return the order of the samples in an epoch, ``(K, N)``: a row for each member's seed."""
    generator = torch.Generator()
    orders = [
        torch.randperm(samples, generator=generator.manual_seed(derive_seed(seed, "order", epoch)))
        for seed in seeds
    ]
    return torch.stack(orders)
