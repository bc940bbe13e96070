"""Exact sums: of any order and number of parts, against integers."""

import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.smoothing import moments


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_sums_are_those_of_integers_for_every_number_of_parts(parts):
    scores = np.random.default_rng(0).uniform(0, 1, (210, 3)).astype(np.float32)
    fixed = np.floor(scores * 2.0**24).astype(np.int64).astype(object)
    found = moments.of_none(3)
    for part in np.split(scores, parts)[::-1]:
        one = moments.of_scores(jnp.asarray(part), jnp.ones(len(part), bool))
        found = moments.merge(found, one)
    assert found.count == 210
    for digits, exact in ((found.total, fixed.sum(0)), (found.squares, (fixed * fixed).sum(0))):
        rows = np.asarray(digits, np.int64).astype(object)
        value = sum(row * 4096 ** (len(rows) - 1 - i) for i, row in enumerate(rows))
        assert (value == exact).all()
    wrong = moments.merge(found, found)  # negative control
    assert wrong.count != 210 and (np.asarray(wrong.total) != np.asarray(found.total)).any()
