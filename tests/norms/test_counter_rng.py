"""Random numbers as a function of key, step and position."""

import copy
import pickle
import shutil

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from normlab.norms.counter_rng import StochasticLayer, counter_normal, multiply_words, philox, uniform

# Known answers from Random123, the authors' implementation: counter, key, words.
KNOWN = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
MANY = 200_000


def words(text: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


def numbers(*values: int) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_matches_known_answers(counter, key, expected):
    assert [f"{word.item():08x}" for word in philox(words(counter), words(key))] == expected.split()


def philox_with_python_integers(counter: list[int], key: list[int]) -> list[int]:
    """Compute Philox4x32-10 with Python's unbounded integers."""
    for number in range(10):
        (m0, m1), (w0, w1) = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
        k0, k1 = (key[0] + number * w0) % 2**32, (key[1] + number * w1) % 2**32
        one, two = m0 * counter[0], m1 * counter[2]
        counter = [two >> 32 ^ counter[1] ^ k0, two % 2**32, one >> 32 ^ counter[3] ^ k1, one % 2**32]
    return counter


def test_philox_equals_python_integers():
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(2**32, (50, 4), generator=generator)
    key = torch.randint(2**32, (2,), generator=generator)
    actual = torch.stack(philox(tuple(counters.unbind(1)), tuple(key)), dim=1)
    assert actual.tolist() == [philox_with_python_integers(counter, key.tolist()) for counter in counters.tolist()]


@pytest.mark.parametrize("x", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("multiplier", [2**31, 0xD2511F53, 0xCD9E8D57, 2**32 - 1])
def test_64_bit_product_is_exact(multiplier, x):
    high, low = multiply_words(multiplier, torch.tensor(x))
    assert (high.item() << 32) + low.item() == multiplier * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_quantiles(dtype):
    u = uniform(*numbers(5, 3), (MANY,), dtype)
    assert 0 <= u.min() < u.max() < 1
    assert u.dtype is dtype
    u = u.double().sort().values
    # Kolmogorov–Smirnov distance: exceeds this bound in one of a thousand samples.
    assert (u - torch.linspace(0, 1, MANY, dtype=torch.float64)).abs().max() < 1.95 / MANY**0.5


def test_normal_quantiles():
    z = counter_normal(uniform(*numbers(5, 3), (MANY,), torch.float64))
    u = torch.special.ndtr(z.sort().values)
    assert (u - torch.linspace(0, 1, MANY, dtype=torch.float64)).abs().max() < 1.95 / MANY**0.5


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 24), (torch.float64, 53)])
def test_normal_draws_are_finite(dtype, bits):
    ends = torch.tensor([0, 1 - 2.0**-bits], dtype=dtype)
    z = counter_normal(torch.cat([ends.repeat_interleave(2), ends.repeat(2)]))
    assert z.isfinite().all()
    assert 5 < z.abs().max() < 9


def test_neighbours_steps_and_keys_are_uncorrelated():
    u = uniform(*numbers(5, 3), (MANY,), torch.float64)
    others = [uniform(*numbers(*at), (MANY,), torch.float64) for at in ((5, 4), (6, 3))]
    for other in (u.roll(1), *others):
        assert torch.corrcoef(torch.stack([u, other]))[0, 1].abs() < 4 / MANY**0.5


def test_numbers_depend_on_position_not_on_count():
    u = uniform(*numbers(5, 3), (7, 9))
    assert torch.equal(u.flatten()[:10], uniform(*numbers(5, 3), (10,)))
    assert torch.equal(u.flatten(), uniform(*numbers(5, 3), (63,)))
    assert uniform(*numbers(5, 3), (0, 4)).shape == (0, 4)


def test_all_bits_of_key_and_step_matter():
    drawn = [uniform(*numbers(key, step), (4,)) for key in (0, 1, 1 << 32, 1 << 62) for step in (0, 1, 1 << 32)]
    assert len({tuple(u.tolist()) for u in drawn}) == len(drawn)


def test_float32_is_float64_rounded_down():
    one, two = uniform(*numbers(5, 3), (100,)), uniform(*numbers(5, 3), (100,), torch.float64)
    assert torch.equal(one.double(), (two * 2**24).floor() / 2**24)


def test_vmapped_members_equal_single_draws():
    keys, steps = torch.tensor([5, 8, 1 << 40]), torch.tensor([0, 7, 3])
    together = vmap(lambda key, step: uniform(key, step, (3, 5)))(keys, steps)
    alone = [uniform(key, step, (3, 5)) for key, step in zip(keys, steps, strict=True)]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_draws_equal_eager():
    compiled = torch.compile(lambda key, step: uniform(key, step, (33, 5), torch.float64))
    key, step = numbers(1 << 40 | 17, 12)
    assert torch.equal(compiled(key, step), uniform(key, step, (33, 5), torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_dtypes_raise(dtype):
    with pytest.raises(TypeError, match=rf"must be torch.float32 or torch.float64, got {dtype}"):
        uniform(*numbers(0, 0), (1,), dtype)


def test_advance_changes_draws_and_copies_continue():
    layer = StochasticLayer()
    layer.seed(9)
    first = layer.uniform((4,))
    layer.advance()
    assert torch.equal(first, uniform(*numbers(9, 0), (4,)))
    assert torch.equal(layer.uniform((4,)), uniform(*numbers(9, 1), (4,)))
    layer.advance()
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), StochasticLayer()]
    copies[2].load_state_dict(layer.state_dict())
    for other in copies:
        assert torch.equal(other.uniform((4,)), uniform(*numbers(9, 2), (4,)))
        assert other.step == 2
    layer.seed(9)
    assert torch.equal(layer.uniform((4,)), first)


def test_held_layer_repeats_draws():
    layer = StochasticLayer()
    layer.updates_state = False
    first = layer.uniform((4,))
    layer.advance()
    assert torch.equal(layer.uniform((4,)), first)


@pytest.mark.parametrize("shape", [(5,), (3, 3), (0, 4), (4, 2)])
def test_normal_returns_requested_shape(shape):
    layer = StochasticLayer()
    z = layer.normal(shape, torch.float64)
    assert z.shape == shape
    assert torch.equal(layer.normal(shape, torch.float64), z)


def test_box_muller_halves_are_independent():
    cosines, sines = counter_normal(uniform(*numbers(5, 3), (2 * MANY,), torch.float64)).chunk(2)
    for one, other in ((cosines, sines), (cosines.square(), sines.square())):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 4 / MANY**0.5
