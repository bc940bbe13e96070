"""The losses against their formulas in float64, and where they must not break."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipjax.training import cross_entropy, margin_loss
from lipjax.training.losses import SLL_OFFSET


def reference_cross_entropy(logits, label, offset, temperature):
    scores = np.asarray(logits, np.float64).copy()
    scores[label] -= offset
    scores /= temperature
    largest = scores.max()
    log_sum = np.log(np.exp(scores - largest).sum()) + largest
    return temperature * (log_sum - scores[label])


def reference_margin_loss(logits, label, margin):
    logits = np.asarray(logits, np.float64)
    terms = [max(0.0, margin - logits[label] + z) for j, z in enumerate(logits) if j != label]
    return sum(terms) / len(logits)


@pytest.mark.parametrize(
    "offset, temperature", [(0.0, 1.0), (SLL_OFFSET, 0.25), (0.9, 0.15), (2.0, 3.0)]
)
def test_cross_entropy_is_the_formula(seeded_key, offset, temperature):
    logits = 2 * jax.random.normal(seeded_key, (7,))
    for label in range(7):
        ours = cross_entropy(logits, label, offset=offset, temperature=temperature)
        truth = reference_cross_entropy(logits, label, offset, temperature)
        np.testing.assert_allclose(ours, truth, rtol=2e-6, atol=1e-6)


def test_an_offset_of_the_wrong_sign_is_another_loss(key):
    logits = jax.random.normal(key, (5,))
    wrong = reference_cross_entropy(logits, 1, -1.0, 0.5)
    ours = cross_entropy(logits, 1, offset=1.0, temperature=0.5)
    assert abs(float(ours) - wrong) > 0.5


def test_the_offset_asks_for_a_margin():
    """Right but close: ordinary cross-entropy at a low temperature is content, this is not."""
    logits = jnp.array([1.0, 0.0])
    slope = jax.grad(lambda z, offset: cross_entropy(z, 0, offset=offset, temperature=0.05))
    assert abs(slope(logits, 0.0)[0]) < 1e-6
    assert abs(slope(logits, 3.0)[0] + 1) < 1e-6


def test_margin_loss_is_the_formula(seeded_key):
    logits = jax.random.normal(seeded_key, (7,))
    for label in range(7):
        truth = reference_margin_loss(logits, label, 0.7)
        np.testing.assert_allclose(margin_loss(logits, label), truth, rtol=1e-6)
    hinge = optax.losses.multiclass_hinge_loss(logits, jnp.int32(0))
    assert abs(float(hinge) - reference_margin_loss(logits, 0, 1.0)) > 1e-3  # another loss


def test_margin_loss_is_zero_once_the_margin_is_there():
    assert margin_loss(jnp.array([1.0, 0.25, 0.0]), 0, margin=0.75) == 0
    assert margin_loss(jnp.array([1.0, 0.3, 0.0]), 0, margin=0.75) > 0


LOSSES = {
    "cross_entropy": lambda z, y: cross_entropy(z, y, offset=SLL_OFFSET, temperature=0.25),
    "margin_loss": margin_loss,
}


@pytest.fixture(params=LOSSES.values(), ids=LOSSES)
def loss(request):
    return request.param


@pytest.mark.parametrize("size", [0.0, 1e-38, 1.0, 1e4, 1e30, 1e36])
def test_loss_and_gradient_are_finite(loss, size):
    for signs in ([1, -1, 0], [-1, 1, 1], [0, 0, 0], [-1, -1, -1]):
        logits = size * jnp.array(signs, jnp.float32)
        for label in range(3):
            value, slope = jax.value_and_grad(loss)(logits, label)
            assert np.isfinite(value) and value >= 0
            assert np.isfinite(slope).all()


def test_batches_come_from_vmap_and_jit_changes_nothing(loss, key):
    logits = jax.random.normal(key, (6, 4))
    labels = jnp.arange(6, dtype=jnp.int32) % 4
    mapped = jax.jit(jax.vmap(loss))(logits, labels)
    singly = jnp.stack([loss(z, y) for z, y in zip(logits, labels)])
    np.testing.assert_allclose(mapped, singly, rtol=1e-6)


def test_a_traced_label_out_of_range_gives_nan(loss):
    logits = jnp.array([0.5, 0.0, -1.0])
    values = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(logits, jnp.array([-1, 0, 2, 3]))
    assert np.isnan(values).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    "logits, label, message",
    [
        (jnp.zeros((2, 3)), 0, "logits has shape"),
        (jnp.zeros(0), 0, "logits has shape"),
        (jnp.zeros(3, jnp.bfloat16), 0, "logits has dtype bfloat16"),
        (jnp.zeros(3), jnp.zeros(2, jnp.int32), "label has shape"),
        (jnp.zeros(3), 1.0, "label has dtype"),
        (jnp.zeros(3), 3, "label is 3"),
        (jnp.zeros(3), -1, "label is -1"),
    ],
)
def test_errors_name_the_argument(loss, logits, label, message):
    with pytest.raises(ValueError, match=message):
        loss(logits, label)


def test_options_are_checked():
    with pytest.raises(ValueError, match="temperature is 0"):
        cross_entropy(jnp.zeros(3), 0, temperature=0.0)
    with pytest.raises(ValueError, match="offset is -1"):
        cross_entropy(jnp.zeros(3), 0, offset=-1.0)
    with pytest.raises(ValueError, match="margin is nan"):
        margin_loss(jnp.zeros(3), 0, margin=float("nan"))
