"""The sandwich form: its definition, its condition, and what other contractions make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import bjorck, forms, householder, sandwich, sll
from tests import oracles

RNG = np.random.default_rng(0)


def test_definition():
    params = sandwich.init_dense(jax.random.key(0), 4, 3)
    params = params._replace(log_psi=jnp.array([0.5, -1.0, 2.0]), bias=jnp.array([0.1, -0.2, 0.3]))
    weights = sandwich.constrain_dense(params)
    a, b = np.float64(weights.kernel[:3]).T, np.float64(weights.kernel[3:]).T
    np.testing.assert_allclose(a @ a.T + b @ b.T, np.eye(3), atol=1e-5)
    psi = np.exp(np.float64(params.log_psi))
    x = RNG.normal(size=4)
    hidden = np.maximum(np.sqrt(2) / psi * (b @ x) + params.bias, 0)
    expected = np.sqrt(2) * a.T @ (psi * hidden)
    np.testing.assert_allclose(sandwich.apply_dense(weights, np.float32(x)), expected, atol=1e-5)
    np.testing.assert_allclose(
        sandwich.output_dense(weights, np.float32(x)), b @ x + params.bias, atol=1e-5
    )


def test_a_convolution_of_window_one_is_the_dense_layer_at_each_pixel():
    params = sandwich.init_conv(jax.random.key(0), 4, 3, kernel_size=1)
    params = params._replace(log_psi=jnp.array([0.5, -1.0, 0.2]), bias=jnp.array([0.1, -0.2, 0.3]))
    dense = params._replace(kernel=params.kernel[0, 0])
    x = RNG.normal(size=(2, 5, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(
        sandwich.apply_conv(sandwich.constrain_conv(params, input_size=(5, 4)), x),
        sandwich.apply_dense(sandwich.constrain_dense(dense), x),
        atol=1e-5,
    )


def test_the_output_layer_takes_both_signs():
    """A last layer with its activation, as one public implementation has it, cannot."""
    params = sandwich.init_dense(jax.random.key(1), 4, 1)
    weights = sandwich.constrain_dense(params)
    x = RNG.normal(size=(200, 4)).astype(np.float32)
    signed = np.asarray(sandwich.output_dense(weights, x))
    assert signed.min() < 0 < signed.max()
    wrong = np.asarray(sandwich.apply_dense(weights, x))
    assert wrong.min() >= 0 or wrong.max() <= 0


def test_the_output_layer_has_a_bound_of_its_own():
    """For norms below 1 the square, which bounds the layer with its activation, is below that of B."""
    for norm in (0.5, 1.0, 2.0):
        kernel = norm * jnp.eye(4, 2, -2)  # A is 0
        weights = sandwich.of_contraction(forms.linear(kernel, jnp.zeros(2)))
        jacobian = jax.jacobian(lambda x, w=weights: sandwich.output_dense(w, x))(jnp.ones(2))
        truth = oracles.norm(np.asarray(jacobian))
        assert truth <= sandwich.output_bound(weights).value <= truth * (1 + 1e-9)
        np.testing.assert_allclose(sandwich.bound(weights).value, norm**2, rtol=1e-9)
    wrong = weights._replace(bias=jnp.array([0.0, jnp.nan]))
    assert sandwich.output_bound(wrong).value == np.inf


@pytest.mark.parametrize("module", [bjorck, householder])
def test_any_contraction_makes_one(module):
    contraction = module.constrain_dense(module.init_dense(jax.random.key(0), 7, 3))
    weights = sandwich.of_contraction(contraction, jnp.array([1.0, 0.0, -1.0]))
    for _ in range(3):
        x = RNG.normal(size=4).astype(np.float32)
        jacobian = jax.jacobian(lambda x: sandwich.apply_dense(weights, x))(x)
        assert oracles.norm(np.asarray(jacobian)) <= 1 + 1e-5
    assert float(sandwich.bound(weights).value) <= 1 + 1e-5


def test_individual_factors_may_exceed_one_and_their_product_does_not():
    params = sandwich.init_dense(jax.random.key(0), 6, 6)
    params = params._replace(log_psi=jnp.linspace(-3, 3, 6))
    weights = sandwich.constrain_dense(params)
    upper, lower = (np.asarray(half) for half in sandwich.halves(weights))
    psi = np.asarray(sandwich.psi(weights))
    assert oracles.norm(lower / psi) * oracles.norm(upper * psi) > 10
    x = RNG.normal(size=(20, 6)).astype(np.float32)
    jacobians = jax.vmap(jax.jacobian(lambda x: sandwich.apply_dense(weights, x)))(x)
    assert oracles.singular_values(np.asarray(jacobians)).max() <= 1 + 1e-5


def test_extreme_psi_is_clipped():
    params = sandwich.init_dense(jax.random.key(0), 4, 3)
    params = params._replace(log_psi=jnp.array([200.0, -200.0, 0.0]))
    y = sandwich.apply_dense(sandwich.constrain_dense(params), jnp.ones(4))
    assert np.isfinite(y).all()


def test_wrong_weights_are_refused():
    square = bjorck.constrain_dense(bjorck.init_dense(jax.random.key(0), 3, 3))
    with pytest.raises(ValueError, match="from m \\+ n to m"):
        sandwich.of_contraction(square)
    with pytest.raises(ValueError, match="must be what constrain_dense of a contraction"):
        sandwich.of_contraction(sll.constrain_dense(sll.init_dense(jax.random.key(0), 7, 3)))
    taps = bjorck.Linear(jnp.ones((3, 3, 4, 2)) / 100, jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="one matrix per frequency"):  # taps are no frequencies
        sandwich.of_contraction(taps)
    with pytest.raises(ValueError, match="Sandwich"):
        sandwich.apply_dense(square, jnp.ones(3))
    with pytest.raises(ValueError, match="Sandwich"):
        sandwich.output_bound(square)


def test_scales_of_a_contraction_fit_it():
    contraction = bjorck.constrain_dense(bjorck.init_dense(jax.random.key(0), 7, 3))
    with pytest.raises(
        ValueError, match="log_psi has shape .5,.; it must have one number for each of 3"
    ):
        sandwich.of_contraction(contraction, jnp.zeros(5))
    with jax.enable_x64(True):
        assert sandwich.of_contraction(contraction).log_psi.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_weights_of_a_smaller_type_are_refused(dtype):
    """Rounded to bfloat16 they have norm 1.003, which the bound of before does not say."""
    weights = sandwich.constrain_dense(sandwich.init_dense(jax.random.key(0), 6, 5))
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), weights)
    for apply in (sandwich.apply_dense, sandwich.output_dense):
        with pytest.raises(ValueError, match="the weights have dtype"):
            apply(narrow, jnp.ones(6))


def test_images_of_another_type_than_the_frequencies_are_refused():
    weights = sandwich.constrain_conv(
        sandwich.init_conv(jax.random.key(0), 2, 3), input_size=(4, 4)
    )
    with jax.enable_x64(True), pytest.raises(ValueError, match="x has dtype float64"):
        sandwich.apply_conv(weights, jnp.ones((4, 4, 2), jnp.float64))
