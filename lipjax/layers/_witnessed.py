"""The norm of the very floats that a layer multiplies with, proved from their witness in float64.

The witness, `log_q`, are weights of the diagonal dominance: row sums of the Gram matrix with them are
quick to find. Where they prove no norm of 1, or more is worth having, the norm is proved by itself.
"""

import math

import jax.numpy as jnp

from lipjax.spectral.conv import conv_gram_iteration
from lipjax.spectral.proved import proved_norm
from lipjax.spectral.rescaling import conv_dominating_diagonal, dominating_diagonal

PROVED = 1 + 1e-6
"""Up to this squared norm the quick proof is taken as it is, where the slow one takes long."""

CHEAP_DENSE, CHEAP_CONV = 2**20, 2**28
"""Linear forms up to this size, or work at all frequencies, get the slow proof too: about a second."""


def squared_norm(kernel, log_q, step):
    """Upper bound on `|W diag(step / 2)^(1/2)|^2`, float64; `step` None for none."""
    scale = jnp.ones(kernel.shape[-1]) if step is None else step / 2
    if float(jnp.min(scale)) < 0:  # no diagonal T at all
        return jnp.inf
    # Residual forms gain nothing from norms below 1; linear ones may be far below what row sums say.
    cheap = step is None and _is_cheap(kernel)
    rows, cols = kernel.shape[-2:]
    quick, of_inputs = jnp.inf, step is None and log_q.shape[-1] == rows
    if of_inputs:  # the witness may be theirs
        turned = jnp.swapaxes(kernel, -1, -2)
        quick = _quick_proof(turned, log_q, jnp.ones(rows), again=True)
        if float(quick) <= PROVED and not cheap:
            return quick
    if not of_inputs or (rows == cols and float(quick) > PROVED):
        quick = jnp.fmin(quick, _quick_proof(kernel, log_q, scale, again=step is None))
        if float(quick) <= PROVED and not cheap:
            return quick
    return jnp.fmin(quick, _slow_proof(kernel, scale))


def _is_cheap(kernel):
    *window, rows, cols = kernel.shape
    if not window:
        return kernel.size <= CHEAP_DENSE
    frequencies = math.prod(max(32, 16 * (k - 1)) for k in window) // 2
    least, most = sorted((rows, cols))
    return most <= 512 and frequencies * most * least**2 <= CHEAP_CONV


def _quick_proof(kernel, log_q, scale, *, again):
    """Weighted row sums with the witness; infinite where they cannot be trusted.

    With `again`, also what was rescaled by a power N of the Gram matrix: the same rescaling undone
    and done again.
    """
    dense = kernel.ndim == 2
    diagonal = dominating_diagonal if dense else conv_dominating_diagonal
    t = diagonal(kernel, log_q=log_q)
    quick = jnp.max(jnp.where(t > 0, t * scale, 0)) * (1 + 1e-14)
    quick = jnp.where(jnp.isnan(t * scale).any(), jnp.inf, quick)
    alive = jnp.any(kernel != 0, axis=tuple(range(kernel.ndim - 1))) & (scale > 0)
    if bool(jnp.any(alive & (t == 0))):  # underflow: the row sums do not see these
        quick = jnp.inf
    if float(quick) <= PROVED or dense or not again:
        return quick
    for num_iters in (2, 3):
        undone = kernel * jnp.broadcast_to(jnp.exp(log_q), kernel.shape)
        t = diagonal(undone, num_iters=num_iters)
        done = jnp.max(t * jnp.exp(-2 * log_q)) * (1 + 1e-13 * math.sqrt(kernel.size))
        sure = jnp.isfinite(done) & ~jnp.any(alive & (t == 0))
        quick = jnp.fmin(quick, jnp.where(sure, done, jnp.inf))
        if float(quick) <= PROVED:
            break
    return quick


def _slow_proof(kernel, scale):
    """Gram iteration, or for a matrix the proof by a Cholesky factorization."""
    scaled = kernel * jnp.broadcast_to(jnp.sqrt(scale), kernel.shape)
    if kernel.ndim == 2:
        slow = proved_norm(scaled)
    else:
        slow = conv_gram_iteration(scaled, padding="any", num_iters=12)
    # Rounding each entry of the scaled kernel moves its symbol by at most u sqrt(size) norms.
    slow = jnp.square(slow) * (1 + 1e-14 + 1e-15 * math.sqrt(kernel.size))
    alive = jnp.any(kernel != 0, axis=tuple(range(kernel.ndim - 1))) & (scale > 0)
    floor = jnp.where(jnp.any(alive), float(jnp.finfo(jnp.float64).tiny), 0)  # squares underflow
    return jnp.maximum(slow, floor)
