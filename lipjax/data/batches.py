"""Data order as a pure function of the seed and the step, and batches for evaluation.

The training stream is the infinite concatenation of one permutation an epoch; step `t` takes the
positions `[t * batch_size, (t + 1) * batch_size)` of it. So the position in the data is the step:
a run resumed at a step sees what an uninterrupted one would have seen.

The permutation of an epoch sorts raw bits of the counter-based generator Philox with the key
(seed, epoch); NumPy keeps those bits the same in every version.
Reference: Salmon et al. (2011), https://doi.org/10.1145/2063384.2063405.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lipjax import _checks
from lipjax.data.dataset import Split

_LAST_STREAM = 2**64 - 1  # for hold_out; no run comes to that epoch


class EvalBatch(NamedTuple):
    """A batch of a fixed size, the last one padded.

    Attributes:
        images: `uint8[batch_size, h, w, c]`, zero where padded.
        labels: `int32[batch_size]`, zero where padded.
        mask: `bool[batch_size]`, true for examples and false for padding.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


class HeldOut(NamedTuple):
    """The two parts of a split.

    Attributes:
        rest: What is left for training.
        held: What was held out.
    """

    rest: Split
    held: Split


def batch_indices(seed: int, step: int, *, num_examples: int, batch_size: int) -> np.ndarray:
    """Which examples step `step` trains on.

    Args:
        seed: Integer in [0, 2**64 - 2].
        step: Integer of at least 0.
        num_examples: Length of the training split.
        batch_size: Examples a step. May exceed `num_examples`.

    Returns:
        `int64[batch_size]`, values in `[0, num_examples)`. Each block of `num_examples` positions
        of the stream, from its start, holds every example exactly once; a batch that lies across
        two blocks may therefore hold an example twice.

    >>> [batch_indices(0, step, num_examples=4, batch_size=3).tolist() for step in range(4)]
    [[0, 2, 1], [3, 3, 2], [1, 0, 2], [1, 3, 0]]
    """
    _check_seed(seed)
    _checks.integer(0, step=step)
    _checks.integer(1, num_examples=num_examples, batch_size=batch_size)
    start, stop = int(step) * int(batch_size), (int(step) + 1) * int(batch_size)
    parts = []
    while start < stop:
        epoch, offset = divmod(start, int(num_examples))
        order = _permutation(int(seed), epoch, int(num_examples))
        parts.append(order[offset : offset + stop - start])
        start += len(parts[-1])
    return np.concatenate(parts)


def num_steps(num_examples: int, batch_size: int, epochs: int) -> int:
    """The least number of steps that takes every example `epochs` times.

    >>> num_steps(1437, 128, 10)
    113
    """
    _checks.integer(1, num_examples=num_examples, batch_size=batch_size)
    _checks.integer(0, epochs=epochs)
    return -(-int(num_examples) * int(epochs) // int(batch_size))


def eval_batches(split: Split, batch_size: int) -> Iterator[EvalBatch]:
    """The split in its order, in batches of one size, so that a jitted function compiles once.

    Args:
        split: Images `[n, h, w, c]` and labels `[n]`, with n at least 1.
        batch_size: Examples a batch.

    Returns:
        An iterator over `ceil(n / batch_size)` batches; only the last one may be padded.

    >>> split = Split(np.ones((5, 2, 2, 1), np.uint8), np.arange(5, dtype=np.int32))
    >>> [batch.mask.tolist() for batch in eval_batches(split, 3)]
    [[True, True, True], [True, True, False]]
    """
    _check_split(split)
    _checks.integer(1, batch_size=batch_size)
    return (_padded(split, start, batch_size) for start in range(0, len(split.labels), batch_size))


def hold_out(split: Split, *, fraction: float, seed: int) -> HeldOut:
    """A validation part of a split, with the proportions of the classes kept.

    Settings are chosen on the held part; the test split is for the final figure alone.

    Args:
        split: Images and labels.
        fraction: Share to hold out, above 0 and below 1.
        seed: Integer in [0, 2**64 - 2]. Training with the same seed draws from other bits.

    Returns:
        `HeldOut(rest, held)`, each in the order of the split. `held` has `fraction * n` examples,
        rounded; each class in it has `fraction` times its count, rounded up or down.

    Raises:
        ValueError: `fraction` is out of range, or leaves one of the parts empty.

    >>> split = Split(np.zeros((10, 1, 1, 1), np.uint8), np.array([0] * 6 + [1] * 4, np.int32))
    >>> hold_out(split, fraction=0.5, seed=0).held.labels
    array([0, 0, 0, 1, 1], dtype=int32)
    """
    _check_split(split)
    _check_seed(seed)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction!r}; it must be above 0 and below 1.")
    labels = np.asarray(split.labels)
    classes, counts = np.unique(labels, return_counts=True)
    quotas = _apportion(counts, fraction)
    if not 0 < quotas.sum() < len(labels):
        raise ValueError(
            f"fraction is {fraction!r}, which holds out {quotas.sum()} of {len(labels)} examples; "
            "both parts must have at least one."
        )
    order = _permutation(int(seed), _LAST_STREAM, len(labels))
    held = np.zeros(len(labels), bool)
    for label, quota in zip(classes, quotas):
        held[order[labels[order] == label][:quota]] = True
    return HeldOut(_take(split, ~held), _take(split, held))


def _apportion(counts: np.ndarray, fraction: float) -> np.ndarray:
    """`fraction * counts` in integers, the missing ones given to the largest remainders."""
    shares = fraction * counts
    quotas = np.floor(shares).astype(np.int64)
    missing = int(np.floor(shares.sum() + 0.5)) - quotas.sum()
    quotas[np.argsort(quotas - shares, kind="stable")[:missing]] += 1
    return quotas


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, stream: int, num_examples: int) -> np.ndarray:
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(num_examples)
    order = np.argsort(bits, kind="stable").astype(np.int64)
    order.flags.writeable = False  # it is cached
    return order


def _padded(split: Split, start: int, batch_size: int) -> EvalBatch:
    images = np.asarray(split.images[start : start + batch_size])
    labels = np.asarray(split.labels[start : start + batch_size])
    missing = batch_size - len(labels)
    return EvalBatch(
        images=np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
        labels=np.pad(labels, (0, missing)),
        mask=np.arange(batch_size) < len(labels),
    )


def _take(split: Split, mask: np.ndarray) -> Split:
    return Split(np.asarray(split.images)[mask], np.asarray(split.labels)[mask])


def _check_split(split: Split) -> None:
    _checks.ranked(4, "[n, h, w, c]", images=split.images)
    _checks.ranked(1, "[n]", labels=split.labels)
    _checks.nonempty(images=split.images)
    _checks.axis_size(0, len(split.images), "the number of images", labels=split.labels)


def _check_seed(seed: int) -> None:
    _checks.integer(0, seed=seed)
    if seed > 2**64 - 2:
        raise ValueError(f"seed is {seed}; it must be at most 2**64 - 2.")
