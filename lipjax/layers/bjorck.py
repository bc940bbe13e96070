r"""Björck orthogonalization: $W \leftarrow \tfrac32 W - \tfrac12 W W^T W$ until $W^T W = I$.

Each step maps a singular value $s$ to $p(s) = \tfrac32 s - \tfrac12 s^3$, which stays in [-1, 1] for
all $s$ in [0, 2] and grows towards 1. So the result is a contraction after any number of steps, and
even when the norm that W is divided by first was underestimated by up to a factor of two. (Not every
polynomial in use has that property: the quintic of the Muon optimizer reaches 1.2.)

Reference: Björck, Bowie (1971), https://doi.org/10.1137/0708036; in networks Anil, Lucas, Grosse
(2019), https://arxiv.org/abs/1811.05381.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax._numerics import matmul, safe_abs, safe_norm
from lipjax.layers import _parameters, forms, normalized
from lipjax.layers._explicit import (
    Params,
    at_most,
    gram,
    gram_of_steps,
    isometric,
    leading_one,
    upright,
)
from lipjax.layers.forms import Linear
from lipjax.layers.forms import linear_bound as bound
from lipjax.layers.forms import linear_dense as apply_dense
from lipjax.typing import Array

__all__ = ["Params", "apply_dense", "bound", "constrain_dense", "freeze_dense", "init_dense"]


def init_dense(key: Array, in_features: int, out_features: int) -> Params:
    """An isometry: the identity, or random orthonormal columns or rows for unequal widths.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    return isometric(key, in_features, out_features)


def constrain_dense(params: Params, *, num_steps: int = 15, adaptive: bool = True) -> Linear:
    """The weights of the layer: up to `num_steps` steps from the kernel over a bound of its norm.

    The bound, from row sums and the Frobenius norm of `W^T W`, costs no product of its own.

    Steps end where one more would change no weight, and a gradient by about 1e-4 of it: near an
    isometry, as in most of a training, after one to five. Under `vmap`, where the last one ends.
    Second derivatives are those of the steps taken: at an isometry, where one is, even their sign may
    be another. Those of the orthogonal factor take `adaptive=False`, all steps.

    Guarantee: norm at most 1 up to the rounding of one step, about 1e-6 (below 1e-5 for a
    thousand rows); `bound` proves what these floats have. Singular values come within 2 % of
    1 from 0.01 of that bound in 15 steps; zero stays zero, so a kernel without full rank is a
    contraction, with finite gradients. NaN in gives NaN out.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(abs(weights.kernel.T @ weights.kernel - jax.numpy.eye(3)).max() < 1e-5)
    True
    """
    _checks.integer(0, num_steps=num_steps)
    params = _parameters.of_dense(Params, params)
    if num_steps == 0:
        return normalized.constrain_dense(params)

    def steps(w):
        # An upper bound of the norm, tight for isometries, from the product of the first step.
        product = gram(w)
        rows = jnp.max(jnp.sum(safe_abs(product), axis=-1))
        square = jnp.minimum(rows, safe_norm(product))
        inverse = jnp.where(square == 0, 1, 1 / jnp.where(square == 0, 1, square))
        carry = _stepped(w * jnp.sqrt(inverse), product * inverse)
        if num_steps > 1:
            carry = _unless_done(_step, carry, adaptive)
        if num_steps > 2:  # made again for the gradient: kept, they would fill memory when not made
            rest = jax.checkpoint(functools.partial(_steps, num_steps - 2, adaptive))
            carry = _unless_done(rest, carry, adaptive)
        return carry[0]

    return forms.linear(upright(steps, leading_one(params.kernel)), params.bias)


def _unless_done(steps, carry, adaptive):
    """`steps` of W and its distance from an isometry, unless one more would change nothing."""
    if not adaptive:
        return steps(carry)
    done = at_most(lax.stop_gradient(carry[1]), 0.1 * jnp.finfo(carry[0].dtype).eps)
    return lax.cond(done, lambda carry: carry, steps, carry)


def _steps(length, adaptive, carry):
    def one(carry, _):
        return _unless_done(_step, carry, adaptive), None

    return lax.scan(one, carry, length=length)[0]


def _step(carry):
    return _stepped(carry[0], gram_of_steps(carry[0]))


def _stepped(w, product):
    """The next W, and a bound on how far its `W^T W` is from the identity."""
    away = jnp.linalg.norm(lax.stop_gradient(product) - jnp.eye(w.shape[-1], dtype=w.dtype))
    # A step takes e = 1 - s^2 to (3 e^2 + e^3) / 4.
    return 1.5 * w - 0.5 * matmul(w, product), away * away * (3 + away) / 4


def freeze_dense(params: Params, *, num_steps: int = 15) -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation."""
    return forms.frozen(functools.partial(constrain_dense, num_steps=num_steps), params)
