r"""Weighted row sums of $|W^T W|$, the cost of every constrained dense layer.

The Gram matrix is symmetric: large ones are formed in blocks, each pair of blocks once, and no block is
kept. What the gradient needs of them are the signs, one byte an entry.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from lipjax._numerics import einsum, matmul, safe_abs
from lipjax.spectral._products import contract, transpose
from lipjax.typing import Array

BLOCKS = 2
"""3 of 4 products remain; with more blocks their smaller products lose what is saved."""

LARGE = 1024
"""From so many columns on the blocks are large enough to multiply at full speed."""


@jax.custom_vjp
def abs_gram_sums(matrix: Array, weights: Array) -> Array:
    """`sum_j |W^T W|_ij r_j` of `W = matrix [..., n, m]` and `r = weights [..., m]`, positive.

    The backward pass takes one product of the size of the matrix with the Gram matrix, where automatic
    differentiation would take two.
    """
    return _forward(matrix, weights)[0]


def _forward(matrix, weights):
    """The sums, and the signs of each block `(i, j)` with i at most j."""
    parts, sums, signs = _split(matrix), [0.0] * _count(matrix), {}
    scales = _split(weights)
    for i, j in _pairs(parts):
        block = contract(parts[i], parts[j])
        signs[i, j] = jnp.sign(block).astype(jnp.int8)
        block = safe_abs(block)
        sums[i] = sums[i] + einsum("...ij,...j->...i", block, scales[j])
        if i < j:
            sums[j] = sums[j] + einsum("...ij,...i->...j", block, scales[i])
    return jnp.concatenate(sums, axis=-1), signs


def _saved(matrix, weights):
    sums, signs = _forward(matrix, weights)
    return sums, (matrix, weights, sums, signs)


def _backward(saved, cotangent):
    matrix, weights, sums, signs = saved
    parts, scales, slopes = _split(matrix), _split(weights), _split(cotangent)
    moved = [0.0] * len(parts)
    for i, j in _pairs(parts):
        outer = slopes[i][..., :, None] * scales[j][..., None, :]
        outer = outer + scales[i][..., :, None] * slopes[j][..., None, :]
        signed = signs[i, j].astype(matrix.dtype) * outer
        moved[j] = moved[j] + matmul(parts[i], signed)
        if i < j:
            moved[i] = moved[i] + matmul(parts[j], transpose(signed))
    moved = jnp.concatenate(moved, axis=-1)
    # sum_i |G|_ij c_i, from W_j . dW_j = r_j sum_i |G|_ij c_i + c_j sum_i |G|_ij r_i.
    along = jnp.sum(matrix * moved, axis=-2)
    return moved, (along - cotangent * sums) / weights


abs_gram_sums.defvjp(_saved, _backward)


def _count(matrix) -> int:
    return BLOCKS if matrix.shape[-1] >= LARGE else 1


def _split(x):
    """Views of the last axis, all but the last of one size."""
    size = -(-x.shape[-1] // _count(x))
    return [
        lax.slice_in_dim(x, a, min(a + size, x.shape[-1]), axis=-1)
        for a in range(0, x.shape[-1], size)
    ]


def _pairs(parts):
    return itertools.combinations_with_replacement(range(len(parts)), 2)
