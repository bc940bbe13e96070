"""Errors of public implementations, one test each: ours does not have it.

The numbers are those of the list that the layers were built from; what a longer test holds already is
named by it. Where the error is a formula, the wrong one stands beside ours and fails.
"""

import importlib
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import data, nn
from lipjax.attacks import lipschitz_lower_bound
from lipjax.layers import activations, block, cpl, pooling, sandwich, skew, sll, triangular
from lipjax.models import SIZES, ConvNetConfig, LipschitzConvNet
from lipjax.spectral import (
    conv_gram_iteration,
    conv_spectral_norm,
    gram_iteration,
    network_bound,
    spectral_norm,
)
from lipjax.training import triangular as triangular_schedule
from tests import oracles

RNG = np.random.default_rng(0)


def conv_matrix(fn, shape):
    """The matrix of a linear function of arrays of this shape."""
    return np.asarray(jax.jacobian(lambda x: fn(x).ravel())(jnp.zeros(shape))).reshape(
        -1, math.prod(shape)
    )


def test_1_q_acts_in_convolutions():
    """Both factors on the same axis of the Gram cancel: the weights then get no gradient."""
    params = sll.init_conv(jax.random.key(0), 3, 4)

    def size(log_q):
        return jnp.sum(sll.constrain_conv(params._replace(log_q=log_q)).step)

    assert float(jnp.abs(jax.grad(size)(jnp.array([0.5, 0.0, -0.5, 1.0]))).max()) > 1e-3
    gram = RNG.normal(size=(4, 4, 5, 5))
    q = np.exp(RNG.normal(size=4)).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(np.abs(gram * q / q).sum((1, 2, 3)), np.abs(gram).sum((1, 2, 3)))


def test_2_no_epsilon_shortens_the_diagonal():
    """A weight of 1e-8 among ones, divided by itself and an epsilon of 1e-6, gave a slope of 200."""
    log_q = jnp.zeros(8).at[0].set(math.log(1e-8))
    weights = sll.constrain_dense(sll.Params(jnp.eye(8), jnp.zeros(8), log_q))
    published = weights._replace(step=weights.step.at[0].multiply((1e-8 + 1e-6) / 1e-8))
    x = jnp.asarray(1e3 * np.abs(RNG.normal(size=8)), jnp.float32)
    slope, wrong = (
        oracles.norm(np.asarray(jax.jacobian(lambda x, w=w: sll.apply_dense(w, x))(x)))
        for w in (weights, published)
    )
    assert slope <= 1 + 1e-5 and wrong > 100


@pytest.mark.parametrize("size", [1, 4, 5])
def test_3_windows_other_than_three(size):
    weights = sll.constrain_conv(sll.init_conv(jax.random.key(0), 2, 3, kernel_size=size))
    x = jax.random.normal(jax.random.key(1), (6, 6, 2))
    jacobian = jax.jacobian(lambda x: sll.apply_conv(weights, x).ravel())(x).reshape(72, 72)
    assert 0.5 < oracles.norm(np.asarray(jacobian)) <= 1 + 1e-5


@pytest.mark.every
@pytest.mark.parametrize("name", data.NAMES)
def test_4_every_data_set_that_is_named_can_be_read(name, tmp_path):
    """Or says which file is missing; one public reader could not be reached at all."""
    if name == "digits":
        assert len(data.load(name).train.labels) > 1000
        return
    with pytest.raises(OSError, match="data_dir|missing|holds no"):
        data.load(name, data_dir=tmp_path)


def test_5_an_ascent_is_named_a_lower_bound():
    layer = nn.freeze(nn.SLLDense(4, 6, rngs=nnx.Rngs(0)))
    found = lipschitz_lower_bound(jax.random.key(0), layer, jnp.ones((2, 4)), num_ascent_steps=2)
    assert found.kind == "lower" and layer.bound().kind == "upper"


def test_6_power_iteration_is_no_bound():
    """From a start beside the first singular vector it finds the second; see normalized_test."""
    kernel = np.diag([3.0, 2.0, 1.0]).astype(np.float32)
    v = np.array([0.0, 1.0, 0.1], np.float32)
    for _ in range(20):
        v = kernel.T @ (kernel @ v)
        v /= np.linalg.norm(v)
    assert np.linalg.norm(kernel @ v) < 2.0001
    assert 3 <= float(spectral_norm(kernel)) < 3.01
    weights = cpl.constrain_dense(cpl.Params(jnp.asarray(kernel), jnp.zeros(3)))
    assert float(weights.step.max()) <= 2 / 9


def test_7_the_schedule_has_its_first_ramp_and_ends_at_zero():
    """Counting epochs from 1 skipped the first of them and left the last without a rate."""
    rates = np.asarray(triangular_schedule(1.0, 100)(jnp.arange(101)))
    assert rates[0] == 0 < rates[1] < 0.05 and rates[99] > 0 == rates[100]


