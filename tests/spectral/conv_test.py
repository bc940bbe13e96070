"""Norms of convolutions against the written-out operator, for every geometry."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.spectral import (
    conv_enclosure,
    conv_gram_iteration,
    conv_inflation,
    conv_spectral_norm,
)
from lipjax.spectral._symbol import fourier_matrix, frequencies
from lipjax.spectral.gram import gram_bound
from tests import oracles
from tests.marks import slow

RNG = np.random.default_rng(0)


def gaussian(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def batch(*shape, count=20):
    """Random, constant, alternating, single-tap, rank-one and sparse kernels of one shape."""
    taps = [range(k) for k in shape[:-2]]
    signs = np.array([(-1.0) ** sum(t) for t in itertools.product(*taps)])
    signs = signs.reshape(*shape[:-2], 1, 1)
    single = np.zeros(shape)
    single[(0,) * (len(shape) - 2)] = 1
    rank_one = RNG.normal(size=shape[:-2] + (1, 1)) * np.outer(
        RNG.normal(size=shape[-2]), RNG.normal(size=shape[-1])
    )
    sparse = RNG.normal(size=shape) * (RNG.random(shape) < 0.3)
    structured = [np.ones(shape), np.ones(shape) * signs, single, rank_one, sparse]
    random = RNG.normal(size=(count - 5, *shape))
    return np.concatenate([structured, random]).astype(np.float32)


LAPLACIAN = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)[:, :, None, None]
CHECKER = np.fromfunction(lambda i, j: (-1.0) ** (i + j), (3, 3)).astype(np.float32)
CHECKER = CHECKER[:, :, None, None]
SHAPES = {  # window and channels, and the image sizes to try
    "1d": ((3, 2, 3), (1, 5)),
    "1d even": ((4, 2, 2), (2, 7)),
    "1d wide channels": ((3, 1, 6), (4,)),
    "2d": ((3, 3, 2, 3), (3, 6)),
    "2d even": ((2, 2, 3, 2), (5,)),
    "2d tall": ((5, 1, 2, 2), (3, (6, 2))),
    "2d wide": ((1, 4, 1, 3), (5,)),
    "2d 5x5": ((5, 5, 1, 2), (6,)),
    "1x1": ((1, 1, 3, 4), (3,)),
    "3d": ((2, 3, 2, 1, 2), ((2, 3, 4),)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize(
    "name",
    ["1d", slow("1d even"), slow("1d wide channels"), "2d", "2d even", slow("2d tall")]
    + ["2d wide", slow("2d 5x5"), slow("1x1"), "3d"],
)
def test_never_below_the_operator(name, padding):
    shape, sizes = SHAPES[name]
    kernels = batch(*shape)
    for size in sizes:
        truth = [oracles.norm(oracles.conv_matrix(k, size, padding=padding)) for k in kernels]
        bound = jax.vmap(
            lambda k, n=size: conv_gram_iteration(k, padding=padding, input_size=n, num_iters=5)
        )(kernels)
        assert (truth <= np.asarray(bound, np.float64)).all(), size
        if padding == "circular":
            assert (bound <= np.asarray(truth) * 1.02).all(), size


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name", ["1d", slow("1d even"), "2d", "2d even", slow("2d tall"), slow("2d 5x5")]
)
def test_any_padding_covers_every_size_and_padding(name):
    shape, _ = SHAPES[name]
    kernels = batch(*shape, count=8)
    bound = jax.vmap(lambda k: conv_gram_iteration(k, padding="any", num_iters=5))(kernels)
    dims = len(shape) - 2
    for size in (4, 7):
        for padding in ("circular", "zero", "valid", "full", [(0, 3)] * dims):
            if padding == "valid" and size < max(shape):
                continue
            truth = [oracles.norm(oracles.conv_matrix(k, size, padding=padding)) for k in kernels]
            assert (truth <= np.asarray(bound, np.float64)).all(), (size, padding)


def test_any_padding_is_tight_on_large_images():
    kernel = gaussian(3, 3, 2, 3)
    truth = oracles.norm(oracles.conv_matrix(kernel, 16, padding="circular"))
    assert float(conv_gram_iteration(kernel, padding="any", num_iters=6)) <= truth * 1.03


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "shape,strides",
    [
        ((3, 3, 2, 3), 2),
        slow((2, 2, 2, 2), 2),
        ((5, 3, 1, 4), (2, 3)),
        slow((1, 1, 2, 2), 3),
        slow((3, 2, 2), 2),
    ],
)
def test_strides(shape, strides):
    kernels = batch(*shape, count=8)

    def bound(padding):
        size = None if padding == "any" else 6
        options = dict(padding=padding, input_size=size, strides=strides, num_iters=5)
        return np.asarray(jax.vmap(lambda k: conv_gram_iteration(k, **options))(kernels), float)

    def truth(size, padding):
        matrices = [oracles.conv_matrix(k, size, padding=padding, strides=strides) for k in kernels]
        return np.array([oracles.norm(m) for m in matrices])

    circular, anywhere = truth(6, "circular"), bound("any")
    for size in (1, 5):  # which the stride does not divide
        assert (truth(size, "circular") <= anywhere).all()
    assert (circular <= bound("circular")).all() and (bound("circular") <= 1.02 * circular).all()
    assert (truth(6, "zero") <= bound("zero")).all()
    for size, padding in itertools.product((6, 7), ("zero", "full", "valid")):
        assert (truth(size, padding) <= anywhere).all()


def test_strides_with_sizes_they_do_not_divide():
    kernel = gaussian(3, 3, 2, 2)
    for size in (5, 7):
        truth = oracles.norm(oracles.conv_matrix(kernel, size, padding="zero", strides=2))
        assert truth <= float(
            conv_gram_iteration(kernel, padding="zero", input_size=size, strides=2)
        )
    with pytest.raises(ValueError, match="strides.*divide"):
        conv_gram_iteration(kernel, padding="circular", input_size=5, strides=2)


@pytest.mark.parametrize("padding", ["circular", "zero", "any"])
@pytest.mark.parametrize(
    "shape,dilation,strides",
    [
        ((3, 3, 2, 2), (2, 3), 1),
        slow((2, 2, 2, 2), 2, 1),
        ((3, 2, 2), 2, 2),
        slow((2, 2, 2), 3, 2),
    ],
)
def test_dilation(shape, dilation, strides, padding):
    kernels = batch(*shape, count=8)
    options = dict(strides=strides, dilation=dilation)
    size = None if padding == "any" else 6
    bound = jax.vmap(
        lambda k: conv_gram_iteration(k, padding=padding, input_size=size, num_iters=5, **options)
    )(kernels)
    for actual in ("circular", "zero") if padding == "any" else (padding,):
        truth = [
            oracles.norm(oracles.conv_matrix(k, 6, padding=actual, **options)) for k in kernels
        ]
        assert (truth <= np.asarray(bound, np.float64)).all(), actual


@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize(
    "groups,shape", [(2, (3, 3, 2, 4)), slow(3, (3, 3, 1, 6)), slow(4, (3, 3, 1, 4))]
)
def test_groups_take_the_largest_not_the_product(groups, shape, padding):
    kernel = gaussian(*shape) * 0.1
    truth = oracles.norm(oracles.conv_matrix(kernel, 5, padding=padding, groups=groups))
    bound = conv_gram_iteration(kernel, padding=padding, input_size=5, groups=groups, num_iters=6)
    assert truth <= float(bound) <= truth * 1.2


def test_kernel_larger_than_the_image_is_folded_not_cut():
    kernel = gaussian(5, 5, 2, 2)
    truth = oracles.norm(oracles.conv_matrix(np.concatenate([kernel]), 5, padding="circular"))
    assert truth <= float(conv_gram_iteration(kernel, padding="circular", input_size=5))
    ones = np.ones((5, 1, 1), np.float32)  # on two points: taps 3 and 2, norm 5
    assert 5 <= float(conv_gram_iteration(ones, padding="circular", input_size=2)) < 5.001


def test_negative_control_circular_is_no_bound_for_zero_padding():
    """At the layer's own odd size the circular norm lies below the zero-padded one."""
    kernel = CHECKER
    for size in (5, 7):
        zero = oracles.norm(oracles.conv_matrix(kernel, size, padding="zero"))
        circular = conv_gram_iteration(kernel, padding="circular", input_size=size)
        assert float(circular) < zero * 0.99
        assert zero <= float(conv_gram_iteration(kernel, padding="zero", input_size=size))


