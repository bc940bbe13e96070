"""The Lipschitz constant from below, against matrices and networks whose norms are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.attacks import lipschitz_lower_bound


@pytest.mark.parametrize("shape", [(6, 6), (3, 10), (12, 2), (1, 5), (40, 1)])
def test_linear_map_has_its_spectral_norm(seeded_key, shape):
    w = jax.random.normal(seeded_key, shape)
    x = jax.random.normal(jax.random.key(9), (2, shape[0]))
    bound = lipschitz_lower_bound(seeded_key, lambda x: x @ w, x, num_power_iters=100)
    exact = np.linalg.norm(np.asarray(w, np.float64), 2)
    assert bound.kind == "lower"
    assert exact * (1 - 2e-3) <= float(bound.value) <= exact


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e15])
def test_scale_does_not_matter(key, scale):
    def fn(x):
        return scale * jnp.stack([3 * x[:, 0], x[:, 1]], axis=1)

    value = float(lipschitz_lower_bound(key, fn, jnp.ones((1, 2))).value)
    assert 2.999 * scale <= value <= 3 * scale * (1 + 1e-6)


def test_one_iteration_is_still_below(seeded_key):
    w = jax.random.normal(seeded_key, (30, 30))
    fn, x = lambda x: x @ w, jnp.ones((1, 30))
    exact = np.linalg.norm(np.asarray(w, np.float64), 2)
    few = float(lipschitz_lower_bound(seeded_key, fn, x, num_power_iters=1).value)
    many = float(lipschitz_lower_bound(seeded_key, fn, x, num_power_iters=200).value)
    assert few < 0.99 * exact < many <= exact


def test_piecewise_linear_network_at_each_point(key):
    keys = jax.random.split(key, 4)
    w1, w2 = jax.random.normal(keys[0], (5, 16)), jax.random.normal(keys[1], (16, 3))

    def fn(x):
        return jax.nn.relu(x @ w1) @ w2

    x = jax.random.normal(keys[2], (8, 5))
    jacobians = jax.vmap(jax.jacobian(lambda v: fn(v[None])[0]))(x)
    norms = np.linalg.norm(np.asarray(jacobians, np.float64), ord=2, axis=(1, 2))
    values = [
        float(lipschitz_lower_bound(keys[3], fn, x[i : i + 1], num_power_iters=200).value)
        for i in range(8)
    ]
    np.testing.assert_array_less(values, norms * (1 + 1e-6))
    np.testing.assert_allclose(values, norms, rtol=1e-3)
    together = lipschitz_lower_bound(keys[3], fn, x, num_power_iters=200).value
    np.testing.assert_allclose(together, max(values), rtol=1e-4)
    assert together <= np.linalg.norm(w1, 2) * np.linalg.norm(w2, 2)


def test_a_layer_that_claims_too_small_a_constant_is_refuted(key):
    w = jnp.eye(4) * 1.01
    assert lipschitz_lower_bound(key, lambda x: x @ w, jnp.ones((1, 4))).value > 1.009
    assert lipschitz_lower_bound(key, lambda x: x @ jnp.eye(4), jnp.ones((1, 4))).value <= 1


def test_ascent_climbs_to_the_steepest_point_of_the_box(key):
    def fn(x):
        return jnp.sin(x)  # slope cos(x): 1 at 0

    x = jnp.full((3, 2), 1.0)
    stay = lipschitz_lower_bound(key, fn, x).value
    climb = lipschitz_lower_bound(key, fn, x, num_ascent_steps=60, step_size=0.05).value
    np.testing.assert_allclose(stay, np.cos(1.0), rtol=1e-4)
    assert 0.999 <= climb <= 1
    options = dict(num_ascent_steps=60, step_size=0.05, bounds=(0.5, 1.5))
    boxed = lipschitz_lower_bound(key, fn, x, **options).value
    np.testing.assert_allclose(boxed, np.cos(0.5), rtol=1e-3)


def test_zero_jacobian_is_zero_and_nan_is_nan(key):
    x = jnp.ones((2, 3))
    for steps in (0, 3):
        flat = lipschitz_lower_bound(key, jnp.zeros_like, x, num_ascent_steps=steps)
        broken = lipschitz_lower_bound(key, lambda x: x * jnp.nan, x, num_ascent_steps=steps)
        assert flat.value == 0 and np.isnan(broken.value)


def test_images_any_output_shape_and_jit(key):
    kernel = jax.random.normal(key, (3, 3, 2, 4))

    def fn(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = jax.random.normal(key, (1, 6, 6, 2))
    exact = np.linalg.norm(
        np.asarray(jax.jacobian(fn)(x), np.float64).reshape(6 * 6 * 4, 6 * 6 * 2), 2
    )
    eager = lipschitz_lower_bound(key, fn, x, num_power_iters=200)
    jitted = jax.jit(lambda x: lipschitz_lower_bound(key, fn, x, num_power_iters=200))(x)
    assert jitted.kind == "lower"
    assert 0.995 * exact <= float(eager.value) <= exact
    np.testing.assert_allclose(jitted.value, eager.value, rtol=1e-5)


def test_new_weights_are_not_traced_again(key):
    traces = []

    def apply(w, x):
        traces.append(x.shape)
        return x * w

    counts = []
    for scale in (1.0, 2.0):
        fn = jax.tree_util.Partial(apply, jnp.full((1, 3), scale))
        value = lipschitz_lower_bound(key, fn, jnp.ones((2, 3))).value
        np.testing.assert_allclose(value, scale, rtol=1e-5)
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0


@pytest.mark.every
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=jnp.ones((2, 3), int)), "x has dtype int32"),
        (dict(x=jnp.float32(1.0)), "x has shape"),
        (dict(x=jnp.ones((0, 3))), "no axis may have length 0"),
        (dict(num_power_iters=0), "num_power_iters is 0"),
        (dict(num_ascent_steps=-1), "num_ascent_steps is -1"),
        (dict(step_size=-1.0), "step_size is -1.0"),
        (dict(bounds=(1, 1)), "bounds is"),
        (dict(fn=lambda x: x.sum(axis=0)), "fn returns"),
        (dict(fn=lambda x: x > 0), "fn returns"),
        (dict(fn="net"), "fn is 'net'"),
    ],
)
def test_bad_input_is_named(key, change, message):
    arguments = dict(fn=lambda x: x, x=jnp.ones((2, 3))) | change
    with pytest.raises(ValueError, match=message):
        lipschitz_lower_bound(key, arguments.pop("fn"), arguments.pop("x"), **arguments)