def test_8_the_gradient_is_that_of_all_iterations():
    """That of one iteration is off by the ratios of the singular values."""
    kernel = jnp.asarray(RNG.normal(size=(9, 5)), jnp.float32)
    u, _, vt = np.linalg.svd(np.asarray(kernel, np.float64))
    truth = np.outer(u[:, 0], vt[0])
    right = jax.grad(lambda k: gram_iteration(k, num_iters=8))(kernel)
    gram = np.float64(kernel.T @ kernel)  # of |G^2|_F^(1/2), one squaring
    wrong = np.float64(kernel) @ gram @ gram @ gram
    wrong /= np.linalg.norm(gram @ gram) ** 1.75
    np.testing.assert_allclose(right, truth, atol=2e-3)
    assert np.abs(np.asarray(wrong) - truth).max() > 0.02


@pytest.mark.parametrize("shape", [(64, 3), (3, 64)])
def test_9_the_smaller_gram_matrix_is_made(shape):
    jaxpr = jax.make_jaxpr(lambda k: gram_iteration(k, num_iters=3))(jnp.ones(shape))
    sizes = [v.aval.shape for eqn in jaxpr.eqns for v in eqn.outvars]
    assert "64,64" not in str(jaxpr) and sizes


def test_10_commands_of_the_documents_exist():
    """A README named a choice that its program did not have."""
    root = Path(__file__).parents[1]
    found = 0
    for name in ("README.md", "experiments/README.md"):
        for module, rest in re.findall(
            r"python -m (experiments[\w.]*)([^`\n#]*)", (root / name).read_text()
        ):
            spec = importlib.util.find_spec(module)
            assert spec is not None, module
            options = re.findall(r'add_argument\("(--[\w-]+)"', Path(spec.origin).read_text())
            for word in rest.split():
                found += 1
                assert not word.startswith("--") or word in options, (module, word)
                config = word.removeprefix("runs/")
                if (
                    module.split(".")[-1] in ("train", "certify", "smooth", "hybrid")
                    and config.islower()
                ):
                    known = (
                        config in options
                        or (root / "experiments/configs" / f"{config}.py").exists()
                    )
                    assert known or "=" in word or word.startswith("--"), (module, word)
    assert found > 10


def test_11_order_of_householder_groups_signs_and_even_windows():
    x = jnp.asarray(RNG.normal(size=(50, 6)), jnp.float32)
    for y in (
        activations.householder(x, jnp.array([0.3, 1.0, 2.0])),
        activations.householder_order_2(x, jnp.full((3, 3), 0.7)),
    ):  # divided by sqrt(2) in one library
        np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), 1e-5)
    groups = np.zeros((1, 1, 2, 4), np.float32)
    groups[0, 0] = [[2, 0, 0, 3], [0, 2, 3, 0]]  # two groups, of norms 2 and 3: 3, and not 6
    bound = conv_gram_iteration(groups, padding="zero", input_size=4, groups=2)
    assert 3 <= float(bound) < 3.01
    kernel = jnp.zeros((4, 4)).at[:, :2].set(jnp.eye(4)[:, :2])  # sign(0) = 0 loses two columns
    made = triangular.constrain_dense(triangular.Params(kernel, jnp.zeros(4))).kernel
    np.testing.assert_allclose(oracles.singular_values(np.asarray(made)), 1, atol=1e-5)
    even = np.ones((2, 2, 1, 1), np.float32)
    bound = conv_spectral_norm(even, input_size=3, padding="zero")
    assert float(bound) >= 3.2  # |1 + exp(i t)|^2, largest between the three frequencies


def test_12_reflection_is_refused_as_padding():
    """With reflected borders a window of ones has a norm 1.06 times that with zeros."""
    layer = nn.SpectralConv(1, 1, rngs=nnx.Rngs(0))
    kernel = np.ones((3, 3, 1, 1), np.float32)

    def reflected(x):
        return jax.lax.conv_general_dilated(
            jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode="reflect")[None],
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]

    norm = oracles.norm(conv_matrix(reflected, (4, 4, 1)))
    assert norm > 1.05 * float(conv_spectral_norm(kernel, input_size=4, padding="zero"))
    with pytest.raises(ValueError, match="padding is 'reflect'"):
        nn.SpectralConv(1, 1, padding="reflect", rngs=nnx.Rngs(0))
    assert layer.bound().value <= 1 + 1e-5


