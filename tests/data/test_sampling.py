import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from normlab.data.sampling import batch_sizes, derive_seed, epoch_order, leaves_single_sample


@given(samples=st.integers(1, 300), batch_size=st.integers(1, 300))
@settings(deadline=None, max_examples=300)
def test_batch_sizes_sum_to_samples_without_single(samples, batch_size):
    sizes = batch_sizes(samples, batch_size)

    assert sum(sizes) == samples
    assert all(size == batch_size for size in sizes[:-1])
    assert 1 <= sizes[-1] <= batch_size + 1
    assert (1 in sizes) == (batch_size == 1 or samples == 1)
    assert (sizes[-1] == batch_size + 1) == leaves_single_sample(samples, batch_size)


@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    epoch=st.integers(0, 1000),
    samples=st.integers(1, 100),
)
@settings(deadline=None, max_examples=50)
def test_member_order_is_permutation_of_own_seed(seeds, epoch, samples):
    orders = epoch_order(seeds, epoch, samples)

    assert orders.shape == (len(seeds), samples)
    for seed, order in zip(seeds, orders, strict=True):
        assert sorted(order.tolist()) == list(range(samples))
        assert torch.equal(order, epoch_order([seed], epoch, samples)[0])


def test_orders_differ_by_seed_and_epoch():
    orders = {tuple(order.tolist()) for epoch in range(10) for order in epoch_order([*range(10)], epoch, 100)}

    assert len(orders) == 100


def test_order_is_independent_of_global_generator():
    torch.manual_seed(0)
    first = epoch_order([3], 1, 50)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()

    assert torch.equal(epoch_order([3], 1, 50), first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_derived_seeds_are_distinct_63_bit_integers():
    names = [
        (seed, name, epoch)
        for seed in (*range(20), 2**63 - 1)
        for name in ("order", "draws")
        for epoch in range(20)
    ]
    derived = {derive_seed(*name) for name in names}

    assert len(derived) == len(names)
    assert all(0 <= value < 2**63 for value in derived)
    # The highest of the 63 bits is set in about half of the seeds.
    assert 0.4 < sum(value >= 2**62 for value in derived) / len(derived) < 0.6


def test_derived_seeds_are_stable():
    # Golden values: a change would make earlier runs irreproducible.
    assert derive_seed(0, "order", 1) == 8024286156118006313
    assert derive_seed(42, "order", 0) == 3585333030069913952
