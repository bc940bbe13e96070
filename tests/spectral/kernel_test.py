"""The bound of the second paper: sound at every frequency, the same number by both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.spectral import conv_kernel_bound, rescaling
from lipjax.spectral._power_kernel import power_kernel

RNG = np.random.default_rng(0)


def supremum(kernel, per_axis=48):
    """`max sigma_1(F)` over a fine grid, float64: at most the supremum."""
    *window, _, _ = kernel.shape
    kernel = np.asarray(kernel, np.float64)
    symbol = np.fft.fftn(kernel, [per_axis] * len(window), axes=range(len(window)))
    return np.linalg.norm(symbol, ord=2, axis=(-2, -1)).max()


KERNELS = {
    "2d": RNG.normal(size=(3, 3, 4, 3)),
    "wide": RNG.normal(size=(3, 3, 2, 5)),
    "1d even": RNG.normal(size=(4, 3, 3)),
    "1x1": RNG.normal(size=(1, 1, 5, 5)),
    "tall": RNG.normal(size=(5, 1, 3, 3)),
    "identity": np.eye(3)[None, None] * np.array([0, 1, 0])[:, None, None, None],
    "smooth": np.ones((3, 3, 1, 1)) / 9,
    "one output": RNG.normal(size=(3, 3, 6, 1)),
    "mixed scales": RNG.normal(size=(3, 3, 3, 3)) * 10.0 ** np.arange(-3, 0),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", KERNELS)
def test_never_below_and_closer_with_more_iterations(name):
    kernel = KERNELS[name].astype(np.float32)
    truth = supremum(kernel)
    bounds = [float(conv_kernel_bound(kernel, num_iters=n)) for n in (1, 2, 3, 4)]
    assert min(bounds) >= truth
    assert all(b <= a * (1 + 1e-3) for a, b in zip(bounds, bounds[1:]))
    assert bounds[-1] <= 1.25 * truth


@pytest.mark.slow
@pytest.mark.parametrize("num_iters", [2, 3])
def test_both_ways_give_the_same_number(num_iters):
    """In float64, where their rounding terms vanish."""
    for name in ("2d", "1d even", "tall", "1x1"):
        found = []
        for by_frequencies in (False, True):
            with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
                choice = lambda *_, chosen=by_frequencies: chosen  # noqa: E731
                patch.setattr(rescaling, "_by_frequencies_is_cheaper", choice)
                jax.clear_caches()
                found.append(float(conv_kernel_bound(KERNELS[name], num_iters=num_iters)))
        np.testing.assert_allclose(*found, rtol=1e-9)
    jax.clear_caches()


def test_taps_of_the_power_are_within_their_error():
    kernel = KERNELS["2d"].astype(np.float32)
    for num_iters in (2, 3):
        half, error, scales = jax.jit(power_kernel, static_argnums=1)(kernel, num_iters)
        with jax.enable_x64(True):
            exact, none, exact_scales = power_kernel(jnp.asarray(kernel, float), num_iters)
            exact, none = np.asarray(exact), float(none)
        np.testing.assert_array_equal(scales, exact_scales)
        # Opposite lags are transposes: twice the taps bound the change of the symbol.
        change = np.asarray(half, float) - exact
        assert 0 < np.abs(change).max() and none < 1e-6 * float(error)
        assert 2 * np.linalg.norm(change.sum(0), ord=2) <= float(error)


def test_lebesgue_constant_of_the_grid():
    """Negative control: the 1 in `1 + (2 / pi) ln M` is needed."""
    for m in range(1, 130, 2):
        offset = np.linspace(0, 2 * np.pi / m, 41)[:, None]
        points = offset - 2 * np.pi * np.arange(m) / m
        dirichlet = 1 + 2 * sum(np.cos(j * points) for j in range(1, (m - 1) // 2 + 1))
        constant = np.abs(dirichlet * np.ones_like(points) / m).sum(1).max()
        assert 2 / np.pi * np.log(m) < constant <= 1 + 2 / np.pi * np.log(m) + 1e-12


def test_negative_control_a_smaller_grid_aliases():
    """On fewer points than the power has taps, lags fold together and the row sums fall."""
    kernel = KERNELS["smooth"]
    power = np.array([1.0])
    for _ in range(4):
        power = np.convolve(power, np.array([1.0, -2.0, 1.0]))
    folded = np.zeros(5)
    np.add.at(folded, np.arange(len(power)) % 5, power)
    assert np.abs(folded).sum() < np.abs(power).sum() and kernel.sum() > 0


def test_groups_edges_and_float64_input():
    grouped = np.concatenate([KERNELS["2d"], 3 * KERNELS["2d"]], axis=-1).astype(np.float32)
    alone = conv_kernel_bound(3 * KERNELS["2d"].astype(np.float32))
    np.testing.assert_allclose(conv_kernel_bound(grouped, groups=2), alone, rtol=1e-6)
    assert float(conv_kernel_bound(np.zeros((3, 3, 2, 2), np.float32))) == 0
    assert np.isnan(conv_kernel_bound(jnp.full((3, 2, 2), jnp.nan)))
    assert np.isinf(conv_kernel_bound(jnp.full((3, 2, 2), jnp.inf)))
    assert float(conv_kernel_bound(jnp.zeros((3, 2, 2)).at[0, 0, 0].set(1e-40))) > 0
    for scale in (1e-30, 1e18):
        scaled = KERNELS["2d"].astype(np.float32) * np.float32(scale)
        assert float(conv_kernel_bound(scaled)) >= supremum(scaled)
    one = np.full((1, 1, 1, 1), 1 + 2.0**-25)  # rounds down in float32
    assert float(conv_kernel_bound(one)) >= 1 + 2.0**-25


def test_gradient_is_finite_and_homogeneous():
    kernel = jnp.asarray(KERNELS["2d"], jnp.float32)
    bound, slope = jax.value_and_grad(lambda k: conv_kernel_bound(k, num_iters=3))(kernel)
    np.testing.assert_allclose(jnp.vdot(slope, kernel), bound, rtol=2e-3)
    zero = jax.grad(conv_kernel_bound)(jnp.zeros_like(kernel))
    assert not np.asarray(zero).any()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_iters"):
        conv_kernel_bound(KERNELS["2d"], num_iters=0)
    with pytest.raises(
        ValueError, match=r"num_iters is 6.*(3, 3).*16641 taps.*conv_gram_iteration"
    ):
        conv_kernel_bound(jnp.ones((3, 3, 2, 2)), num_iters=6)
    with pytest.raises(ValueError, match="groups"):
        conv_kernel_bound(KERNELS["2d"], groups=2)
    with pytest.raises(ValueError, match="kernel"):
        conv_kernel_bound(jnp.ones((3, 3)))
