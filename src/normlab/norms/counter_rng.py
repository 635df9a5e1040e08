"""Random numbers that are a function of who draws, when and where, and of nothing drawn before.

A layer's generator is Philox4x32-10: ten rounds of multiplying and mixing turn a counter of four 32-bit words
under a key of two into four random words. Here the key is the layer's own, and the counter is its step and a
block: the entries at positions 4·block to 4·block + 3, counted in row-major order, take a word each. So whichever
nets share a population, whatever else draws, and on whichever device, the numbers are the same.

32-bit words are held in int64, and no intermediate result exceeds it. All operations are elementwise, so that they
can be vmapped over members and compiled.

Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, doi:10.1145/2063384.2063405.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CounterWords = tuple[Tensor, Tensor, Tensor, Tensor]

MASK = 2**32 - 1
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
BITS = {torch.float32: 24, torch.float64: 53}
"""How many random bits a uniform number has: as many as the significand holds."""


def split(number: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper 32 bits of an int64."""
    return number & MASK, (number >> 32) & MASK


def product(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 32 bits of ``m·x``, for words m, at least 2³¹, and x.

    The product may have 64 bits, too many for a signed number; it is ``(m − 2³²)·x + 2³²·x``.
    """
    rest = (multiplier - 2**32) * x
    return (rest >> 32) + x, rest & MASK


def philox(counter: CounterWords, key: tuple[Tensor, Tensor]) -> CounterWords:
    """Return the four random words of each counter under a key: Philox4x32-10.

    Shapes:
        the words of counter and key broadcast against each other; each returned word has their common shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = product(MULTIPLIERS[0], c0)
        high1, low1 = product(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def uniform(key: Tensor, step: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers drawn uniformly from [0, 1), each a function of key, step and its position alone.

    They are multiples of 2⁻²⁴ in float32, where they are those of float64 rounded down, and of 2⁻⁵³ in float64.

    Shapes:
        key and step ``()``, int64; returns ``shape``.

    Raises:
        TypeError: for another dtype.

    >>> key, step = torch.tensor(7), torch.tensor(0)
    >>> uniform(key, step, (2, 2))
    tensor([[0.9546, 0.7502],
            [0.1142, 0.0857]])
    """
    if dtype not in BITS:
        raise TypeError(
            f"dtype of draws must be torch.float32 or torch.float64, got {dtype}; convert what is drawn"
        )
    count, parts = math.prod(shape), 1 if dtype is torch.float32 else 2
    block = torch.arange(-(-count // 4), device=key.device)
    part = torch.arange(parts, device=key.device).unsqueeze(1)
    low, high = split(step)
    # Philox multiplies the first and the third word; of an arange, Inductor (torch 2.13) does so in 32 bits.
    words = philox((low, block, high, part), split(key))
    wholes = [word[0] >> 8 if parts == 1 else (word[0] >> 5 << 26) + (word[1] >> 6) for word in words]
    numbers = torch.stack([whole.to(dtype) for whole in wholes], dim=-1).flatten()[:count]
    return (numbers * 2.0 ** -BITS[dtype]).reshape(tuple(shape))


def counter_normal(uniforms: Tensor) -> Tensor:
    """Return as many draws from N(0, 1) as there are of :func:`uniform`, an even number, ``(2n,)``.

    Of halves a and b they are ``√(−2 ln(1 − a)) · cos 2πb`` and ``… · sin 2πb`` (Box and Muller 1958): none is
    infinite, as no a is 1, and unlike the normal quantile these functions are fast in compiled code too.
    """
    a, b = uniforms.chunk(2)
    radius, angle = torch.sqrt(-2 * torch.log1p(-a)), 2 * math.pi * b
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])


class StochasticLayer(nn.Module):
    """A layer that draws random numbers: those of its key, and of the steps that it has been through.

    Key and step are part of the state, so that a layer that is copied or loaded goes on where it was. Layers of
    one key draw the same numbers; the key is 0 until :meth:`seed` is called.

    Shapes: key and step ``()``, int64.

    Attributes:
        held: while true the step stays, and with it everything drawn: for measuring derivatives.
    """

    key: Tensor
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.held = False

    def seed(self, key: int) -> None:
        """Draw from now on what belongs to this key, any whole number of 64 bits, from the first step on."""
        self.key.fill_(key)
        self.step.zero_()

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return this step's numbers from [0, 1); asked again in the same step it returns them again."""
        return uniform(self.key, self.step, shape, dtype)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return this step's numbers from N(0, 1), made of the uniform ones; asked again it returns them again."""
        count = math.prod(shape)
        return counter_normal(self.uniform((count + count % 2,), dtype))[:count].view(tuple(shape))

    def advance(self) -> None:
        """Go on to the next step, unless held: a layer's last word in a forward pass of training."""
        if not self.held:
            self.step.add_(1)
