r"""Björck orthogonalization: $W \leftarrow \tfrac32 W - \tfrac12 W W^T W$ until $W^T W = I$.

Each step maps a singular value $s$ to $p(s) = \tfrac32 s - \tfrac12 s^3$, which stays in [-1, 1] for
all $s$ in [0, 2] and grows towards 1. So the result is a contraction after any number of steps, and
even when the norm that W is divided by first was underestimated by up to a factor of two. (Not every
polynomial in use has that property: the quintic of the Muon optimizer reaches 1.2.)

Reference: Björck, Bowie (1971), https://doi.org/10.1137/0708036; in networks Anil, Lucas, Grosse
(2019), https://arxiv.org/abs/1811.05381.
"""

import functools

from jax import lax

from lipjax import _checks
from lipjax.layers import forms, normalized
from lipjax.layers._explicit import Params, bjorck_step, isometric, upright
from lipjax.layers.forms import Linear
from lipjax.layers.forms import linear_bound as bound
from lipjax.layers.forms import linear_dense as apply_dense
from lipjax.typing import Array

__all__ = ["Params", "apply_dense", "bound", "constrain_dense", "freeze_dense", "init_dense"]


def init_dense(key: Array, in_features: int, out_features: int) -> Params:
    """An isometry: the identity, or random orthonormal columns or rows for unequal widths."""
    return isometric(key, in_features, out_features)


def constrain_dense(params: Params, *, num_steps: int = 15) -> Linear:
    """The weights of the layer: `num_steps` steps from the kernel over a bound of its norm.

    Guarantee: norm at most 1 up to the rounding of one step, about 1e-6; `bound` proves what these
    floats have. Singular values below 1 come within 2 % of it from 0.01 in 15 steps; zero stays
    zero, so a kernel without full rank is a contraction, with finite gradients. NaN in gives NaN out.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(abs(weights.kernel.T @ weights.kernel - jax.numpy.eye(3)).max() < 1e-5)
    True
    """
    _checks.integer(0, num_steps=num_steps)
    start = normalized.constrain_dense(Params(*params[:2])).kernel

    def steps(w):
        return lax.scan(lambda w, _: (bjorck_step(w), None), w, length=num_steps)[0]

    kernel = upright(steps, start)
    return forms.linear(kernel, params.bias)


def freeze_dense(params: Params, *, num_steps: int = 15) -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation."""
    return forms.frozen(functools.partial(constrain_dense, num_steps=num_steps), params)
