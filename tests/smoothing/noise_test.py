"""Noise: the laws, and an attack that float noise does not survive."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import special, stats

from lipjax.smoothing import _normal_law, gaussian, lipschitz, noise
from lipjax.smoothing.kernels import Ablation, Categorical, Mask, Uniform
from lipjax.smoothing.noise import Gaussian, IntegerGaussian, Product, Tokens
from lipjax.smoothing.sampling import sample_counts
from lipjax.typing import Bound

KEY = jax.random.key(0)


@pytest.mark.parametrize("sigma,levels", [(0.25, 255), (1.0, 255), (0.3, 1)])
def test_the_table_of_integers_is_the_normal_law(sigma, levels):
    table = _normal_law.table(sigma, levels)
    chance = np.array([float(t) for t in table]) * 2.0**-64
    places = np.arange(len(table)) - len(table) // 2
    exact = special.ndtr((places + 0.5) / (sigma * levels))
    np.testing.assert_allclose(chance, exact, rtol=1e-13, atol=2.0**-63)
    assert exact[0] < 2.0**-63 and (np.diff(chance) >= 0).all()
    assert IntegerGaussian(sigma, levels).law_error(3072) < 1e-12


@pytest.mark.parametrize("sigma,levels", [(0.25, 255), (0.3, 1), (0.05, 1), (7.8, 255)])
def test_cells_have_exactly_the_chances_of_the_table(sigma, levels):
    cells, bits = _normal_law.alias(sigma, levels)
    whole = 2 ** (64 - bits)
    mass = [0] * len(cells)
    for high, low, places in cells.tolist():
        threshold = high << 32 | low
        assert threshold < whole
        mass[places >> 16] += threshold
        mass[places & 0xFFFF] += whole - threshold
    ends = [0, *_normal_law.table(sigma, levels), 2**64]
    expected = [b - a for a, b in zip(ends, ends[1:])]
    assert len(cells) == 2**bits and mass == expected + [0] * (len(cells) - len(expected))


def test_a_cell_is_chosen_by_64_bits(monkeypatch):
    """Words at both sides of every threshold."""
    law = IntegerGaussian(0.02)
    cells, bits = _normal_law.alias(0.02, 255)
    words, expected = [], []
    for i, (high, low, places) in enumerate(cells.tolist()):
        threshold = high << 32 | low
        for rest in {0, max(threshold - 1, 0), threshold, 2 ** (64 - bits) - 1}:
            word = i << (64 - bits) | rest
            words.append((word >> 32, word & 0xFFFFFFFF))
            expected.append(places >> 16 if rest < threshold else places & 0xFFFF)
    pairs = jnp.asarray(np.array(words, np.uint64).T.astype(np.uint32))
    monkeypatch.setattr(noise, "_pair", lambda key, shape: pairs)
    found = law.integers(KEY, (len(words),)) + len(_normal_law.table(0.02, 255)) // 2
    assert found.tolist() == expected


@pytest.mark.every
@pytest.mark.parametrize("size", [1, 2, 3, 784, 1001])
def test_the_generator_is_that_of_jax(size, key):
    """To the last bit, also under vmap and jit."""
    keys = jax.random.key_data(jax.random.split(key, 3))
    exact = [threefry_2x32(k, jnp.arange(size, dtype=jnp.uint32)) for k in keys]
    np.testing.assert_array_equal(jax.vmap(lambda k: noise._threefry(k, size))(keys), exact)
    np.testing.assert_array_equal(
        jax.jit(noise._threefry, static_argnums=1)(keys[0], size), exact[0]
    )


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_words_are_random_with_any_kind_of_key(impl):
    first, second = noise._pair(jax.random.key(0, impl=impl), (50, 400))
    assert first.shape == second.shape == (50, 400) and first.dtype == jnp.uint32
    words = np.stack([first, second]).reshape(2, -1)
    bits = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    assert abs(bits.mean((1, 2)) - 0.5).max() < 4 * 0.5 / np.sqrt(20_000 * 32)
    assert abs(bits.mean(1) - 0.5).max() < 4.5 * 0.5 / np.sqrt(20_000)
    assert abs(np.corrcoef(*words.astype(np.float64))[0, 1]) < 4 / np.sqrt(20_000)
    assert len(np.unique(words)) > 39_990


def test_integers_are_drawn_from_the_table():
    drawn = np.asarray(IntegerGaussian(0.02).integers(KEY, (200_000,)))
    scale = 0.02 * 255
    for i in (-12, -4, 0, 3, 11):
        p = special.ndtr((i + 0.5) / scale)
        assert abs((drawn <= i).mean() - p) < 4 * np.sqrt(p * (1 - p) / drawn.size)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (400, 501)])
def test_floats_are_normal(shape, dtype):
    drawn = Gaussian(2.0)(KEY, jnp.ones(shape, dtype))
    assert drawn.shape == shape and drawn.dtype == dtype
    if shape == (400, 501):
        z = (np.asarray(drawn, np.float64).reshape(-1) - 1) / 2
        assert np.isfinite(z).all()
        for level in (-3, -1.5, -0.3, 0.4, 2, 3.5):
            p = special.ndtr(level)
            slack = 4 * np.sqrt(p * (1 - p) / z.size) + (0 if dtype == jnp.float32 else 2e-3)
            assert abs((z <= level).mean() - p) < slack
        assert abs(np.corrcoef(z[: z.size // 2], z[z.size // 2 :])[0, 1]) < 0.013


def attack(noise, x, away, *, num_samples=200):
    """Certifies a classifier that looks whether noise was added to exactly this image.

    Subtracting and adding x gives the same sum again where x is what the noise was added to. (One batch
    outside of jit, where products are rounded before sums.)
    """
    secret = x.astype(jnp.float32) / 255 if jnp.issubdtype(x.dtype, jnp.integer) else x

    def fn(noisy):
        back = (noisy - secret[None]) + secret[None] == noisy
        share = back.mean(-1, dtype=jnp.float32)
        return jnp.stack([share - 0.985, 0.985 - share], -1)

    options = dict(num_samples=num_samples, num_classes=2, batch_size=num_samples, noise=noise)
    found = []
    for place in (x, away):
        votes = [
            np.asarray(sample_counts(jax.random.fold_in(KEY, i), fn, place, **options))
            for i in range(2)
        ]
        found.append(gaussian.certify(*votes, sigma=0.5, alpha=0.001))
    return found


def test_float_noise_tells_the_image_and_integer_noise_does_not():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, 3072)
    # Floats: two classes are certified in balls that overlap. One of the certificates is wrong.
    x = jnp.asarray(pixels / 255, jnp.float32)
    away = x + jnp.asarray(0.004 * rng.choice([-1, 1], 3072), jnp.float32)
    distance = float(jnp.linalg.norm(away - x))
    here, there = attack(Gaussian(0.5), x, away)
    assert here.prediction == 0 and there.prediction == 1
    assert min(here.radius, there.radius) > distance
    # Integers: the question has one answer at both places.
    x = jnp.asarray(pixels, jnp.int32)
    away = x + jnp.asarray(rng.choice([0, 1], 3072), jnp.int32)
    here, there = attack(IntegerGaussian(0.5), x, away)
    assert here.prediction == there.prediction >= 0


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_uniform_tokens(beta):
    vocab = 4
    x = jnp.tile(jnp.arange(vocab), 20_000)
    noisy = np.asarray(Tokens(Uniform(beta, vocab))(KEY, x)).reshape(-1, vocab)
    for a, b in itertools.product(range(vocab), repeat=2):
        p = 1 - beta if a == b else beta / (vocab - 1)
        assert abs((noisy[:, a] == b).mean() - p) <= 4 * np.sqrt(p * (1 - p) / 20_000)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.45])
def test_columns_of_several_sizes(beta):
    sizes = (2, 3, 7)
    noise = Tokens(Categorical(beta, sizes))
    x = jnp.array([1, 2, 0])
    keys = jax.random.split(KEY, 20_000)
    noisy = np.asarray(jax.vmap(lambda k: noise(k, x))(keys))
    for j, size in enumerate(sizes):
        assert set(np.unique(noisy[:, j])) <= set(range(size))
        for value in range(size):
            p = 1 - beta if value == x[j] else beta / (size - 1)
            assert abs((noisy[:, j] == value).mean() - p) <= 4 * np.sqrt(p * (1 - p) / 20_000)


def test_law_errors_add_up():
    both = Product((Tokens(Categorical(0.3, (2, 9))), IntegerGaussian(0.5), None))
    parts = both.parts[0].law_error(2), both.parts[1].law_error(100)
    assert both.law_error((2, 100, 7)) == sum(parts) and 0 < sum(parts) < 1e-12
    with pytest.raises(ValueError, match="whose law has no proved error"):
        Product((Gaussian(1.0),)).law_error((3,))
    with pytest.raises(ValueError, match="sizes is .3,.; it must hold 3 numbers"):
        both.law_error((3,))


def test_masked_and_ablated_tokens():
    x = jnp.arange(5)
    keys = jax.random.split(KEY, 4000)
    masked = np.asarray(jax.vmap(lambda k: Tokens(Mask(0.25), mask=9)(k, x))(keys))
    assert set(np.unique(masked)) == {0, 1, 2, 3, 4, 9}
    assert abs((masked == 9).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / masked.size)
    ablated = np.asarray(jax.vmap(lambda k: Tokens(Ablation(2, 5), mask=9)(k, x))(keys))
    assert ((ablated != 9).sum(1) == 2).all()
    pairs, times = np.unique(ablated != 9, axis=0, return_counts=True)
    assert len(pairs) == 10 and abs(times - 400).max() < 4 * np.sqrt(400)


def test_parts_have_noise_of_their_own():
    both = Product((Tokens(Mask(0.5), mask=9), Gaussian(1.0), None))
    x = (jnp.arange(3), jnp.zeros(2), jnp.ones(1))
    tokens, image, rest = jax.vmap(lambda k: both(k, x))(jax.random.split(KEY, 3000))
    masked = np.asarray(tokens == 9, np.float64)
    assert abs(np.corrcoef(masked[:, 0], np.asarray(image)[:, 0])[0, 1]) < 0.08
    assert (rest == 1).all() and abs(float(image.std()) - 1) < 0.05

    def fn(x):
        tokens, image, _ = x
        hidden = (tokens == 9).sum(-1) > 1
        return jnp.stack([image[:, 0], jnp.where(hidden, 10.0, 0.0)], -1)

    counts = sample_counts(KEY, fn, x, noise=both, num_samples=2000, num_classes=2, batch_size=500)
    p = 0.5 * special.ndtr(0)  # at most one of three is masked, and the image is positive
    assert abs(counts[0] / 2000 - p) < 4 * np.sqrt(p * (1 - p) / 2000)


@pytest.mark.every
@pytest.mark.parametrize(
    "made,x,word",
    [
        (Gaussian(1.0), jnp.arange(3), "x has dtype"),
        (IntegerGaussian(1.0), jnp.zeros(3), "must be an integer image"),
        (Tokens(Uniform(0.5, 3)), jnp.arange(4), "vocab_size - 1 = 2"),
        (Tokens(Uniform(0.5, 3)), jnp.zeros(3), "tokens are integers"),
        (Tokens(Categorical(0.3, (2, 3))), jnp.array([0, 3]), "sizes - 1 = .1 2."),
        (Tokens(Categorical(0.3, (2, 3))), jnp.arange(3), "must be .2,. tokens"),
        (Tokens(Mask(0.5), mask=2), jnp.arange(3), "holds the mask 2"),
        (Tokens(Ablation(2, 5), mask=9), jnp.arange(4), "must be .5,. tokens"),
        (Product((Gaussian(1.0),)), jnp.zeros(3), "must hold 1 parts"),
        (Gaussian(1.0), [0.0, 1.0], "x is a list; it must be one array"),
        (IntegerGaussian(1.0), [0, 1], "x is a list"),
        (Tokens(Mask(0.5), mask=9), {"tokens": 0}, "x is a dict"),
        (Product((Gaussian(1.0),)), ([0.0, 1.0],), "x is a list"),
        (
            Tokens(Uniform(0.5, 300)),
            np.zeros(3, np.uint8),
            "uint8, which does not hold the token 299",
        ),
        (Tokens(Categorical(0.3, (2, 300))), np.zeros(2, np.uint8), "hold the token 299"),
        (Tokens(Mask(0.5), mask=300), np.zeros(3, np.uint8), "does not hold the token 300"),
        (Tokens(Ablation(2, 3), mask=-1), np.zeros(3, np.uint8), "does not hold the token -1"),
    ],
)
def test_inputs_that_do_not_fit_are_named(made, x, word):
    with pytest.raises(ValueError, match=word):
        sample_counts(KEY, lambda x: x, x, noise=made, num_samples=5, num_classes=2, batch_size=5)


def test_bad_noise_is_named():
    for make, word in (
        (lambda: Gaussian(-1.0), "sigma is -1.0"),
        (lambda: IntegerGaussian(0.0), "sigma is 0.0"),
        (lambda: IntegerGaussian(100.0), "times 255 levels"),
        (lambda: Tokens("uniform"), "kernel is 'uniform'"),
        (lambda: Tokens(Mask(0.5)), "mask is None"),
        (lambda: Tokens(Uniform(0.5, 3), mask=1), "mask is 1"),
        (lambda: Product(("noise",)), "parts holds 'noise'"),
        (lambda: Tokens(Mask(0.5), mask=9.5), "mask is 9.5; it must be an integer"),
        (lambda: Tokens(Mask(0.5), mask="a"), "mask is 'a'; it must be an integer"),
        (lambda: Tokens(Ablation(2, 5), mask=True), "mask is True; it must be an integer"),
        (
            lambda: IntegerGaussian(np.ones(2)),
            r"sigma is array\(\[1., 1.\]\); it must be one number",
        ),
        (lambda: jax.jit(IntegerGaussian)(0.25), "it must be one number, known outside of jit"),
        (
            lambda: Tokens(Uniform(0.5, 300))(KEY, jnp.zeros(3, jnp.uint8)),
            "does not hold the token 299",
        ),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_rounded_noise_makes_steps_of_slopes_and_the_law_error_says_by_how_much():
    """A ramp from 0 at pixel 0 to 1 at pixel 1: smoothed with rounded noise it is the step between.

    Without its constant in the law error, balls of both classes overlap (the negative control).
    """
    levels, sigma = 4, 0.25
    for refine in (1, 64):
        law = IntegerGaussian(sigma, levels, refine)
        grid = levels * refine
        table = np.array(
            [0, *(int(t) for t in _normal_law.table(sigma, grid)), 2**64], dtype=object
        )
        mass = np.diff(table).astype(np.float64) / 2.0**64
        values = np.arange(len(mass)) - len(mass) // 2
        means = [
            (mass * np.clip((values + place * refine) / grid * levels, 0, 1)).sum()
            for place in (0, 1)
        ]
        quantiles = [special.ndtr((place - 0.5) / levels / sigma) for place in (0, 1)]
        if refine == 1:
            np.testing.assert_allclose(means, quantiles, atol=1e-12)  # those of the step
        radii = {}
        for error in (0.0, law.law_error(1, lipschitz=levels)):
            own = np.maximum(means[1] - error, 0), np.maximum(1 - means[0] - error, 0)
            radii[error > 0] = sum(
                float(lipschitz.radius(p, lipschitz=levels, sigma=sigma)) for p in own
            )
        assert radii[True] <= 1 / levels
        assert (radii[False] > 1.03 / levels) == (refine == 1)
        assert (radii[True] > 0.9 / levels) == (refine == 64)  # a finer grid costs little


@pytest.mark.few(1)
@pytest.mark.parametrize("sigma,levels", [(0.25, 255), (0.5, 16)])
def test_the_finest_grid_is_the_same_noise(sigma, levels):
    law = IntegerGaussian.finest(sigma, levels)
    assert law.refine * levels * sigma > 990 and law.law_error(784) < 1e-9
    assert (
        law.law_error(784, lipschitz=1.0)
        < 1e-5
        < IntegerGaussian(sigma, levels).law_error(784, lipschitz=1.0)
    )
    x = jnp.array([0, levels, levels // 2], jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 4000)
    fine = np.asarray(jax.vmap(lambda k: law(k, x))(keys), np.float64)
    parts = fine * 2 * levels * law.refine * law.dither
    np.testing.assert_allclose(parts, np.round(parts), atol=0.6)
    found = (fine - np.asarray(x) / levels).reshape(-1)
    assert stats.kstest(found / sigma, "norm").pvalue > 1e-3
    # Where a cell begins and ends does not show: without dither all lie in the middle.
    inside = fine * levels * law.refine
    inside = inside - np.round(inside)
    assert stats.kstest(inside.reshape(-1) + 0.5, "uniform").pvalue > 1e-3


def test_what_dither_misses_is_at_most_the_law_error():
    """The transport from the dithered law of one pixel to the normal one, on a coarse grid."""
    for sigma in (1.0, 3.0):
        law = IntegerGaussian(sigma, 1, 1, 2**12)
        ends = np.arange(-40.5, 41)
        chance = np.diff(special.ndtr(ends / sigma))
        inside = np.linspace(-0.5, 0.5, 2001)
        total = 0.0
        for i, mass in zip(range(-40, 41), chance):
            if mass < 1e-14:
                continue
            exact = (special.ndtr((i + inside) / sigma) - special.ndtr((i - 0.5) / sigma)) / mass
            total += mass * np.mean((exact - 0.5 - inside) ** 2)  # T - U at the same place
        error = law.law_error(1, lipschitz=1.0)
        assert np.sqrt(total) <= error <= 2.2 * np.sqrt(total) + 1e-3
        assert error < IntegerGaussian(sigma, 1).law_error(1, lipschitz=1.0)


def test_exponentials_are_at_most_an_eighth_of_their_slope_from_uniform():
    t = np.linspace(0, 1, 4001)
    gaps = [np.abs(np.expm1(a * t) / np.expm1(a) - t).max() / a for a in np.geomspace(1e-3, 30, 60)]
    assert max(gaps) <= 1 / 8 + 1e-9 and gaps[0] > 0.1249


def test_dither_that_does_not_fit_is_named():
    for dither in (3, 2**20):
        with pytest.raises(ValueError, match=f"dither is {dither}; it must be a power of two"):
            IntegerGaussian(0.25, 255, 1, dither)


@pytest.mark.parametrize("most", [1, 2, 9, 65_537, 128_254, 2**31 - 2])
def test_remainders_of_64_bits_are_exact_for_every_alphabet(most):
    """JAX's own draw takes 32 bits beyond 65,536, and is off by 6e-6 for a vocabulary of 128,256."""
    found = np.asarray(noise._below(jax.random.key(1), (500,), most))
    high, low = (np.asarray(a).astype(object) for a in noise._pair(jax.random.key(1), (500,)))
    assert found.tolist() == [((int(h) << 32) + int(b)) % most for h, b in zip(high, low)]


