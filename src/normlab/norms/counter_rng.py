"""Counter-based random numbers: a function of key, step and position, without generator state.

The base class of layers that draw is `StochasticLayer`. Its numbers do not depend on other layers, on the other
members of a population or on the device.

The generator is Philox4x32-10: ten rounds of multiplication and XOR map a counter of four 32-bit words and a key
of two words to four random words. Each layer has its own key. The counter consists of the layer's step and a block
number: block b yields the numbers at positions 4b to 4b + 3, in row-major order.

32-bit words are stored in int64, which no intermediate result overflows. All operations are elementwise, so they
run under vmap and torch.compile.

Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, doi:10.1145/2063384.2063405.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normlab.norms.shared_batch import current_share

CounterWords = tuple[Tensor, Tensor, Tensor, Tensor]

MASK = 2**32 - 1
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
BITS = {torch.float32: 24, torch.float64: 53}
"""Random bits per uniform number: the precision of the significand."""


def split_words(number: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper 32 bits of an int64."""
    return number & MASK, (number >> 32) & MASK


def multiply_words(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 32 bits of ``m·x``, for 32-bit words ``m ≥ 2³¹`` and x.

    The product would overflow a signed 64-bit integer, so it is computed as ``(m − 2³²)·x + 2³²·x``.
    """
    rest = (multiplier - 2**32) * x
    return (rest >> 32) + x, rest & MASK


def philox(counter: CounterWords, key: tuple[Tensor, Tensor]) -> CounterWords:
    """Return four random words for a counter and a key, by Philox4x32-10.

    Shapes:
        The words of counter and key broadcast against each other; each returned word has the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = multiply_words(MULTIPLIERS[0], c0)
        high1, low1 = multiply_words(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def uniform(key: Tensor, step: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uniform numbers from [0, 1), each a function of key, step and its position.

    They are multiples of 2⁻⁵³ in float64. In float32 they are the same numbers rounded down to multiples of 2⁻²⁴.

    Shapes:
        key and step ``()``, int64; returns ``shape``.

    Raises:
        TypeError: dtype is neither float32 nor float64.

    >>> key, step = torch.tensor(7), torch.tensor(0)
    >>> uniform(key, step, (2, 2))
    tensor([[0.9546, 0.7502],
            [0.1142, 0.0857]])
    """
    if dtype not in BITS:
        raise TypeError(
            f"dtype must be torch.float32 or torch.float64, got {dtype}; draw in float32 and convert the numbers"
        )
    count, parts = math.prod(shape), 1 if dtype is torch.float32 else 2
    block = torch.arange(-(-count // 4), device=key.device)
    part = torch.arange(parts, device=key.device).unsqueeze(1)
    low, high = split_words(step)
    # Philox multiplies words 0 and 2. Inductor (torch 2.13) multiplies an arange in 32 bits, which overflows, so
    # the block number is word 1.
    words = philox((low, block, high, part), split_words(key))
    wholes = [word[0] >> 8 if parts == 1 else (word[0] >> 5 << 26) + (word[1] >> 6) for word in words]
    numbers = torch.stack([whole.to(dtype) for whole in wholes], dim=-1).flatten()[:count]
    return (numbers * 2.0 ** -BITS[dtype]).reshape(tuple(shape))


def counter_normal(uniforms: Tensor) -> Tensor:
    """Transform an even number of uniform numbers to standard normal numbers (Box and Muller 1958).

    With a and b the two halves of the input: ``√(−2 ln(1 − a)) · cos 2πb`` and ``√(−2 ln(1 − a)) · sin 2πb``. As
    a < 1, all are finite. Unlike the normal quantile, these functions are fast in compiled code too.

    Shapes: uniforms ``(2n,)``; returns ``(2n,)``.
    """
    a, b = uniforms.chunk(2)
    radius, angle = torch.sqrt(-2 * torch.log1p(-a)), 2 * math.pi * b
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])


class StochasticLayer(nn.Module):
    """Base class of layers that draw random numbers from their key, their step and a position.

    Key and step are buffers, so a copied or loaded layer continues its sequence. Layers with the same key draw the
    same numbers. The key is 0 until :meth:`seed` is called.

    Shapes: key and step ``()``, int64.

    Attributes:
        updates_state: if False, :meth:`advance` does nothing, so that repeated forward passes draw the same
            numbers. Probes use this to measure derivatives.
    """

    key: Tensor
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.updates_state = True

    def seed(self, key: int) -> None:
        """Set the key, any signed 64-bit integer, and reset the step to 0."""
        self.key.fill_(key)
        self.step.zero_()

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uniform numbers from [0, 1) for the current step; repeated calls return the same numbers."""
        return uniform(self.key, self.step, shape, dtype)

    def uniform_by_sample(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return :meth:`uniform` for a minibatch ``(B, …)``; on a share of it, the numbers of its samples."""
        share = current_share()
        if share is None:
            return self.uniform(shape, dtype)
        return share.select(self.uniform((share.count(shape[0]), *shape[1:]), dtype))

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers for the current step, computed from those of :meth:`uniform`."""
        count = math.prod(shape)
        return counter_normal(self.uniform((count + count % 2,), dtype))[:count].view(tuple(shape))

    def advance(self) -> None:
        """Increment the step if ``updates_state``; call it after the last draw of a forward pass in training."""
        if self.updates_state:
            self.step.add_(1)
