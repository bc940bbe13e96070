"""The condition as a matrix: by its definition, for known layers, and for wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import forms, lmi, sll
from tests import oracles

RNG = np.random.default_rng(0)


def smallest(matrices):
    return float(np.linalg.eigvalsh(np.float64(lmi.residual(*matrices))).min())


def test_definition():
    skip, outer, inner = (RNG.normal(size=s) for s in ((3, 4), (3, 2), (4, 2)))
    multiplier = RNG.random(2)
    with jax.enable_x64(True):
        got = np.asarray(lmi.residual(*map(jnp.asarray, (skip, outer, inner, multiplier))))
    x, s = RNG.normal(size=4), RNG.normal(size=2)
    form = np.concatenate([x, s]) @ got @ np.concatenate([x, s])
    change = skip @ x + outer @ s
    slope = 2 * s @ (multiplier * (inner.T @ x - s))
    np.testing.assert_allclose(form, x @ x - change @ change - slope, rtol=1e-9)


def test_sandwich_solution_is_exactly_on_the_edge():
    """H = 0, W = sqrt(2) B' / psi, G = sqrt(2) A' psi, Lambda = psi^2 with A A' + B B' = I."""
    with jax.enable_x64(True):
        q = np.linalg.qr(RNG.normal(size=(7, 3)))[0]
        a, b = q[:3].T, q[3:].T
        psi = np.exp(RNG.normal(size=3))
        matrices = lmi.Matrices(
            jnp.zeros((3, 4)),
            jnp.asarray(np.sqrt(2) * a.T * psi),
            jnp.asarray(np.sqrt(2) * b.T / psi),
            jnp.asarray(psi**2),
        )
        assert -1e-9 <= smallest(matrices) <= 1e-9


def test_the_matrices_are_the_layer():
    params = sll.init_conv(jax.random.key(0), 2, 3)
    weights = sll.constrain_conv(params)
    for padding in ("zero", "circular"):
        skip, outer, inner, _ = lmi.of_conv(weights, (3, 4), padding=padding)
        x = RNG.normal(size=(3, 4, 2)).astype(np.float32)
        hidden = jax.nn.relu(inner.T @ x.reshape(-1) + jnp.tile(weights.bias, 12))
        expected = skip @ x.reshape(-1) + outer @ hidden
        got = sll.apply_conv(weights, x, padding=padding).reshape(-1)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0])
def test_mixes_meet_the_condition_where_the_layer_does(gate):
    with jax.enable_x64(True):
        orthogonal = jnp.asarray(np.linalg.qr(RNG.normal(size=(5, 5)))[0])
        weights = sll.constrain_dense(sll.init_dense(jax.random.key(0), 5, 4))
        for layer in (forms.linear(orthogonal, jnp.zeros(5)), weights):
            assert smallest(lmi.of_mix(lmi.of_dense(layer), gate)) >= -1e-9


@pytest.mark.parametrize("gate", [-0.5, 1.5])
def test_negative_control_mixes_with_a_gate_outside_of_0_and_1(gate):
    with jax.enable_x64(True):
        mirror = forms.linear(-jnp.eye(5).at[0, 0].set(-1), jnp.zeros(5))
        inside = forms.as_residual(mirror)
        for layer in (mirror, inside):
            assert smallest(lmi.of_mix(lmi.of_dense(layer), gate)) < -0.5


def test_mixes_of_layers_that_change_the_shape_are_named():
    layer = lmi.of_dense(forms.linear(jnp.eye(3, 4), jnp.zeros(4)))
    with pytest.raises(ValueError, match="from 3 entries to 4; to be mixed"):
        lmi.of_mix(layer, 0.5)


def test_negative_control_diagonal_below_the_gram_matrix():
    with jax.enable_x64(True):
        kernel = jnp.asarray(RNG.normal(size=(6, 4)))
        good = 2 / np.abs(kernel.T @ kernel).sum(1)
        for factor, sound in ((1.0, True), (oracles.norm(kernel) ** 2, False)):
            step = jnp.asarray(good * factor)
            weights = sll.Residual(kernel, jnp.zeros(4), step, jnp.zeros(4))
            assert (smallest(lmi.of_dense(weights)) >= -1e-9) == sound


@pytest.mark.every
@pytest.mark.parametrize(
    "position,shape,word",
    [
        (0, (4, 3), "skip"),
        (1, (3, 5), "outer"),
        (3, (3,), "multiplier"),
        (2, (4,), "inner"),
    ],
)
def test_shapes_that_do_not_fit_are_named(position, shape, word):
    arrays = [jnp.ones((3, 4)), jnp.ones((3, 2)), jnp.ones((4, 2)), jnp.ones(2)]
    arrays[position] = jnp.ones(shape)
    with pytest.raises(ValueError, match=f"{word}.*shape"):
        lmi.residual(*arrays)


def test_weights_of_other_kinds_are_named():
    with pytest.raises(ValueError, match="weights is a tuple"):
        lmi.of_dense((1, 2))
    with pytest.raises(ValueError, match="weights is a Params"):
        lmi.of_conv(sll.init_conv(jax.random.key(0), 2, 3), 3)
    dense = sll.constrain_dense(sll.init_dense(jax.random.key(0), 2, 3))
    with pytest.raises(ValueError, match="use of_dense"):
        lmi.of_conv(dense, np.int64(3))
    assert lmi.residual([[1.0, 0], [0, 1]], [[0.0], [0]], [[0.0], [0]], [1.0]).shape == (3, 3)
