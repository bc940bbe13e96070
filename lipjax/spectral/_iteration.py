"""Gram iteration of a matrix that is finite and not far from 1: bounds from both sides.

With a fixed number of products (`scaled_bound`, `scaled_enclosure`), or with one that is known only
while it runs (`scaled_enclosures`, `adaptive`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax._numerics import (
    gamma,
    power_of_two,
    round_down,
    round_up,
    safe_norm,
    safe_reciprocal,
    safe_sqrt,
    unit_roundoff,
)
from lipjax.spectral._finals import BOUNDS, top_vector, unit_vector
from lipjax.spectral._products import first_product, square, times, trace, transpose
from lipjax.typing import Array

MAX_ITERS = 16
"""Most products of `num_iters="auto"`."""


def scaled_bound(re, im, num_iters, final, with_vector=False, rounding=True):
    """The bound of a matrix that is finite and not far from 1.

    With `with_vector` also the vector near the top right singular one that was found. Without
    `rounding` what is proved of it is not added: no bound then, but what the bound is without.
    """
    swapped = re.shape[-2] < re.shape[-1]
    if swapped:  # same singular values, smaller Gram matrix
        re, im = transpose(re), None if im is None else transpose(im)
    product, error = first_product(re, im)
    errors, scales = [error], []
    for _ in range(num_iters - 1):
        scale = power_of_two(trace(product))
        product, error = square(product, scale, im is not None)
        scales.append(scale)
        errors.append(error)
    if not rounding:
        errors = [jnp.zeros_like(error) for error in errors]
    v = None
    if with_vector or final == "deflated":
        v = top_vector(product, im is not None)
    bound = BOUNDS[final](product, im is not None, v, rounding)
    for scale, error in zip(reversed(scales), reversed(errors[1:])):
        bound = round_up(safe_sqrt(bound + error) * scale, 3)
    bound = round_up(safe_sqrt(bound + errors[0]), 2)
    return bound, (_column_vector(re, im, v, swapped) if with_vector else None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def scaled_enclosure(re, im, num_iters, tol, final):
    """`(lower, upper)` of a matrix that is finite and not far from 1, with the gradient of the norm."""
    return _found(re, im, num_iters, tol, final)[:2]


@scaled_enclosure.defjvp
def _scaled_enclosure_jvp(num_iters, tol, final, primals, tangents):
    """sigma_1 = Re <u, W v> at its singular vectors, held fixed: right for the first order alone."""
    re, im = _differentiable_once(primals)
    lower, upper, v = _found(re, im, num_iters, tol, final)
    u = times(re, im, v)
    u = u * safe_reciprocal(safe_norm(u, axis=(-2, -1), keepdims=True))
    u, v = (jnp.where(jnp.isfinite(vector), vector, 0) for vector in (u, v))
    slope = jnp.sum(u * times(*tangents, v), axis=(-2, -1))
    return (lower, upper), (slope, slope)


@jax.custom_jvp
def _differentiable_once(parts):
    return parts


@_differentiable_once.defjvp
def _refused(primals, tangents):
    raise ValueError(
        "gradient is 'norm', which has first derivatives only (as have enclosures, num_iters='auto' "
        "and tighten=True); for higher ones pass gradient='bound', also to layers, an integer "
        "num_iters and tighten=False."
    )


def _found(re, im, num_iters, tol, final):
    """`(lower, upper, v)`."""
    if num_iters == "auto":
        return adaptive(re, im, tol, final)
    upper, v = scaled_bound(re, im, num_iters, final, with_vector=True)
    return scaled_rayleigh(re, im, v), upper, v


def scaled_rayleigh(re, im, v):
    """`|W v| / |v|`, rounded down: a lower bound on the norm, `float[...]`, for any v."""
    rows, cols = re.shape[-2:]
    if 2 * max(rows, cols) + 16 >= 0.25 / unit_roundoff(re.dtype):  # such sums prove nothing
        return jnp.zeros(re.shape[:-2], re.dtype)
    length = safe_norm(times(re, im, unit_vector(v)), axis=(-2, -1))
    size = safe_norm(_joined(re, im), axis=(-2, -1))
    slack = 2 * gamma(cols + 8, re.dtype) * round_up(size, 2 * rows * cols)
    short = gamma(2 * rows + 16, re.dtype) + gamma(2 * cols + 16, re.dtype)  # the two lengths
    return jnp.maximum(round_down(length * (1 - short) - slack, 8), 0)


def _column_vector(re, im, v, swapped):
    """A unit vector near the top right singular vector of the matrix that was passed in.

    `v` belongs to the columns of the matrix that was iterated on, its transpose if `swapped`.
    """
    if not swapped:
        return v
    v = times(re, im, v)  # its conjugate is the right vector of the transpose
    return unit_vector(v if im is None else jnp.stack([v[..., 0], -v[..., 1]], axis=-1))


def _joined(re, im):
    return re if im is None else jnp.concatenate([re, im], axis=-2)


class _Iteration(NamedTuple):
    """Gram iteration with a number of products that is not known while tracing."""

    product: Array
    step: Array  # the number of products so far, minus one
    scales: Array  # [MAX_ITERS, ...]
    errors: Array


def scaled_enclosures(re, im, num_iters, final):
    """As `scaled_enclosure` for a traced `num_iters`; not differentiable."""
    begun, measure = _dynamic(*lax.stop_gradient((re, im)), final)
    state = lax.fori_loop(1, num_iters, lambda _, state: _advance(state, im is not None), begun)
    lower, upper, _ = measure(state)
    return lower, upper


def adaptive(re, im, tol, final):
    """`(lower, upper, v)`: products until the enclosure is narrow, one count for the batch."""
    begun, measure = _dynamic(re, im, final)
    packed = im is not None

    def unfinished(carry):
        state, lower, upper, _, gained = carry
        wide = gained & (upper > (1 + tol) * lower) & jnp.isfinite(upper)
        return jnp.any(wide) & (state.step < MAX_ITERS - 1)

    def advance(carry):
        state, lower, upper, v, _ = carry
        state = _advance(state, packed)
        below, above, new = measure(state)
        v = jnp.where((below > lower)[..., None, None], new, v)
        lower, above = jnp.maximum(lower, below), jnp.minimum(upper, above)
        gained = upper - above > 0.05 * (upper - lower)
        return state, lower, above, v, gained

    lower, upper, v = measure(begun)
    carry = (begun, lower, upper, v, jnp.ones_like(lower, dtype=bool))
    _, lower, upper, v, _ = lax.while_loop(unfinished, advance, carry)
    return lower, upper, v


def _dynamic(re, im, final):
    """The iteration after one product, and `iteration -> (lower, upper, v)`."""
    original = re, im
    swapped, packed = re.shape[-2] < re.shape[-1], im is not None
    if swapped:
        re, im = transpose(re), None if im is None else transpose(im)
    product, error = first_product(re, im)
    ones = jnp.ones_like(error, shape=(MAX_ITERS, *error.shape))
    begun = _Iteration(product, jnp.zeros((), jnp.int32), ones, (0 * ones).at[0].set(error))

    def measure(state):
        v = top_vector(state.product, packed)
        bound = BOUNDS[final](state.product, packed, v)
        for step in reversed(range(1, MAX_ITERS)):
            wound = round_up(safe_sqrt(bound + state.errors[step]) * state.scales[step], 3)
            bound = jnp.where(step <= state.step, wound, bound)
        v = _column_vector(re, im, v, swapped)
        return scaled_rayleigh(*original, v), round_up(safe_sqrt(bound + state.errors[0]), 2), v

    return begun, measure


def _advance(state: _Iteration, packed) -> _Iteration:
    scale = power_of_two(trace(state.product))
    product, error = square(state.product, scale, packed)
    step = state.step + 1
    scales, errors = state.scales.at[step].set(scale), state.errors.at[step].set(error)
    return _Iteration(product, step, scales, errors)
