import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from lipjax.data import Split, batch_indices, eval_batches, hold_out, num_steps
from lipjax.data import batches as module

sizes = st.integers(1, 40)
quick = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)


def _stream(seed, length, num_examples, batch_size):
    steps = range(-(-length // batch_size))
    size = {"num_examples": num_examples, "batch_size": batch_size}
    return np.concatenate([batch_indices(seed, step, **size) for step in steps])[:length]


def _split(labels):
    labels = np.asarray(labels, np.int32)
    marks = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)  # each image is its index
    return Split(marks, labels)


@quick
@hypothesis.given(st.integers(0, 2**64 - 2), sizes, sizes)
def test_every_epoch_is_a_permutation(seed, num_examples, batch_size):
    stream = _stream(seed, 3 * num_examples, num_examples, batch_size)
    assert stream.dtype == np.int64
    for epoch in stream.reshape(3, num_examples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))


@quick
@hypothesis.given(st.integers(0, 99), sizes, sizes, sizes)
def test_the_stream_does_not_depend_on_the_batch_size(seed, num_examples, one, other):
    length = 2 * num_examples + 3
    np.testing.assert_array_equal(
        _stream(seed, length, num_examples, one), _stream(seed, length, num_examples, other)
    )


def test_a_step_does_not_depend_on_what_was_asked_before():
    size = {"num_examples": 50, "batch_size": 16}
    forward = [batch_indices(3, step, **size) for step in range(40)]
    module._permutation.cache_clear()
    backward = [batch_indices(3, step, **size) for step in reversed(range(40))][::-1]
    np.testing.assert_array_equal(forward, backward)


def test_the_order_is_the_same_on_every_platform_and_version():
    assert batch_indices(7, 0, num_examples=10, batch_size=10).tolist() == GOLDEN
    assert batch_indices(2**64 - 2, 10**15, num_examples=3, batch_size=3).tolist() == GOLDEN_FAR


GOLDEN = [8, 4, 1, 6, 3, 2, 7, 5, 9, 0]
GOLDEN_FAR = [2, 0, 1]


def test_epochs_and_seeds_differ():
    size = {"num_examples": 100, "batch_size": 100}
    orders = [batch_indices(seed, step, **size) for seed in range(5) for step in range(5)]
    assert len({order.tobytes() for order in orders}) == 25


def test_each_example_comes_at_each_place_equally_often():
    num_examples, epochs = 8, 4000
    stream = _stream(0, num_examples * epochs, num_examples, num_examples)
    places = np.argsort(stream.reshape(epochs, num_examples), axis=1)
    counts = np.stack([np.bincount(places[:, i], minlength=8) for i in range(num_examples)])
    share = 1 / num_examples
    deviation = np.sqrt(epochs * share * (1 - share))
    assert np.abs(counts - epochs * share).max() < 5 * deviation  # 64 counts, 5 standard errors


def test_what_is_returned_may_be_changed_without_changing_the_order():
    size = {"num_examples": 8, "batch_size": 8}
    first = batch_indices(0, 0, **size)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(batch_indices(0, 0, **size), kept)


@pytest.mark.every
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64 - 1}, "seed is"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"step": -1}, "step is -1"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments_of_batch_indices(change, message):
    with pytest.raises(ValueError, match=message):
        batch_indices(**({"seed": 0, "step": 0, "num_examples": 4, "batch_size": 2} | change))


@quick
@hypothesis.given(sizes, sizes, st.integers(0, 5))
def test_num_steps_is_the_least_that_suffices(num_examples, batch_size, epochs):
    steps = num_steps(num_examples, batch_size, epochs)
    assert steps * batch_size >= num_examples * epochs
    assert steps == 0 or (steps - 1) * batch_size < num_examples * epochs


@pytest.mark.parametrize(("length", "batch_size"), [(10, 5), (10, 4), (3, 8), (1, 1)])
def test_eval_batches_hold_every_example_once_in_order(length, batch_size):
    split = _split(np.arange(length) % 3 + 1)
    batches = list(eval_batches(split, batch_size))
    assert len(batches) == -(-length // batch_size)
    for batch in batches:
        assert batch.images.shape == (batch_size, 1, 1, 1) and batch.labels.shape == (batch_size,)
        assert (batch.images.dtype, batch.labels.dtype) == (np.uint8, np.int32)
        assert batch.labels[~batch.mask].sum() == 0 and batch.images[~batch.mask].sum() == 0
    for axis in (0, 1):
        kept = np.concatenate([batch[axis][batch.mask] for batch in batches])
        np.testing.assert_array_equal(kept, split[axis])


def test_eval_batches_compile_once():
    traces = []

    @jax.jit
    def count(batch):
        traces.append(batch)
        return batch.mask.sum()

    assert sum(int(count(batch)) for batch in eval_batches(_split(range(11)), 4)) == 11
    assert len(traces) == 1


def test_eval_batches_complain_at_once():
    empty = Split(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="images has shape"):
        eval_batches(empty, 4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        eval_batches(_split([0, 1]), 0)
    with pytest.raises(ValueError, match="labels has shape"):
        eval_batches(Split(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(3, np.int32)), 1)


@quick
@hypothesis.given(
    st.lists(st.integers(0, 4), min_size=4, max_size=120),
    st.floats(0.15, 0.85),
    st.integers(0, 2**64 - 2),
)
def test_hold_out_partitions_and_keeps_the_proportions(labels, fraction, seed):
    split = _split(labels)
    rest, held = hold_out(split, fraction=fraction, seed=seed)
    for part in (rest, held):
        marks = part.images.ravel()
        assert np.all(np.diff(marks.astype(int)) > 0)  # in the order of the split
        np.testing.assert_array_equal(part.labels, split.labels[marks])
    together = np.sort(np.concatenate([rest.images, held.images]).ravel())
    np.testing.assert_array_equal(together, split.images.ravel())
    assert abs(len(held.labels) - fraction * len(labels)) <= 0.5 + 1e-9
    for label in set(labels):
        exact = fraction * np.sum(split.labels == label)
        assert abs(np.sum(held.labels == label) - exact) < 1


def test_hold_out_depends_on_the_seed_alone():
    split = _split(np.arange(100) % 10)
    first = [hold_out(split, fraction=0.2, seed=seed).held.images.tobytes() for seed in range(5)]
    again = [hold_out(split, fraction=0.2, seed=seed).held.images.tobytes() for seed in range(5)]
    assert first == again and len(set(first)) == 5


@pytest.mark.every
@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan")])
def test_hold_out_refuses_a_fraction_that_is_none(fraction):
    with pytest.raises(ValueError, match=r"fraction is .*above 0 and below 1"):
        hold_out(_split([0, 1, 2]), fraction=fraction, seed=0)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_hold_out_leaves_no_part_empty(fraction):
    with pytest.raises(ValueError, match="both parts"):
        hold_out(_split([0, 1, 2]), fraction=fraction, seed=0)
