"""What others compute for the norm of a convolution, written anew from the papers, for comparison.

All take `float[k, k, channels_in, channels_out]` and give one number. What each claims:

| function | claims | in float32 |
|---|---|---|
| `fft_svd` | exact, circular | within rounding, on either side |
| `power_iteration` | estimate from below, zero padding | below |
| `reshapings` | above, any padding, if its four norms are exact | they are estimates from below |
| `polynomial_grid` | above, circular and zero padding | above where the grid is fine enough |
| `published_gram` | above, circular | on either side once converged; NaN where a frequency is zero |

References: Sedghi et al. (2019), https://arxiv.org/abs/1805.10408; Ryu et al. (2019),
https://arxiv.org/abs/1905.05406; Singla and Feizi (2021), https://arxiv.org/abs/1911.10258; Araujo
et al. (2021), https://arxiv.org/abs/2006.08391; Delattre et al. (2023),
https://arxiv.org/abs/2305.16173.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@functools.partial(jax.jit, static_argnums=1)
def fft_svd(kernel, size):
    """Fourier transform of the folded kernel, then the singular values of every frequency."""
    k = kernel.shape[0]
    folded = jnp.zeros((size, size, *kernel.shape[2:]), kernel.dtype)
    index = np.arange(k) % size
    folded = folded.at[index[:, None], index[None, :]].add(kernel)
    symbol = jnp.fft.rfft2(folded, axes=(0, 1))
    return jnp.linalg.svd(symbol, compute_uv=False).max()


@functools.partial(jax.jit, static_argnums=(1, 2))
def power_iteration(kernel, size, num_iters=100):
    """Power iteration with the zero-padded convolution and its adjoint."""
    numbers = ("NHWC", "HWIO", "NHWC")

    def apply(x):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    x = jax.random.normal(jax.random.key(0), (1, size, size, kernel.shape[2]))
    adjoint = jax.linear_transpose(apply, x)
    for _ in range(num_iters):
        (x,) = adjoint(apply(x))
        x = x / jnp.linalg.norm(x)
    return jnp.linalg.norm(apply(x))


@functools.partial(jax.jit, static_argnums=1)
def reshapings(kernel, num_iters=50):
    """`sqrt(k k)` times the least of the norms of four matrices that the kernel is reshaped to."""
    h, w, i, o = kernel.shape
    matrices = [
        kernel.transpose(2, 0, 3, 1).reshape(i * h, o * w),
        kernel.transpose(2, 1, 3, 0).reshape(i * w, o * h),
        kernel.transpose(2, 3, 0, 1).reshape(i, o * h * w),
        kernel.transpose(3, 2, 0, 1).reshape(o, i * h * w),
    ]

    def estimate(matrix):
        def step(_, v):
            v = matrix.T @ (matrix @ v)
            return v / jnp.linalg.norm(v)

        v = jax.random.normal(jax.random.key(0), (matrix.shape[1],))
        return jnp.linalg.norm(matrix @ lax.fori_loop(0, num_iters, step, v))

    return math.sqrt(h * w) * jnp.min(jnp.stack([estimate(m) for m in matrices]))


@functools.partial(jax.jit, static_argnums=1)
def polynomial_grid(kernel, samples=20):
    """The Frobenius norm of the symbol on a grid, over 1 minus the distance to its points."""
    k = kernel.shape[0]
    angles = 2 * np.pi * np.arange(samples) / samples
    waves = jnp.asarray(np.exp(-1j * angles[:, None] * np.arange(k)), jnp.complex64)
    symbol = jnp.einsum("fs,gt,stio->fgio", waves, waves, kernel.astype(jnp.complex64))
    largest = jnp.sqrt(jnp.max(jnp.sum(jnp.abs(symbol) ** 2, axis=(2, 3))))
    return largest / (1 - 2 * ((k - 1) / 2) / samples)


@functools.partial(jax.jit, static_argnums=(1, 2))
def published_gram(kernel, size, num_iters=5):
    """Gram iteration as published: complex, every frequency of `rfft2`, logarithms, Frobenius."""
    symbol = jnp.fft.rfft2(kernel, (size, size), axes=(0, 1))
    symbol = symbol.reshape(-1, *kernel.shape[2:])
    log = jnp.zeros(symbol.shape[0])
    for _ in range(num_iters):
        norm = jnp.linalg.norm(symbol, axis=(1, 2))
        symbol = symbol / norm[:, None, None]
        log = 2 * (log + jnp.log(norm))
        symbol = jnp.matmul(jnp.conj(symbol.swapaxes(1, 2)), symbol)
    norm = jnp.linalg.norm(symbol, axis=(1, 2))
    return jnp.max(norm ** (2.0**-num_iters) * jnp.exp(log * 2.0**-num_iters))


def published_gram_torch(kernel, size, num_iters=5):
    """The same with PyTorch, which must be installed."""
    import torch

    symbol = torch.fft.rfft2(kernel, s=(size, size), dim=(0, 1))
    symbol = symbol.reshape(-1, *kernel.shape[2:])
    log = torch.zeros(symbol.shape[0])
    for _ in range(num_iters):
        norm = symbol.norm(dim=(1, 2))
        symbol = symbol / norm[:, None, None]
        log = 2 * (log + norm.log())
        symbol = torch.bmm(symbol.conj().transpose(1, 2), symbol)
    norm = symbol.norm(dim=(1, 2))
    return (norm ** (2.0**-num_iters) * (log * 2.0**-num_iters).exp()).max()
