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


@jax.custom_jvp
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


@abs_gram_sums.defjvp
def _derivative(primals, tangents):
    matrix, weights = primals
    sums, signs = _forward(matrix, weights)
    scaling = tangents[1] / weights
    # The checkpoint keeps the signs as they are for the backward pass, not as floats.
    change = jax.checkpoint(_change)(signs, matrix, weights, tangents[0], scaling)
    return sums, change - scaling * sums


def _change(signs, matrix, weights, moved, scaling):
    """How the sums change with the matrix, by products whose transposes are as few.

    Weights times `exp(s)` are columns times `exp(s)`, and sums divided by it.
    """
    moved = moved + matrix * jnp.expand_dims(scaling, -2)
    parts, scales, moves = _split(matrix), _split(weights), _split(moved)
    changes = [0.0] * len(parts)
    for i, j in _pairs(parts):
        block = matmul(transpose(moves[i]), parts[j])
        other = block if i == j else matmul(transpose(moves[j]), parts[i])
        block = signs[i, j].astype(matrix.dtype) * (block + transpose(other))
        changes[i] = changes[i] + einsum("...ij,...j->...i", block, scales[j])
        if i < j:
            changes[j] = changes[j] + einsum("...ij,...i->...j", block, scales[i])
    return jnp.concatenate(changes, axis=-1)


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
