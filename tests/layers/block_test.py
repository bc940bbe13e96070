"""Block-orthogonal kernels: orthogonal at every frequency, with strides and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import block, forms, sandwich
from tests import oracles

RNG = np.random.default_rng(0)


def operator(weights, size, **options):
    shape = (*size, weights.kernel.shape[-2])
    fn = jax.jit(lambda x: block.linear_conv(weights, x, **options))
    jacobian = np.asarray(jax.jacobian(fn)(jnp.zeros(shape)), np.float64)
    return jacobian.reshape(-1, int(np.prod(shape)))


@pytest.mark.few(1)
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
def test_square_kernels_are_orthogonal_with_circular_padding(kernel_size):
    weights = block.constrain_conv(
        block.init_conv(jax.random.key(0), 4, 4, kernel_size=kernel_size)
    )
    assert weights.kernel.shape == (kernel_size, kernel_size, 4, 4)
    for size in ((4, 4), (5, 6)):
        values = oracles.singular_values(operator(weights, size, padding="circular"))
        np.testing.assert_allclose(values, 1, atol=1e-5)
        assert oracles.norm(operator(weights, size, padding="zero")) <= 1 + 1e-6


@pytest.mark.few(1)
@pytest.mark.parametrize("channels", [(2, 5), (5, 2)])
def test_unequal_channels_are_isometries_or_projections(channels):
    weights = block.constrain_conv(block.init_conv(jax.random.key(0), *channels))
    values = oracles.singular_values(operator(weights, (4, 4), padding="circular"))
    np.testing.assert_allclose(values[: 16 * min(channels)], 1, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("kernel_size,stride", [(2, 2), (3, 2), (4, 2), (3, 3)])
def test_strided_kernels_are_orthogonal(kernel_size, stride):
    params = block.init_conv(
        jax.random.key(0), 2, 2 * stride**2, kernel_size=kernel_size, strides=stride
    )
    weights = block.constrain_conv(params)
    size = (2 * stride, 3 * stride)
    values = oracles.singular_values(operator(weights, size, padding="circular"))
    np.testing.assert_allclose(values, 1, atol=1e-5)
    for other in (size, (5, 7)):
        norm = oracles.norm(operator(weights, other, padding="zero"))
        assert norm <= 1 + 1e-6
    assert float(block.bound(weights).value) <= 1 + 1e-4
    frozen = block.freeze_conv(params)
    assert float(block.bound(frozen).value) <= 1 + 1e-5
    np.testing.assert_allclose(frozen.kernel, weights.kernel, atol=1e-5)


def test_sizes_that_the_stride_does_not_divide_are_refused_where_they_would_expand():
    weights = block.constrain_conv(
        block.init_conv(jax.random.key(0), 2, 8, kernel_size=2, strides=2)
    )
    with pytest.raises(ValueError, match="multiples of the stride 2"):
        block.apply_conv(weights, jnp.ones((5, 4, 2)), padding="circular")
    from lipjax.layers._convolution import convolve

    fn = lambda x: convolve(x, weights.kernel, padding="circular", strides=2)  # noqa: E731
    jacobian = np.asarray(jax.jacobian(fn)(jnp.zeros((5, 4, 2)))).reshape(-1, 40)
    assert oracles.norm(jacobian) > 1.3  # the negative control: what is refused does expand


def test_strided_weights_keep_their_stride():
    """Applied without it they expand, so nothing takes them that would."""
    weights = block.constrain_conv(
        block.init_conv(jax.random.key(0), 2, 8, kernel_size=2, strides=2)
    )
    assert block.apply_conv(weights, jnp.ones((4, 4, 2))).shape == (2, 2, 8)
    unstrided = operator(forms.linear(weights.kernel, weights.bias), (4, 4))
    assert oracles.norm(unstrided) > 1.3  # the negative control
    for use in (
        forms.as_residual,
        lambda w: forms.linear_conv(w, jnp.ones((4, 4, 2))),
        sandwich.of_contraction,
    ):
        with pytest.raises(ValueError, match="weights is a .*Strided"):
            use(weights)
    with pytest.raises(ValueError, match="weights is a .*Params"):
        block.apply_conv(block.init_conv(jax.random.key(0), 2, 2), jnp.ones((4, 4, 2)))


def test_projections_that_are_off_make_a_contraction_still():
    params = block.init_conv(jax.random.key(0), 4, 4)
    params = params._replace(factors=params.factors.at[:, 0, :, 0].set(0))
    weights = block.constrain_conv(params, num_steps=1)
    assert oracles.norm(operator(weights, (4, 4), padding="circular")) <= 1 + 1e-6


def test_the_bound_of_wrong_weights_says_so():
    weights = block.constrain_conv(block.init_conv(jax.random.key(0), 4, 4))
    larger = weights._replace(kernel=1.2 * weights.kernel)
    assert 1.2 <= float(block.bound(larger).value) <= 1.2 * 1.02
    plain = weights._replace(kernel=weights.kernel + 0.1)
    norm = oracles.norm(operator(plain, (6, 6), padding="circular"))
    assert 1.2 < norm <= float(block.bound(plain).value)


def test_gradients_are_finite_at_zero():
    params = jax.tree.map(jnp.zeros_like, block.init_conv(jax.random.key(0), 4, 4))
    slope = jax.grad(lambda p: block.constrain_conv(p).kernel.sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.every
@pytest.mark.parametrize(
    "options,word",
    [
        (dict(kernel_size=1, strides=2), "kernel_size is 1"),
        (dict(in_features=1), "in_features is 1"),
        (dict(strides=0), "strides is 0"),
        (dict(strides=(1, 2)), "strides is .1, 2.; .* same on both axes"),
        (dict(kernel_size=(3, 5)), "kernel_size is .3, 5.; .* same on both axes"),
    ],
)
def test_bad_options_are_named(options, word):
    sizes = dict(in_features=4, out_features=4) | options
    with pytest.raises(ValueError, match=word):
        block.init_conv(jax.random.key(0), **sizes)


@pytest.mark.every
@pytest.mark.parametrize(
    "kernel,factors,word",
    [
        ((1, 2, 3, 3), (2, 0, 3, 1), "its first two axes are the stride and must be equal"),
        ((2, 3, 3, 3), (2, 0, 3, 1), "its first two axes are the stride"),
        ((1, 1, 4, 4), (2, 2, 2), r"params.factors has shape \(2, 2, 2\)"),
        ((1, 1, 4, 4), (3, 2, 4, 2), "params.factors has shape"),
        ((1, 1, 4, 4), (2, 2, 5, 2), "params.factors has shape"),
    ],
)
def test_parameters_of_other_shapes_are_named(kernel, factors, word):
    """A window that is no square made a layer of norm 1.41."""
    params = block.Params(jnp.ones(kernel), jnp.ones(factors), jnp.zeros(kernel[-1]))
    with pytest.raises(ValueError, match=word):
        block.constrain_conv(params)
