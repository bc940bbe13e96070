"""Learning rate schedules that optax does not have: functions of the update count."""

import jax.numpy as jnp
import optax

from lipjax import _checks

_FRACTIONS = (0.0, 0.4, 0.8, 1.0)


def triangular(peak: float, num_steps: int) -> optax.Schedule:
    """Up to `peak` at 2/5 of the run, down to `peak / 20` at 4/5, down to 0 at its end.

    Piecewise linear in between. The first update has rate 0, and so has every one from
    `num_steps` on.

    Args:
        peak: The largest learning rate, above 0.
        num_steps: Number of updates of the whole run.

    Returns:
        An optax schedule: `int[] -> float32[]`.

    Raises:
        ValueError: An argument is out of range.

    Reference: the recipe of CPL (Meunier et al., 2022) and SLL (Araujo et al., 2023),
    https://arxiv.org/abs/2303.03169.

    >>> schedule = triangular(0.01, 100)
    >>> [round(float(schedule(step)), 5) for step in (0, 20, 40, 80, 90, 100)]
    [0.0, 0.005, 0.01, 0.0005, 0.00025, 0.0]
    """
    _checks.positive(peak=peak)
    _checks.integer(1, num_steps=num_steps)

    def schedule(count):
        turns = jnp.array(_FRACTIONS, jnp.float32) * num_steps
        rates = jnp.array((0.0, 1.0, 0.05, 0.0), jnp.float32) * peak
        return jnp.interp(jnp.asarray(count).astype(jnp.float32), turns, rates)

    return schedule
