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


def first_product(re, im):
    """`W^* W` of `float[..., p, q]`, packed if complex, and a bound on the rounding (Frobenius).

    Packed, the product is `A^T (A + B) + B^T (B - A)`, whose rounding is at most
    `gamma (|A| |A + B| + |B| |B - A|) <= sqrt(2) gamma |W|_F^2`.
    """
    rows = re.shape[-2]
    if im is None:
        return _with_rounding(_self_product(re), sum_length(rows), False)
    step = BLOCK // 2  # what is rounded here weighs most in the end
    parts = [
        matmul(transpose(left[..., i : i + step, :]), right[..., i : i + step, :])
        for left, right in ((re, re + im), (im, im - re))
        for i in range(0, rows, step)
    ]
    return _with_rounding(sum(parts[1:], parts[0]), min(rows, step) + len(parts), True)


def square(product, scale, packed):
    """The square of a Hermitian `product / scale`, and a bound on its rounding.

    Packed, `M = A + B` has the square `M M - 2 B B`: two products of operands as they lie. Their
    rounding is at most `gamma (|M|^2 + 2 |B|^2)`, in Frobenius norms, the traces of the products
    being `|A|^2 - |B|^2` and `-|B|^2`.
    """
    product = product / scale[..., None, None]
    size = product.shape[-1]
    if not packed:
        return _with_rounding(_self_product(product), sum_length(size), False)
    odd = (product - transpose(product)) / 2
    whole, odd = matmul(product, product), matmul(odd, odd)
    unit = gamma(size + 10, product.dtype)
    shortfall = 4 * unit + 4 * gamma(size + 2, product.dtype)  # of the traces
    error = round_up((trace(whole) - 4 * trace(odd)) * (unit / (1 - shortfall)), 8)
    return whole - 2 * odd, lax.stop_gradient(error)


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
    forth = matmul(product, v)
    if not packed:
        return forth
    back = transpose(matmul(transpose(v), product))  # M^T v: no transpose of the larger
    even, odd = (forth + back) / 2, (forth - back) / 2  # A v and B v
    return _complex_sum(even, odd)


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
