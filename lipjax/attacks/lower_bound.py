"""A Lipschitz constant from below: the largest Jacobian norm that is found.

The counterpart of every upper bound: a layer that claims the constant 1 must not show a Jacobian
of norm 1.1 anywhere.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax._numerics import round_down
from lipjax.attacks._common import (
    as_argument,
    at_least_float32,
    box_ends,
    norm_roundings,
    row_norm,
)
from lipjax.typing import Bound


def lipschitz_lower_bound(
    key,
    fn,
    x,
    *,
    num_power_iters: int = 20,
    num_ascent_steps: int = 0,
    step_size: float = 0.01,
    bounds: tuple[float, float] | None = None,
) -> Bound:
    """Lower bound of the l2 Lipschitz constant of `fn`: its largest Jacobian norm at some points.

    Power iteration on `J^T J` at every point, through forward and reverse derivatives, gives unit
    directions `u`; the value is the largest `||J u||`. With ascent steps the points then move along
    the gradient of `||J u||`, and every place on the way counts. (The Jacobian of a piecewise
    linear `fn` is locally constant: there the gradient is zero and no point moves.)

    Args:
        key: A PRNG key for the first directions.
        fn: Maps a batch `[n, ...]`, each example by itself, to a batch `[n, ...]` of any shape. The
            rule for tracing is that of `pgd`: a callable pytree, such as
            `jax.tree_util.Partial(apply, params)`, hands over its arrays as arguments; any other
            function is traced once per function object. It runs at the highest matrix precision.
        x: `float[n, ...]`, the points.
        num_power_iters: Applications of `J^T J` at every point; two more after each ascent step.
        num_ascent_steps: How often every point moves.
        step_size: Length of such a move, l2, in the units of `x`.
        bounds: The box, two numbers `(low, high)`, in which the points stay, or None.

    Returns:
        `Bound(value, "lower")` with `value: float[]`, the largest over all points.

    Guarantee: `value` is at most the largest Jacobian norm at the visited points, as float32
    evaluates the derivative of `fn`; the norms are rounded down. So it is at most the Lipschitz
    constant on any convex region around them, provided `fn` is differentiable there. At a kink
    JAX takes one of the one-sided derivatives for each operation, whose combination need not be a
    derivative of `fn`: a point on a kink (an all-black image before a ReLU without bias) proves
    nothing, so prefer points in general position. 0 where every Jacobian is zero; NaN where one is
    not a number.

    Raises:
        ValueError: For a wrong shape, dtype or option.

    Power iteration by automatic differentiation: Virmaux and Scaman (2018),
    https://arxiv.org/abs/1805.10965 (there for single layers, as an estimate).

    >>> fn = lambda x: x @ jnp.diag(jnp.array([3.0, 1.0]))
    >>> bound = lipschitz_lower_bound(jax.random.key(0), fn, jnp.ones((4, 2)))
    >>> bound.kind, round(float(bound.value), 4)
    ('lower', 3.0)
    """
    x = jnp.asarray(x)
    _checks.one_key(key=key)
    _checks.at_least_rank(1, "a batch [n, ...] of points", x=x)
    _checks.nonempty(x=x)
    _checks.real_floating(x=x)
    _checks.integer(1, num_power_iters=num_power_iters)
    _checks.integer(0, num_ascent_steps=num_ascent_steps)
    _checks.positive(step_size=step_size)
    bounds = None if bounds is None else box_ends(bounds, x.dtype)
    options = dict(num_power_iters=num_power_iters, num_ascent_steps=num_ascent_steps)
    return Bound(_largest_norm(key, as_argument(fn), x, step_size, bounds, **options), "lower")


@functools.partial(jax.jit, static_argnames=("num_power_iters", "num_ascent_steps"))
def _largest_norm(key, fn, x, step_size, bounds, *, num_power_iters, num_ascent_steps):
    shape, n = x.shape, x.shape[0]

    def flat_fn(x):
        with jax.default_matmul_precision("highest"):
            y = fn(x.reshape(shape))
        if y.shape[:1] != (n,) or not jnp.issubdtype(y.dtype, jnp.floating):
            raise ValueError(
                f"fn returns {y.dtype}{list(y.shape)}; it must map a batch of shape {shape} to a "
                f"floating batch [{n}, ...]."
            )
        return at_least_float32(y).reshape(n, -1)

    def power(x, u, num_iters):
        """Unit directions after `num_iters` steps, and a lower bound of `||J||` at each point."""
        _, forward = jax.linearize(flat_fn, x)
        backward = jax.linear_transpose(forward, x)

        def step(u, _):
            (w,) = backward(_unit(forward(u)))
            return jnp.where(row_norm(w)[:, None] > 0, _unit(w), u), None

        u, _ = lax.scan(step, u, length=num_iters)
        image = forward(u)
        roundings = norm_roundings(image.shape[1]) + norm_roundings(u.shape[1]) + 2
        return u, round_down(row_norm(image) / row_norm(u), roundings)

    def ascend(state, _):
        x, u, best = state
        gradient = jax.grad(lambda x: row_norm(jax.jvp(flat_fn, (x,), (u,))[1]).sum())(x)
        gradient = jnp.where(jnp.isfinite(gradient).all(axis=1, keepdims=True), gradient, 0)
        x = x + step_size * _unit(gradient)
        if bounds is not None:
            x = jnp.clip(x, bounds[0], bounds[1])
        u, norms = power(x, u, 2)
        return (x, u, jnp.maximum(best, norms)), None

    x = x.reshape(n, -1)
    u = jax.random.normal(key, x.shape, x.dtype) + jnp.zeros_like(x)  # as sharded as x
    u, best = power(x, _unit(u), num_power_iters)
    if num_ascent_steps:
        (_, _, best), _ = lax.scan(ascend, (x, u, best), length=num_ascent_steps)
    return best.max()


def _unit(rows):
    """Every row with norm 1; rows of zeros stay."""
    length = row_norm(rows)[:, None]
    return rows / jnp.where(length == 0, 1, length)