def test_13_what_is_unknown_is_no_one_and_windows_that_overlap_count():
    def overlapping(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3), (1, 1), "SAME")

    bound = network_bound(overlapping, jnp.ones((1, 6))).bound
    assert float(bound.value) >= math.sqrt(3) - 1e-6
    with pytest.raises(ValueError, match="not known here"):
        network_bound(lambda x: jnp.linalg.inv(x), jnp.eye(3))
    with pytest.raises(ValueError, match="window|divide|3"):
        pooling.max_pool(jnp.ones((4, 4, 1)), 3)


def test_14_the_last_sandwich_layer_takes_both_signs():
    """Held by sandwich_test; a last layer with an activation takes one."""
    weights = sandwich.constrain_dense(sandwich.init_dense(jax.random.key(1), 4, 1))
    x = jnp.asarray(RNG.normal(size=(200, 4)), jnp.float32)
    assert float(sandwich.output_dense(weights, x).min()) < 0
    assert float(sandwich.output_dense(weights, x).max()) > 0


@pytest.mark.parametrize("module", [sll, cpl])
def test_15_zero_kernels_have_finite_values_and_gradients(module):
    params = jax.tree.map(jnp.zeros_like, module.init_conv(jax.random.key(0), 2, 3))

    def total(params):
        return jnp.sum(module.apply_conv(module.constrain_conv(params), jnp.ones((4, 4, 2))) ** 2)

    value, grads = jax.value_and_grad(total)(params)
    assert float(value) == 32
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_16_five_terms_of_the_exponential_expand():
    """Held by skew_test: orders 5 and 6 exceed 1 by their own bound; the module refuses them."""
    with pytest.raises(ValueError, match="order is 5"):
        nn.SOCConv(2, 2, order=5, rngs=nnx.Rngs(0))
    angle = 1.0
    series = sum((1j * angle) ** k / math.factorial(k) for k in range(6))
    assert abs(series) > 1 and skew.ORDER in (3, 4, 7, 8, 11, 12)


def test_17_no_float32_angle_falls_between_the_sectors():
    """Held by activations_test: a strict last sector leaves zeros in the output."""
    t = np.float32(1.3)
    angles = np.nextafter(np.float32(t / 2), np.float32(-1)) + np.linspace(-1e-6, 1e-6, 101)
    x = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    y = activations.householder_order_2(jnp.asarray(x), jnp.array([[t], [1.0], [0.5]]))
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("log_psi", [200.0, -200.0])
def test_18_no_scale_of_a_sandwich_overflows(log_psi):
    params = sandwich.init_dense(jax.random.key(0), 4, 3)
    params = params._replace(log_psi=jnp.full(3, log_psi))

    def total(params):
        return jnp.sum(sandwich.apply_dense(sandwich.constrain_dense(params), jnp.ones(4)))

    value, grads = jax.value_and_grad(total)(params)
    assert np.isfinite(value)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_19_the_smallest_deviation_counts():
    """1 / max(std) is right only where all are equal."""
    config = ConvNetConfig(std=(0.25, 0.2, 0.5), conv_depth=1, dense_depth=0)
    assert config.input_lipschitz >= 5 > 1 / 0.5
    model = LipschitzConvNet(config, rngs=nnx.Rngs(0))
    assert float(model.feature_bound().value) >= 5


def test_20_the_bias_is_added_once():
    params = cpl.init_dense(jax.random.key(0), 4, 3)._replace(bias=jnp.array([1.0, -2.0, 0.5]))
    weights = cpl.constrain_dense(params)
    x = jnp.asarray(RNG.normal(size=4), jnp.float32)
    kernel, step = np.asarray(weights.kernel), np.asarray(weights.step)
    hidden = np.maximum(x @ kernel + params.bias, 0)
    np.testing.assert_allclose(
        cpl.apply_dense(weights, x), x - (step * hidden) @ kernel.T, atol=1e-6
    )


def test_21_block_convolutions_use_the_padding_they_are_given():
    weights = block.constrain_conv(block.init_conv(jax.random.key(0), 2, 2))
    x = jnp.ones((4, 4, 2))
    zero, circular = (block.apply_conv(weights, x, padding=p) for p in ("zero", "circular"))
    assert float(jnp.abs(zero - circular).max()) > 0.05
    with pytest.raises(ValueError, match="padding is 'same'"):
        block.apply_conv(weights, x, padding="same")


def test_22_the_norm_of_a_reshaped_kernel_is_not_that_of_the_convolution():
    kernel = np.ones((3, 3, 1, 1), np.float32)
    reshaped = np.linalg.norm(kernel.reshape(-1, 1), 2)
    exact = conv_spectral_norm(kernel, input_size=8, padding="zero")
    truth = oracles.norm(
        conv_matrix(
            lambda x: jax.lax.conv_general_dilated(
                x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )[0],
            (8, 8, 1),
        )
    )
    assert reshaped < 3.001 and 8 < truth and abs(float(exact) / truth - 1) < 1e-6
    assert SIZES["S"].kernel_size == 3
