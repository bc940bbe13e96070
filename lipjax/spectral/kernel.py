r"""A bound on convolutions of every size from the taps of a power of the kernel's Gram operator.

With $G = F^* F$ for the symbol F, $p = 2^{N - 1}$ and A the kernel whose symbol is $G^p$,
$\sup_\omega \sigma_1(F(\omega))^{2 p} \le \max_i \sum_j \sum_\tau |A_\tau|_{ij}$: row sums bound a
Hermitian matrix (Delattre, Barthélemy, Allauzen 2024, https://arxiv.org/abs/2402.00240).
"""

import functools

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import as_device_array, power_of_two, round_up, safe_sqrt
from lipjax.spectral._torus import check_kernel, split_groups, spread
from lipjax.spectral.gram import any_nonzero, mark_nonfinite, raised
from lipjax.spectral.rescaling import conv_dominating_diagonal
from lipjax.typing import Array


def conv_kernel_bound(kernel: Array, *, num_iters: int = 3, groups: int = 1) -> Array:
    """Upper bound on the norm of a convolution at every input size, with no grid of frequencies.

    The bound of the second paper. `conv_gram_iteration(kernel, padding="any")` is tighter at a
    comparable cost: use this one to compare, or where the row sums are wanted
    (`conv_dominating_diagonal`).

    Args:
        kernel: `float[*window, channels_in / groups, channels_out]`, one to three window axes.
        num_iters: N. The product of the row sums' excess is halved, in the logarithm, by each; the
            power kernel doubles its width, and is computed frequency by frequency where that is
            cheaper.
        groups: Number of channel groups.

    Returns:
        `float[]`.

    Guarantee: at least the norm for circular and zero padding of any amount, every stride,
    dilation and input size, for exactly the numbers of `kernel`, rounding included. Zero for the
    zero kernel, NaN for a NaN, inf for an infinity.

    Raises:
        ValueError: for a wrong rank or dtype, `num_iters` below 1 or so many that the kernel of the
            power would have more than 10000 taps, or groups that do not divide.

    >>> import jax.numpy as jnp
    >>> blur = jnp.full((3, 3, 1, 1), 1 / 9)
    >>> bool(1.0 <= conv_kernel_bound(blur) < 1.001)
    True
    """
    kernel, lost = as_device_array(kernel)
    check_kernel(kernel)
    _checks.integer(1, num_iters=num_iters, groups=groups)
    bound = _kernel_bound(kernel, num_iters, groups)
    return raised(bound, spread(lost, kernel))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _kernel_bound(kernel, num_iters, groups):
    grouped = split_groups(kernel, groups)
    if grouped.shape[-2] < grouped.shape[-1]:
        grouped = jnp.swapaxes(grouped, -1, -2)
    scale = power_of_two(jnp.max(jnp.abs(kernel)))  # t is a square, which could underflow
    t = jax.vmap(functools.partial(conv_dominating_diagonal, num_iters=num_iters))(grouped / scale)
    bound = round_up(safe_sqrt(jnp.max(t)) * scale, 3)
    floor = kernel.size * float(jnp.finfo(kernel.dtype).tiny)
    axes = tuple(range(kernel.ndim))
    bound = bound + jnp.where(any_nonzero([kernel], axes), floor, 0).astype(kernel.dtype)
    return mark_nonfinite(bound, [kernel], axes)
