"""The triangular schedule against interpolation in NumPy, and inside an optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipjax.training import triangular


def test_it_interpolates_the_published_points():
    schedule, steps = triangular(0.01, 1000), np.arange(1001)
    turns, rates = np.array([0, 0.4, 0.8, 1]) * 1000, np.array([0, 0.01, 0.01 / 20, 0])
    ours = jax.jit(jax.vmap(schedule))(jnp.arange(1001))
    np.testing.assert_allclose(ours, np.interp(steps, turns, rates), rtol=1e-5, atol=1e-9)
    assert int(jnp.argmax(ours)) == 400


def test_it_stays_at_zero_after_the_end():
    schedule = triangular(1.0, 10)
    assert schedule(0) == schedule(10) == schedule(11) == schedule(10**6) == 0
    assert all(schedule(step) > 0 for step in range(1, 10))


def test_optax_takes_it():
    optimizer = optax.sgd(triangular(1.0, 10))
    params = jnp.zeros(2)
    state = optimizer.init(params)
    moves = []
    for _ in range(10):
        updates, state = optimizer.update(jnp.ones(2), state, params)
        moves.append(-float(updates[0]))
    rates = [0, 0.25, 0.5, 0.75, 1, 0.7625, 0.525, 0.2875, 0.05, 0.025]
    np.testing.assert_allclose(moves, rates, rtol=1e-5)


@pytest.mark.every
@pytest.mark.parametrize("peak, num_steps", [(0.0, 10), (np.inf, 10), (1.0, 0), (1.0, 2.5)])
def test_errors(peak, num_steps):
    with pytest.raises(ValueError, match="is"):
        triangular(peak, num_steps)