def test_negative_control_one_point_fewer_breaks_the_embedding():
    """The torus of the theorem is the smallest: with one point fewer the inequality fails."""
    violated = 0
    for _ in range(200):
        kernel = gaussian(3, 1, 1)
        zero = oracles.norm(oracles.conv_matrix(kernel, 3, padding="zero"))
        violated += oracles.norm(oracles.conv_matrix(kernel, 3, padding="circular")) < zero
    assert violated > 0


def test_riesz_factor_is_needed_and_enough():
    """A cosine between two grid points: the grid alone falls short by exactly the factor."""
    taps, grid = 3, 4
    phase = np.pi / grid
    # cos(x - phase) as a 2 x 2 real kernel of shifts by -1 and +1
    rotate = np.array([[np.cos(phase), -np.sin(phase)], [np.sin(phase), np.cos(phase)]])
    kernel = np.zeros((taps, 2, 2), np.float32)
    kernel[0], kernel[2] = rotate / 2, rotate.T / 2
    supremum = oracles.norm(oracles.conv_matrix(kernel, 360, padding="circular"))
    at_grid = oracles.norm(oracles.conv_matrix(kernel, grid, padding="circular"))
    np.testing.assert_allclose(supremum / at_grid, 1 / np.cos(np.pi / grid), rtol=1e-4)
    assert supremum <= float(conv_gram_iteration(kernel, padding="any"))