def test_large_vocabularies_are_replaced_by_any_other_token():
    law = Tokens(Uniform(1.0, 128_256))
    x = jnp.zeros(20_000, jnp.int32) + 128_255
    found = np.asarray(law(jax.random.key(0), x))
    assert found.min() >= 0 and found.max() < 128_255  # another one
    assert abs(found.mean() / 128_255 - 0.5) < 0.02


@pytest.mark.parametrize("vocab", [5, 2**30 + 1, 2**31 - 1])
def test_no_token_wraps_around(vocab):
    """The token plus the step to another one overflowed beyond 2^30: below 0, or x itself."""
    law = Tokens(Uniform(1.0, vocab))
    for token in (0, 1, vocab // 2, vocab - 1):
        found = np.asarray(law(KEY, jnp.full(2000, token, jnp.int32)), np.int64)
        assert found.min() >= 0 and found.max() < vocab and (found != token).all()
        step = (found - token) % vocab - 1  # uniform from 0 to vocab - 2
        assert abs(step.mean() / (vocab - 2) - 0.5) < 4 * 0.36 / np.sqrt(2000)


def test_numbers_of_arrays_are_numbers():
    law = IntegerGaussian(jnp.float32(0.25), np.int64(255))
    assert law == IntegerGaussian(0.25) and repr(law) == repr(IntegerGaussian(0.25))
    x = jnp.arange(5, dtype=jnp.uint8)
    np.testing.assert_array_equal(law(KEY, x), IntegerGaussian(0.25)(KEY, x))
    assert repr(Tokens(Mask(0.5), mask=np.int32(9))) == repr(Tokens(Mask(0.5), mask=9))


def test_no_value_wraps_around_with_dither():
    """Deviations of many levels: a wrapped sum made a certificate of the wrong class."""
    law = IntegerGaussian.finest(64.0, 1)
    found = np.asarray(law(KEY, jnp.full(20_000, 1, jnp.uint8)), np.float64)
    assert abs(found.mean() - 1) < 4 * 64 / np.sqrt(20_000) and abs(found).max() < 6 * 64
    np.testing.assert_allclose(found.std(), 64, rtol=0.03)
    for x in (np.array([255], np.uint8), np.array([-2])):
        with pytest.raises(ValueError, match="it must lie within .-1, the levels"):
            law.check(x)
    law.check(np.array([1, -1, 0]))


def test_masks_may_be_arrays_and_fit_into_32_bits():
    for mask in (np.int8(9), np.array(9), jnp.int32(9)):
        assert Tokens(Mask(1.0), mask=mask)(jax.random.key(0), jnp.array([1, 2])).tolist() == [9, 9]
    for mask in (2**40, 2**70, True, 9.5, "a", jnp.array([9])):
        with pytest.raises(ValueError, match=r"mask is .*integer of 32 bits"):
            Tokens(Mask(1.0), mask=mask)


def test_the_constant_of_a_law_error_may_be_a_bound():
    grid = IntegerGaussian(0.25)
    bound = Bound(0.5, "upper")
    assert grid.law_error(784, lipschitz=bound) == grid.law_error(784, lipschitz=0.5)
    with pytest.raises(ValueError, match="it must be an upper bound"):
        grid.law_error(784, lipschitz=Bound(0.5, "estimate"))


def test_products_and_grids_that_do_not_fit_are_named():
    for call, word in [
        (lambda: noise.Product(noise.Gaussian(1.0)), "parts is Gaussian"),
        (lambda: noise.Product((None,)).law_error(3), "sizes is 3"),
        (
            lambda: noise.Product((None, noise.Gaussian(1.0)))(jax.random.key(0), (jnp.ones(2),)),
            "x has 1 parts; it must have 2",
        ),
        (
            lambda: noise.IntegerGaussian.finest(1e-30),
            "sigma is 1e-30; with 255 levels it must lie in",
        ),
    ]:
        with pytest.raises(ValueError, match=word):
            call()
    low = 0.05 / 255 / 257
    assert noise.IntegerGaussian.finest(low * 1.001).refine == 257


def test_parts_without_a_tuple_are_named():
    with pytest.raises(ValueError, match="parts is Gaussian.*one tuple.*Product"):
        Product(Gaussian(1.0), Gaussian(2.0))
