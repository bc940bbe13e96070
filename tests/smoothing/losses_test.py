"""Training losses: their formulas in float64, finite values and gradients where others give NaN."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from lipjax.data import load, to_unit
from lipjax.smoothing import losses

KEY = jax.random.key(0)
W = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=6), jnp.float32)
ALL = {
    "gaussian": losses.gaussian,
    "stability": losses.stability,
    "smooth_adv": functools.partial(losses.smooth_adv, eps=0.3),
    "macer": losses.macer,
    "consistency": losses.consistency,
}


def linear(x, scale=1.0):
    return scale * x.reshape(x.shape[0], -1) @ W


def softmax(z):
    return special.softmax(np.asarray(z, np.float64), axis=-1)


def noisy(num, sigma):
    noise = jax.random.normal(KEY, (num, *X.shape))
    return np.asarray(X, np.float64) + sigma * np.asarray(noise, np.float64)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_formulas(sigma):
    w = np.asarray(W, np.float64)
    for label in (0, 2):
        z = noisy(4, sigma) @ w
        p = softmax(z)
        entropy = -np.log(p[:, label]).mean()
        options = dict(sigma=sigma, num_noise=4)
        found = losses.gaussian(KEY, linear, X, label, **options)
        np.testing.assert_allclose(found, entropy, rtol=1e-5)
        clean = softmax(np.asarray(X, np.float64) @ w)
        change = -(clean * np.log(p)).sum(-1).mean()
        found = losses.stability(KEY, linear, X, label, **options)
        np.testing.assert_allclose(found, entropy + 2 * change, rtol=1e-5)
        mean = p.mean(0)
        distance = (mean * (np.log(mean) - np.log(p))).sum(-1).mean()
        found = losses.consistency(KEY, linear, X, label, **options)
        expected = entropy + 10 * distance - 0.5 * (mean * np.log(mean)).sum()
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        q = softmax(3 * z).mean(0)
        found = losses.macer(KEY, linear, X, label, scale=3.0, **options)
        expected = -np.log(p[:, label].mean())
        others = np.delete(q, label).max()
        gap = special.ndtri(q[label]) - special.ndtri(others)
        if 0 < gap < 8:
            expected += 12 * sigma / 2 * (8 - gap)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_attack_raises_the_loss_and_stays_in_its_ball():
    x = jax.nn.sigmoid(X)
    base = losses.gaussian(KEY, linear, x, 1, sigma=0.2, num_noise=2)
    previous = base
    for eps in (0.05, 0.2, 0.5):
        seen = []

        def watched(z):
            seen.append(z)  # noqa: B023
            return linear(z)

        found = losses.smooth_adv(KEY, watched, x, 1, sigma=0.2, eps=eps, num_steps=6)
        assert found > previous
        previous = found
        noise = 0.2 * jax.random.normal(KEY, (2, 6))
        moved = seen[-1] - noise - x[None]
        assert float(jnp.linalg.norm(moved[0])) <= eps * 1.001
        assert (x + moved[0] >= -1e-5).all() and (x + moved[0] <= 1 + 1e-5).all()
    zero = losses.smooth_adv(KEY, linear, x, 1, sigma=0.2, eps=0.0)
    np.testing.assert_allclose(zero, base, rtol=1e-5)


@pytest.mark.parametrize("low,high", [(0.0, 1.0), (None, 1.0), (0.4, None), (0.5, 0.5)])
def test_the_attack_on_examples_outside_of_the_box_stays_in_its_ball(low, high):
    """They were moved to the box, however far it was, and the loss taken there."""
    x = jnp.array([-5.0, 0.5, 7.0, 0.2, 1.5, -0.1])
    for eps in (1e-3, 0.3):
        seen = []

        def watched(z):
            seen.append(z)  # noqa: B023
            return linear(z)

        losses.smooth_adv(KEY, watched, x, 1, sigma=0.0, eps=eps, low=low, high=high)
        moved = seen[-1][0] - x
        assert 0 < float(jnp.linalg.norm(moved)) <= eps * 1.001
        if low is not None:
            assert (moved[x < low] >= 0).all()
        if high is not None:
            assert (moved[x > high] <= 0).all()


@pytest.mark.parametrize("name", ALL)
def test_finite_everywhere(name):
    """Uniform, ordinary and one-hot predictions, right and wrong, at no noise too."""

    def loss(x, label, scale, sigma):
        fn = functools.partial(linear, scale=scale)
        return ALL[name](KEY, fn, x, label, sigma=sigma)

    run = jax.jit(jax.value_and_grad(loss))
    for label, scale, sigma in itertools.product(range(4), (0.0, 1.0, 1e3, 1e6), (0.0, 0.5)):
        value, slope = run(X, label, jnp.float32(scale), jnp.float32(sigma))
        assert jnp.isfinite(value) and jnp.isfinite(slope).all(), (label, scale, sigma)


SCALES = [0.0, 1e-38, 1.0, 1e6, 1e9, 3e9, 1e10, 1e20, 1e30, 3e38]


@pytest.mark.few(1)
@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", ALL)
def test_finite_for_logits_of_any_size(name, compiled):
    """Compilers fuse the product of `fn` with the difference in a softmax, which overflowed."""

    def run(scale, shift, x, label, sigma):
        def fn(x):
            return scale * jnp.stack([x, -x], -1) + scale * shift

        loss = functools.partial(ALL[name], sigma=sigma)
        return jax.value_and_grad(lambda x: loss(KEY, fn, x, label))(x)

    run = jax.jit(run, static_argnums=3) if compiled else run
    shifts, xs, sigmas = (0.0, 0.1), (1e-3, 0.37, -0.9), (0.0, 0.5)
    scales = SCALES
    if not compiled:  # each call takes long
        scales, shifts, xs, sigmas = SCALES[1::4], (0.0,), (0.37,), (0.5,)
    for label in (0, 1):
        for scale, shift, x, sigma in itertools.product(scales, shifts, xs, sigmas):
            value, slope = run(*jnp.float32([scale, shift, x]), label, jnp.float32(sigma))
            assert jnp.isfinite(value) and jnp.isfinite(slope), (scale, shift, x, sigma, label)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_logits(name, dtype):
    """As the same numbers in float32; 1 - 1e-6 is 1 in half precision."""

    def loss(x, scale, narrow):
        fn = lambda x: linear(x, scale).astype(dtype).astype(dtype if narrow else jnp.float32)  # noqa: E731
        return ALL[name](KEY, fn, x, 1, sigma=0.3)

    run = jax.jit(jax.value_and_grad(loss), static_argnums=2)
    for scale in (0.0, 1.0, 300.0):
        (value, slope), (expected, _) = (
            run(X, jnp.float32(scale), narrow) for narrow in (True, False)
        )
        assert value.dtype == jnp.float32 and jnp.isfinite(slope).all()
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_logits_that_overflow_count_as_large(name):
    """And have no gradient: infinite ones, right and wrong."""
    for label in (0, 1):

        def loss(x):
            fn = lambda x: 3e38 * jnp.stack([x, -x], -1)  # noqa: E731
            return ALL[name](KEY, fn, x, label, sigma=0.0, **options)  # noqa: B023

        options = {"low": None, "high": None} if name == "smooth_adv" else {}
        value, slope = jax.jit(jax.value_and_grad(loss))(jnp.float32(9.0))
        assert slope == 0
        if label == 1:
            assert value >= 1.9 * losses.LARGEST and jnp.isfinite(value)


def test_the_attack_sees_slopes_whose_norm_overflows():
    x = jnp.full(100, 0.5)
    seen = []

    def fn(z):
        seen.append(z)
        steep = 1e38 * jnp.sum(z - 0.5, axis=1)
        return jnp.stack([steep, -steep], -1)

    losses.smooth_adv(KEY, fn, x, 0, sigma=0.0, eps=0.3, num_steps=1)
    np.testing.assert_allclose(jnp.linalg.norm(seen[-1][0] - x), 0.3, rtol=1e-4)


def test_negative_control_the_published_formula_is_not_finite():
    """The logarithm of a mean of probabilities that are all 0, as the published code writes it."""
    wrong = int(jnp.argmin(linear(X[None])[0]))

    def naive(x):
        return -jnp.log(jnp.mean(jax.nn.softmax(linear(x[None], 1e3)), axis=0)[wrong])

    assert not jnp.isfinite(jax.grad(naive)(X)).all()
    fn = functools.partial(linear, scale=1e3)
    found = jax.grad(lambda x: losses.macer(KEY, fn, x, wrong, sigma=0.0))(X)
    assert jnp.isfinite(found).all() and found.any()


@pytest.mark.parametrize("name", ALL)
def test_under_vmap_and_jit(name):
    xs, labels = jnp.stack([X, -X, 2 * X]), jnp.array([0, 1, 3])
    keys = jax.random.split(KEY, 3)
    loss = functools.partial(ALL[name], sigma=0.3)
    batched = jax.jit(jax.vmap(lambda k, x, y: loss(k, linear, x, y)))(keys, xs, labels)
    one_by_one = [loss(k, linear, x, int(y)) for k, x, y in zip(keys, xs, labels)]
    np.testing.assert_allclose(batched, jnp.stack(one_by_one), rtol=1e-4)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ALL)
def test_they_train(name):
    """A linear classifier of the digits, better under noise after training than before."""
    digits = load("digits")
    images = to_unit(digits.train.images[:600], 16).reshape(600, -1)
    labels = jnp.asarray(digits.train.labels[:600], jnp.int32)
    optimizer = optax.adam(0.03)
    params = jnp.zeros((64, 10))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            fn = lambda x: x @ params  # noqa: E731
            keys = jax.random.split(key, len(images))
            each = jax.vmap(lambda k, x, y: ALL[name](k, fn, x, y, sigma=0.3))
            return each(keys, images, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # optax
        for i in range(50):
            params, state = step(params, state, jax.random.key(i))
    noise = 0.3 * jax.random.normal(jax.random.key(99), images.shape)
    accuracy = jnp.mean(jnp.argmax((images + noise) @ params, -1) == labels)
    assert float(accuracy) > 0.65 and jnp.isfinite(params).all()


@pytest.mark.every
@pytest.mark.parametrize(
    "make,word",
    [
        (lambda: losses.gaussian(KEY, linear, X, 0, sigma=-1.0), "sigma is -1.0"),
        (lambda: losses.gaussian(KEY, linear, X, 0, sigma=0.1, num_noise=0), "num_noise is 0"),
        (lambda: losses.stability(KEY, linear, X, 0, sigma=0.1, weight=-1.0), "weight is -1.0"),
        (lambda: losses.smooth_adv(KEY, linear, X, 0, sigma=0.1, eps=-1.0), "eps is -1.0"),
        (lambda: losses.macer(KEY, linear, X, 0, sigma=0.1, gap=0.0), "gap is 0.0"),
        (lambda: losses.consistency(KEY, linear, X, 0, sigma=0.1, num_noise=1), "num_noise is 1"),
        (lambda: losses.gaussian(KEY, linear, jnp.arange(6), 0, sigma=0.1), "x has dtype"),
        (lambda: losses.gaussian(KEY, linear, X, 0.0, sigma=0.1), "label has dtype"),
        (lambda: losses.gaussian(KEY, linear, X, jnp.arange(2), sigma=0.1), "label has shape"),
        (lambda: losses.smooth_adv(KEY, linear, X, 0, sigma=0.1, eps=np.inf), "eps is inf"),
        (
            lambda: losses.smooth_adv(KEY, linear, X, 0, sigma=0.1, eps=0.1, low=1.0, high=0.0),
            "low is 1.0 and high 0.0; low must be at most high",
        ),
    ],
)
def test_bad_input_is_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.every
@pytest.mark.parametrize("name", ALL)
def test_functions_that_return_no_logits_are_named(name):
    loss = functools.partial(ALL[name], KEY, sigma=0.3, num_noise=3)
    for fn, word in (
        (lambda x: linear(x)[:1], r"fn returns shape \(1, 4\) for a batch of [31]; it must"),
        (lambda x: linear(x)[0], r"fn returns shape \(4,\)"),
        (lambda x: linear(x)[:, :1], r"fn returns shape \([31], 1\)"),
        (lambda x: (linear(x), 1), "fn returns a tuple"),
        (lambda x: linear(x).astype(jnp.int32), "fn returns dtype int32; it must return floating"),
        (lambda x: linear(x).astype(jnp.complex64), "fn returns dtype complex64"),
    ):
        with pytest.raises(ValueError, match=word):
            loss(fn, X, 0)
        with pytest.raises(ValueError, match=word):
            jax.jit(lambda x: loss(fn, x, 0))(X)  # noqa: B023
    for sigma in (np.inf, np.nan):
        with pytest.raises(ValueError, match=f"sigma is {sigma}"):
            ALL[name](KEY, linear, X, 0, sigma=sigma)


@pytest.mark.parametrize("name", ALL)
def test_labels_that_are_no_class(name):
    """Refused where they are known, also while others are traced; NaN where they are not."""
    loss = functools.partial(ALL[name], sigma=0.3)
    for label in (-1, 4, np.uint8(200), jnp.int32(4)):
        with pytest.raises(ValueError, match=f"label is {int(label)}; .* the 4 classes, 0 to 3"):
            loss(KEY, linear, X, label)
        with pytest.raises(ValueError, match="the 4 classes"):
            jax.jit(lambda x: loss(KEY, linear, x, label))(X)  # noqa: B023
    traced = jax.jit(lambda label: loss(KEY, linear, X, label))
    for label, valid in ((-1, False), (0, True), (3, True), (4, False)):
        value = traced(jnp.int32(label))
        np.testing.assert_allclose(
            value, loss(KEY, linear, X, label) if valid else jnp.nan, rtol=1e-4
        )


def test_weights_and_amounts_are_one_number():
    fn, x, key = (lambda x: jnp.stack([x, -x], -1)), jnp.float32(0.5), jax.random.key(0)
    for call, word in [
        (lambda: losses.stability(key, fn, x, 0, sigma=1.0, weight=jnp.ones(2)), "weight is"),
        (lambda: losses.stability(key, fn, x, 0, sigma=1.0, weight=float("inf")), "weight is inf"),
        (lambda: losses.gaussian(key, fn, x, 0, sigma=jnp.ones(3)), "sigma has shape"),
        (lambda: losses.smooth_adv(key, fn, x, 0, sigma=1.0, eps=jnp.ones(2)), "eps has shape"),
    ]:
        with pytest.raises(ValueError, match=word):
            call()