@pytest.mark.parametrize("grid", [(1,), (6,), (7,), (4, 6), (5, 5), (3, 4, 2)])
def test_frequencies_cover_each_opposite_pair_once(grid):
    kept = {tuple(p) for p in frequencies(grid)}
    for point in itertools.product(*[range(m) for m in grid]):
        opposite = tuple(-p % m for p, m in zip(point, grid))
        assert len(kept & {point, opposite}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("num_iters", [3, "auto"])
def test_chunks_do_not_change_the_bound(num_iters):
    kernel = gaussian(3, 3, 4, 5)
    norm = functools.partial(conv_gram_iteration, padding="zero", input_size=9, num_iters=num_iters)
    whole, gradient = jax.value_and_grad(norm)(kernel)
    part, slope = jax.value_and_grad(functools.partial(norm, chunk=7))(kernel)
    np.testing.assert_allclose(part, whole, rtol=2e-3 if num_iters == "auto" else 1e-6)
    np.testing.assert_allclose(slope, gradient, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="chunk is 0"):
        norm(kernel, chunk=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "final",
    [
        "deflated",
        pytest.param("wolkowicz_styan", marks=pytest.mark.slow),
        pytest.param("frobenius", marks=pytest.mark.slow),
    ],
)
def test_gradient_equals_automatic_differentiation_of_the_same_bound(seeded_key, final):
    """Every frequency kept and differentiated, against the one frequency of the custom rule."""
    kernel = jax.random.normal(seeded_key, (3, 3, 3, 4))
    cos, sin = fourier_matrix(frequencies((6, 6)), (6, 6), (3, 3))

    def plain(kernel):
        taps = kernel.reshape(9, 3, 4)
        re, im = (jnp.einsum("ft,tio->fio", np.float32(e), taps) for e in (cos, sin))
        return jnp.max(gram_bound(re, im, num_iters=3, final=final))

    norm = lambda k: conv_gram_iteration(  # noqa: E731
        k, padding="circular", input_size=6, num_iters=3, final=final
    )
    v = jax.random.normal(jax.random.key(9), kernel.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(fn, kernel):
        forward = jax.jvp(fn, (kernel,), (v,))  # the value and its slope along v
        return forward, jax.jvp(jax.grad(fn), (kernel,), (v,))  # the gradient and its own

    got, expected = derivatives(norm, kernel), derivatives(plain, kernel)
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-4)
    np.testing.assert_allclose(got[0][1], expected[0][1], rtol=1e-3)
    np.testing.assert_allclose(got[1][0], expected[1][0], atol=2e-5)
    np.testing.assert_allclose(got[1][1], expected[1][1], atol=2e-3)


def test_gradient_of_the_norm(seeded_key):
    kernel = jax.random.normal(seeded_key, (3, 3, 4, 2))
    geometry = dict(padding="circular", input_size=5)
    truth = jax.grad(lambda k: conv_spectral_norm(k, **geometry))(kernel)
    for options in (dict(num_iters=6, gradient="norm"), dict(num_iters="auto", tol=1e-4)):
        slope = jax.grad(lambda k: conv_gram_iteration(k, **geometry, **options))(kernel)  # noqa: B023
        np.testing.assert_allclose(slope, truth, atol=2e-3)


@pytest.mark.few(1)
@pytest.mark.parametrize("padding,size", [("circular", 6), ("zero", 6), ("any", None)])
@pytest.mark.parametrize("groups", [1, slow(2)])
def test_automatic_count_is_sound_and_as_tight_as_asked(padding, size, groups):
    """Random, structured and near-orthogonal kernels: the last stay loose, but never too small."""
    options = dict(padding=padding, input_size=size, groups=groups)
    kernels = batch(3, 3, 2 // groups, 2)
    auto = jax.vmap(lambda k: conv_gram_iteration(k, num_iters="auto", **options))(kernels)
    full = jax.vmap(lambda k: conv_gram_iteration(k, num_iters=12, **options))(kernels)
    truth = [
        oracles.norm(oracles.conv_matrix(k, 6, padding=padding, groups=groups))
        if padding != "any"
        else oracles.norm(oracles.conv_matrix(k, 6, padding="circular", groups=groups))
        for k in kernels
    ]
    assert (np.asarray(truth) <= np.asarray(auto, np.float64)).all()
    assert (auto <= full * (1 + 3e-3)).all()


def test_gradient_is_finite_and_homogeneous():
    kernels = np.concatenate([batch(3, 3, 1, 1), LAPLACIAN[None], CHECKER[None]])
    norm = lambda k: conv_gram_iteration(k, padding="zero", input_size=7)  # noqa: E731
    bounds, gradients = jax.vmap(jax.value_and_grad(norm))(kernels)
    assert np.isfinite(gradients).all()
    np.testing.assert_allclose(
        (kernels * np.asarray(gradients)).sum((1, 2, 3, 4)), bounds, rtol=1e-3
    )


def test_zero_nan_infinity_and_scale():
    kernel = gaussian(3, 3, 2, 2)
    norm = jax.jit(lambda k: conv_gram_iteration(k, padding="zero", input_size=5))
    assert float(norm(jnp.zeros_like(kernel))) == 0
    assert not np.asarray(jax.grad(norm)(jnp.zeros_like(kernel))).any()
    assert np.isnan(norm(jnp.asarray(kernel).at[0, 0, 0, 0].set(jnp.nan)))
    assert np.isposinf(norm(jnp.asarray(kernel).at[0, 0, 0, 0].set(jnp.inf)))
    for scale in (1e-42, 1e-37, 1e-25, 1e25, 1e36):
        scaled = (kernel.astype(np.float64) * scale).astype(np.float32)
        assert oracles.norm(oracles.conv_matrix(scaled, 5, padding="zero")) <= float(norm(scaled))


@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize(
    "shape", [slow((3, 2, 3)), (3, 3, 2, 3), slow((2, 2, 3, 2)), (2, 3, 2, 1, 2)]
)
def test_exact_reference(shape, padding):
    kernel = gaussian(*shape)
    truth = oracles.norm(oracles.conv_matrix(kernel, 4, padding=padding, strides=2))
    exact = conv_spectral_norm(kernel, padding=padding, input_size=4, strides=2)
    np.testing.assert_allclose(exact, truth, rtol=1e-5)


@pytest.mark.every
@pytest.mark.parametrize(
    "options,word",
    [
        (dict(padding="reflect", input_size=5), "padding is 'reflect'"),
        (dict(padding="zero"), "input_size is None"),
        (dict(padding="zero", input_size=(5, 5, 5)), "input_size"),
        (dict(padding="zero", input_size=0), "input_size"),
        (dict(padding="any", groups=5), "groups is 5"),
        (dict(padding="any", strides=0), "strides"),
        (dict(padding="any", dilation=(1,)), "dilation"),
        (dict(padding="any", num_iters=0), "num_iters"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        conv_gram_iteration(gaussian(3, 3, 2, 3), **options)


def test_bad_kernels_are_named():
    with pytest.raises(ValueError, match="kernel has shape"):
        conv_gram_iteration(jnp.ones((3, 3)), padding="any")
    with pytest.raises(ValueError, match="kernel has dtype int32"):
        conv_gram_iteration(jnp.ones((3, 3, 1, 1), jnp.int32), padding="any")
    with pytest.raises(ValueError, match="input_size.*entries"):
        conv_spectral_norm(jnp.ones((3, 3, 64, 64)), padding="zero", input_size=32)


def many_kernels():
    """20,000 kernels `float32[3, 3, 4, 4]`: random, structured, degenerate, at every scale."""
    count, taps, c = 2500, 9, 4
    random = RNG.normal(size=(count, taps, c, c))
    q = np.linalg.qr(random[:, 0])[0]
    tap = np.eye(taps)[RNG.integers(0, taps, count)][:, :, None, None]
    orthogonal = tap * q[:, None]
    u, v, w = (RNG.normal(size=(count, n)) for n in (taps, c, c))
    kinds = [
        random,
        orthogonal,
        orthogonal + 1e-3 * random,  # near-orthogonal
        tap * (q * np.array([1.0, 1.0, 0.5, 0.5]))[:, None],  # repeated singular values
        random * 10.0 ** RNG.uniform(-43, -30, (count, 1, 1, 1)),
        random * 10.0 ** RNG.uniform(25, 36, (count, 1, 1, 1)),
        u[:, :, None, None] * v[:, None, :, None] * w[:, None, None, :],  # rank one
        random
        * (RNG.random((count, taps, c, c)) < 0.2)
        * (np.arange(count) % 5 > 0)[:, None, None, None],
    ]
    return np.concatenate(kinds).reshape(-1, 3, 3, c, c).astype(np.float32)


@pytest.mark.few(1)
@pytest.mark.parametrize("num_iters", [2, slow(4), 8])
def test_twenty_thousand_kernels_without_one_below(num_iters):
    kernels = many_kernels()
    points = frequencies((5, 5))
    cos, sin = fourier_matrix(points, (5, 5), (3, 3))
    symbols = np.einsum("ft,ntio->nfio", cos + 1j * sin, kernels.reshape(-1, 9, 4, 4).astype(float))
    truth = np.linalg.svd(symbols, compute_uv=False).max((1, 2))
    bound = jax.jit(
        jax.vmap(
            lambda k: conv_gram_iteration(k, padding="circular", input_size=5, num_iters=num_iters)
        )
    )(kernels)
    bound = np.asarray(bound, np.float64)
    assert len(kernels) == 20000 and (bound >= truth).all()
    normal = truth > 1e-25
    assert (bound[normal] <= truth[normal] * 4 ** (2.0 ** -(num_iters + 1)) * 1.001).all()


def test_negative_control_the_published_iteration_falls_below():
    kernels = many_kernels()[:2500]
    points = frequencies((5, 5))
    cos, sin = fourier_matrix(points, (5, 5), (3, 3))
    waves = cos + 1j * sin
    exact = np.einsum("ft,ntio->nfio", waves, kernels.reshape(-1, 9, 4, 4).astype(float))
    truth = np.linalg.svd(exact, compute_uv=False).max((1, 2))

    def published(kernel):
        symbol = jnp.einsum(
            "ft,tio->fio", jnp.asarray(waves, jnp.complex64), kernel.reshape(9, 4, 4)
        )
        log = jnp.zeros(len(points))
        for _ in range(8):
            norm = jnp.linalg.norm(symbol, axis=(1, 2))
            symbol, log = symbol / norm[:, None, None], 2 * (log + jnp.log(norm))
            symbol = jnp.matmul(symbol.conj().swapaxes(1, 2), symbol, precision="highest")
        norm = jnp.linalg.norm(symbol, axis=(1, 2))
        return jnp.max(norm ** (2.0**-8) * jnp.exp(log * 2.0**-8))

    with jax.numpy_dtype_promotion("standard"):
        found = np.asarray(jax.jit(jax.vmap(published))(kernels), np.float64)
    assert (found < truth).mean() > 0.05


@pytest.mark.few(1)
@pytest.mark.parametrize("padding", ["circular", "zero", "any"])
def test_float64_kernels_are_bounded_not_their_rounded_copies(padding):
    kernel = np.zeros((3, 3, 1, 1))
    kernel[1, 1] = 1 + 2.0**-25
    size = None if padding == "any" else 4
    lower, upper = conv_enclosure(kernel, padding=padding, input_size=size)
    assert float(lower) <= 1 + 2.0**-25 <= float(upper)
    assert float(conv_gram_iteration(kernel, padding=padding, input_size=size)) >= 1 + 2.0**-25


@pytest.mark.parametrize("name", ["gaussian", "checkerboard"])
def test_norms_of_the_two_paddings_in_order(name):
    """`Z_n <= Z_(n+1)`, `C_n <= C_2n`, `Z_n <= C_m` for `m >= n + 1`, all at most the supremum."""
    kernel = CHECKER if name == "checkerboard" else gaussian(3, 3, 2, 2)

    def norm(size, padding):
        return oracles.norm(oracles.conv_matrix(kernel, size, padding=padding))

    sizes = range(2, 8)
    zero = [norm(n, "zero") for n in sizes]
    ring = {n: norm(n, "circular") for n in range(2, 10)}
    close = 1 + 1e-12
    assert all(a <= b * close for a, b in zip(zero, zero[1:]))
    assert all(ring[n] <= ring[2 * n] * close for n in (2, 3, 4))
    assert all(z <= ring[m] * close for n, z in zip(sizes, zero) for m in ring if m > n)
    everywhere = float(conv_gram_iteration(kernel, padding="any", num_iters=8))
    assert max(*zero, *ring.values()) <= everywhere
    if name == "checkerboard":  # the circular norm at the same odd size is no bound
        assert norm(5, "zero") > 1.05 * ring[5]


@pytest.mark.slow
def test_inflation_is_the_rounding_that_was_added():
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 8, 6)), jnp.float32)
    for options in (dict(padding="circular", input_size=6), dict(padding="any")):
        bound = float(conv_gram_iteration(kernel, num_iters=5, **options))
        part = float(conv_inflation(kernel, num_iters=5, **options))
        with jax.enable_x64(True):
            exact = float(conv_gram_iteration(np.float64(kernel), num_iters=5, **options))
        assert 1e-7 < part < 1e-4
        np.testing.assert_allclose(bound / exact - 1, part, rtol=0.5, atol=5e-7)
    assert conv_inflation(jnp.zeros((3, 3, 2, 2)), padding="circular", input_size=6) == 0


def test_automatic_count_looks_beyond_the_frequencies_that_seem_largest():
    """Eight equal singular values near pi look larger to two products than the one of norm 1.1 at 0."""
    kernel = np.zeros((3, 16, 16), np.float32)
    for channel in range(8):
        kernel[:, channel, channel] = -0.25, 0.5, -0.25
    kernel[:, 8, 8] = 0.3, 0.5, 0.3
    bound = conv_gram_iteration(kernel, padding="circular", input_size=200, num_iters="auto")
    exact = np.float64(kernel[:, 8, 8]).sum()
    assert exact <= float(bound) <= exact * (1 + 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["circular", "zero", "any", ((0, 2), (1, 0))])
def test_gradients_of_both_ends_are_finite_at_zero_and_where_only_padding_is_seen(padding):
    size = None if padding == "any" else 4

    def ends(kernel):
        found = conv_enclosure(kernel, padding=padding, input_size=size)
        return found.lower + found.upper

    for kernel in (jnp.zeros((3, 3, 2, 2)), jnp.full((3, 3, 2, 2), 1e-42)):
        slope = jax.grad(ends)(kernel)
        assert np.isfinite(slope).all()
    corner = jnp.zeros((3, 1, 1)).at[2].set(1.0)  # at one point it multiplies zeros alone
    slope = jax.grad(lambda k: conv_enclosure(k, padding="zero", input_size=1).lower)(corner)
    assert np.isfinite(slope).all()
    assert not jax.grad(ends)(jnp.zeros((3, 3, 2, 2))).any()


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_are_bounded_as_their_adjoints(groups):
    """Channel axes swapped within each group, and the size of the output."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    channels = 2 * groups

    def transposed(x):  # the adjoint of the convolution from `channels` to 4 channels
        forth = lambda z: jax.lax.conv_general_dilated(  # noqa: E731
            z[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups, precision="highest",
        )[0]  # fmt: skip
        return jax.linear_transpose(forth, jnp.zeros((5, 5, channels)))(x)[0]

    matrix = np.asarray(jax.jacobian(transposed)(jnp.zeros((5, 5, 4)))).reshape(25 * channels, -1)
    truth = oracles.norm(matrix)
    parts = kernel.reshape(3, 3, 2, groups, 4 // groups).swapaxes(2, 4)
    swapped = parts.reshape(3, 3, 4 // groups, 2 * groups)
    bound = conv_gram_iteration(swapped, padding="zero", input_size=5, groups=groups, num_iters=6)
    assert truth <= float(bound) <= 1.2 * truth
