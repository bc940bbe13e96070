"""What contractions share that end in a plain kernel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import einsum, matmul, power_of_two
from lipjax.layers import _initializers
from lipjax.typing import Array


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`.
        bias: `float[m]`.
    """

    kernel: Array
    bias: Array


def isometric(key, in_features: int, out_features: int, window=()) -> Params:
    """The identity, or random orthonormal columns or rows for unequal widths; no bias."""
    _checks.integer(1, in_features=in_features, out_features=out_features)
    kernel = _initializers.identity_or_orthogonal(key, (*window, in_features, out_features))
    return Params(kernel, jnp.zeros(out_features))


def leading_one(kernel):
    """The kernel with its largest entry between 1 and 2, exactly; zero and NaN as they are."""
    kernel = jnp.asarray(kernel)
    return kernel / power_of_two(jnp.max(jnp.abs(kernel)))


def upright(make, kernel):
    """`make` of the kernel, or of its transpose when that has fewer columns."""
    if kernel.shape[-2] >= kernel.shape[-1]:
        return make(kernel)
    return jnp.swapaxes(make(jnp.swapaxes(kernel, -1, -2)), -1, -2)


def adjoint(x):
    """The conjugate transpose of the last two axes."""
    return jnp.conj(jnp.swapaxes(x, -1, -2))


BLOCK = 32
"""Squares are added so many at a time: the rounding of long sums of one sign does not cancel."""


@jax.custom_jvp
def gram(w):
    """`W^* W`; the two halves of its derivative are one product, which reverse mode does not see."""
    return matmul(adjoint(w), w)


@jax.custom_jvp
def gram_of_steps(w):
    """`gram` for a Björck step, with sums of squares on the diagonal that are added up in blocks.

    They decide about the norm where columns are nearly orthonormal. Not for factorizations: beside
    entries of long sums the matrix of columns that are alike has negative eigenvalues.
    """
    product = gram(w)
    rows, cols = w.shape[-2:]
    if rows <= BLOCK:
        return product
    squares = (jnp.conj(w) * w).real
    squares = jnp.pad(squares, [(0, 0)] * (w.ndim - 2) + [(0, -rows % BLOCK), (0, 0)])
    blocks = squares.reshape(*w.shape[:-2], -(-rows // BLOCK), BLOCK, cols)
    diagonal = jnp.sum(jnp.sum(blocks, axis=-2), axis=-2).astype(w.dtype)
    return jnp.where(jnp.eye(cols, dtype=bool), diagonal[..., None, :], product)


def _gram_jvp(made, primals, tangents):
    half = matmul(adjoint(primals[0]), tangents[0])
    return made(*primals), half + adjoint(half)


gram.defjvp(functools.partial(_gram_jvp, gram))
gram_of_steps.defjvp(functools.partial(_gram_jvp, gram_of_steps))


def whitened(v, eps: float):
    """`V L^-*` with `L L^* = V^* V + eps mean(diag) I`: of norm at most 1, near 1 unless V is small."""
    return _whitened(v, eps)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _whitened(v, eps):
    """`whitened`, and the `L^-1` that it takes; four products for a gradient, as many as inputs have."""
    product, cols = gram(v), v.shape[-1]
    # Where the kernel is zero any positive number will do; the factor must exist.
    damping = (eps * einsum("...ii->...", product).real / cols + 1e-12).astype(v.dtype)
    eye = jnp.broadcast_to(jnp.eye(cols, dtype=v.dtype), product.shape)
    inverse = _factored(product + eye * damping[..., None, None])
    return matmul(v, adjoint(inverse)), inverse


@_whitened.defjvp
def _whitened_jvp(eps, primals, tangents):
    (v,), (dv,) = primals, tangents
    made, inverse = _whitened(v, eps)
    moved = matmul(dv, adjoint(inverse))
    across = matmul(adjoint(made), moved)
    damping = (2 * eps / v.shape[-1]) * jnp.sum(
        (jnp.conj(v) * dv).real, axis=(-2, -1), keepdims=True
    )
    inside = across + adjoint(across) + matmul(inverse, adjoint(inverse)) * damping.astype(v.dtype)
    half = (jnp.tril(inside) + jnp.tril(inside, -1)) / 2  # L^-1 dL, of the factor L
    return (made, inverse), (moved - matmul(made, adjoint(half)), -matmul(half, inverse))


def one_by_one(fn):
    """`fn` of matrices `[..., n, m]`; on CPUs one after the other, also under `vmap`.

    Three batched factorizations at a time make the CPU backend of JAX 0.10 wait for ever: each keeps a
    thread of the pool that it shares its matrices out to. As a loop they take the same time.
    """

    @jax.custom_batching.custom_vmap
    def run(*args):
        lead = args[0].shape[:-2]
        if not lead or jax.default_backend() != "cpu":
            return fn(*args)
        flat = tuple(a.reshape(-1, *a.shape[-2:]) for a in args)
        made = jax.lax.map(lambda one: fn(*one), flat)
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), made)

    @run.def_vmap
    def _batched(size, batched, *args):
        wide = [
            a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
            for a, is_batched in zip(args, batched)
        ]
        made = run(*wide)
        return made, jax.tree.map(lambda leaf: True, made)

    return run


@one_by_one
def _factored(matrix):
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    lower = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    return jax.lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)


@one_by_one
def _inverted(matrix):
    return jnp.linalg.inv(matrix)


@jax.custom_jvp
def inverse(matrix):
    """The inverse, whose derivative takes products alone."""
    return _inverted(matrix)


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    made = inverse(*primals)
    return made, -matmul(made, matmul(tangents[0], made))


@one_by_one
def _upper_inverted(matrix):
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return jax.lax.linalg.triangular_solve(matrix, eye, left_side=True)


@jax.custom_jvp
def inverse_upper(matrix):
    """`inverse` of an upper triangular matrix."""
    return _upper_inverted(matrix)


@inverse_upper.defjvp
def _inverse_upper_jvp(primals, tangents):
    made = inverse_upper(*primals)
    return made, -matmul(made, matmul(jnp.triu(tangents[0]), made))


def bjorck_step(w):
    """`(3 W - W W^* W) / 2` for at least as many rows as columns: norms up to 2 become at most 1."""
    return 1.5 * w - 0.5 * matmul(w, gram_of_steps(w))


@jax.custom_jvp
def straightened(w):
    """`bjorck_step` of columns that are orthonormal but for rounding, which it takes off.

    Its derivative is the identity: it is for functions whose values, and so whose derivatives, lie
    along the orthonormal matrices, where a step moves nothing but rounding.
    """
    return bjorck_step(w)


@straightened.defjvp
def _straightened_jvp(primals, tangents):
    return straightened(*primals), tangents[0]


@jax.custom_batching.custom_vmap
def at_most(value, limit):
    """Whether it is; of a batch, whether all are, so that a `cond` on it computes one branch."""
    return value <= limit


@at_most.def_vmap
def _all_at_most(size, batched, value, limit):
    return at_most(jnp.max(value), jnp.max(limit)), False
