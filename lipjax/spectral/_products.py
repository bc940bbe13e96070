"""Gram products of the iteration, with a proved bound on the rounding of each.

A Hermitian matrix `X = A + iB` is kept packed, as the one real matrix `M = A + B`: A is the
symmetric part of M and B the antisymmetric one.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lipjax._numerics import einsum, gamma, matmul, round_up
from lipjax.typing import Array

BLOCK = 256
"""Longest sum that one matrix product may form: shorter sums have smaller proved errors."""
SMALL = 32
"""Up to this size a sum of products is faster on CPUs than a call of the matrix product."""


def first_product(re, im):
    """`W^* W` of `float[..., p, q]`, packed if complex, and a bound on the rounding (Frobenius).

    Packed, the product is `A^T (A + B) + B^T (B - A)`, whose rounding is at most
    `gamma (|A| |A + B| + |B| |B - A|) <= sqrt(2) gamma |W|_F^2`.
    """
    if im is None:
        return _with_rounding(_self_product(re), sum_length(re.shape[-2]), False)
    left = jnp.concatenate([transpose(re), transpose(im)], axis=-1)
    right = jnp.concatenate([re + im, im - re], axis=-2)
    length = 2 * re.shape[-2]
    if length <= BLOCK:
        return _with_rounding(matmul(left, right), length, True)
    step = BLOCK // 2  # what is rounded here weighs most in the end
    starts = range(0, length, step)
    parts = [matmul(left[..., i : i + step], right[..., i : i + step, :]) for i in starts]
    return _with_rounding(sum(parts[1:], parts[0]), step + len(parts), True)


def square(product, scale, packed):
    """The square of a Hermitian `product / scale`, and a bound on its rounding.

    Packed, `M = A + B` has the square `M A + M^T B`, and the rounding is at most
    `gamma |M| (|A| + |B|) <= sqrt(2) gamma |M|_F^2`.
    """
    product = product / scale[..., None, None]
    if not packed:
        return _with_rounding(_self_product(product), sum_length(product.shape[-1]), False)
    flipped = transpose(product)
    even, odd = (product + flipped) / 2, (product - flipped) / 2
    # One product with operands laid out for it: twice as fast on CPUs as a transposed one.
    left = jnp.concatenate([product, flipped], axis=-1)
    right = jnp.concatenate([even, odd], axis=-2)
    return _with_rounding(matmul(left, right), 2 * product.shape[-1], True)


def _with_rounding(product, length, packed):
    """The Gram product, and a bound on its rounding if entries are sums of `length` terms.

    The trace of the product is the squared Frobenius norm of the factor, up to the same rounding.
    """
    relative = (1.4143 if packed else 1.0) * gamma(length + 10, product.dtype)
    shortfall = 2 * relative + 2 * gamma(product.shape[-1] + 2, product.dtype)  # of the trace
    error = round_up(trace(product) * (relative / (1 - shortfall)), 8)
    return product, lax.stop_gradient(error)


@jax.custom_jvp
def _self_product(a):
    """`a^T a`, for real matrices."""
    return contract(a, a)


@_self_product.defjvp
def _self_product_jvp(primals, tangents):
    half = contract(tangents[0], primals[0])  # one product; autodiff would take two
    return _self_product(primals[0]), half + transpose(half)


def sum_length(rows: int) -> int:
    """The number of roundings behind an entry of `contract` of that many rows."""
    return min(rows, BLOCK) + -(-rows // BLOCK)


def contract(a: Array, b: Array) -> Array:
    """`a^T b` over axis -2, as a sum of products over blocks of at most `BLOCK` rows."""
    rows = a.shape[-2]
    if rows <= BLOCK:
        return matmul(transpose(a), b)
    blocks = -(-rows // BLOCK)

    def split(x):
        pad = [(0, 0)] * (x.ndim - 2) + [(0, blocks * BLOCK - rows), (0, 0)]
        x = jnp.pad(x, pad).reshape(*x.shape[:-2], blocks, BLOCK, x.shape[-1])
        return jnp.moveaxis(x, -3, 0)

    def add(total, ab):
        return total + matmul(transpose(ab[0]), ab[1]), None

    a, b = split(a), split(b)
    first = matmul(transpose(a[0]), b[0])
    return lax.scan(add, first, (a[1:], b[1:]))[0]


def apply(product, v, packed):
    """`X v` for a Hermitian X and `v` as `_largest_column` gives it."""
    forth = _columns(product, v)
    if not packed:
        return forth
    back = _columns(transpose(product), v)
    even, odd = (forth + back) / 2, (forth - back) / 2  # A v and B v
    return _complex_sum(even, odd)


def _columns(a, v):
    """`a @ v` for one or two columns."""
    if a.shape[-1] > SMALL:
        return matmul(a, v)
    return (a[..., None] * v[..., None, :, :]).sum(-2)


def _complex_sum(of_real, of_imaginary):
    """`(A + iB) v` from `A v` and `B v`, real and imaginary parts on the last axis."""
    real = of_real[..., 0] - of_imaginary[..., 1]
    imaginary = of_real[..., 1] + of_imaginary[..., 0]
    return jnp.stack([real, imaginary], axis=-1)


def times(re, im, v):
    """`W v` for `W = re + i im`, with one or two columns for the parts of `v`."""
    product = einsum("...ij,...jk->...ik", re, v)
    return product if im is None else _complex_sum(product, einsum("...ij,...jk->...ik", im, v))


def trace(product):
    size = product.shape[-1]
    return product.reshape(*product.shape[:-2], -1)[..., :: size + 1].sum(-1)


def transpose(x):
    return jnp.swapaxes(x, -1, -2)
