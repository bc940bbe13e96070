"""The losses against their formulas in float64, and where they must not break."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipjax import margin, training
from lipjax.training import cross_entropy, margin_loss
from lipjax.training.losses import (
    SLL_OFFSET,
    binary_hkr,
    certificate_regularized,
    emma,
    emma_logits,
    hkr,
    logit_annealing,
)
from lipjax.typing import Bound


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


# --- Certificate regularization --------------------------------------------------------------------


def reference_distances(logits, label, lipschitz, head):
    """What each gap is worth in the input."""
    logits = np.asarray(logits, np.float64)
    constants = np.full(len(logits), np.sqrt(2))
    if head is not None:
        head = np.asarray(head, np.float64)
        constants = np.linalg.norm(head - head[:, [label]], axis=0)
    return lipschitz * constants, logits[label] - logits


def reference_certificate_regularized(logits, label, gamma, lipschitz, head=None):
    constants, gaps = reference_distances(logits, label, lipschitz, head)
    radius = min(gaps[k] / constants[k] for k in range(len(gaps)) if k != label)
    return reference_cross_entropy(logits, label, 0.0, 1.0) - gamma * max(0.0, radius)


def reference_emma(logits, label, epsilon, lipschitz, head=None, part=None):
    constants, gaps = reference_distances(logits, label, lipschitz, head)
    reach = epsilon * constants
    if part is None:
        part = np.clip(gaps / np.maximum(reach, 1e-8), 0.01, 1.0)
    shifted = part * reach - gaps
    shifted[label] = 0.0
    return reference_cross_entropy(shifted, label, 0.0, 1.0), part


def finite_differences(fn, point, step=1e-6):
    point = np.asarray(point, np.float64)
    moves = step * np.eye(point.size).reshape(point.size, *point.shape)
    slopes = [(fn(point + move) - fn(point - move)) / (2 * step) for move in moves]
    return np.array(slopes).reshape(point.shape)


@pytest.fixture
def head():
    return jax.random.normal(jax.random.key(7), (4, 6))


@pytest.mark.parametrize("with_head", [False, True])
def test_certificate_regularized_is_the_formula_with_its_gradient(seeded_key, head, with_head):
    head = head if with_head else None
    logits = 2 * jax.random.normal(seeded_key, (6,))
    for label in (int(jnp.argmax(logits)), 0):
        ours = functools.partial(
            certificate_regularized, label=label, gamma=0.5, lipschitz=1.5, head=head
        )
        truth = functools.partial(
            reference_certificate_regularized, label=label, gamma=0.5, lipschitz=1.5, head=head
        )
        np.testing.assert_allclose(ours(logits), truth(logits), rtol=1e-5, atol=1e-6)
        slope = finite_differences(truth, logits)
        np.testing.assert_allclose(jax.grad(ours)(logits), slope, atol=1e-5)


def test_the_reward_is_the_radius_that_is_certified(head):
    for seed in range(20):
        logits = jax.random.normal(jax.random.key(seed), (6,))
        for label in range(6):
            options = {"lipschitz": 0.7, "head": head if seed % 2 else None}
            loss = certificate_regularized(logits, label, gamma=2.0, **options)
            radius = margin.radius(logits, label, **options)
            gained = cross_entropy(logits, label) - loss
            np.testing.assert_allclose(gained, 2 * radius, rtol=1e-5, atol=2e-6)


def test_a_wrong_answer_earns_nothing_and_gamma_zero_is_the_cross_entropy(key):
    logits = jnp.array([1.0, 3.0, 0.0])
    assert certificate_regularized(logits, 0, gamma=9.0, lipschitz=1.0) == cross_entropy(logits, 0)
    assert certificate_regularized(logits, 1, gamma=9.0, lipschitz=1.0) < cross_entropy(logits, 1)
    for label in range(3):
        none = certificate_regularized(logits, label, gamma=0.0, lipschitz=1.0)
        assert none == cross_entropy(logits, label)


def test_the_gradient_reaches_the_lipschitz_constant_and_the_head(head):
    logits = jnp.array([3.0, 1.0, 0.0, -1.0, 0.5, 0.2])
    ours = lambda c, v: certificate_regularized(logits, 0, gamma=1.0, lipschitz=c, head=v)  # noqa: E731
    slope, slopes = jax.grad(ours, argnums=(0, 1))(jnp.float32(1.0), head)
    truth = lambda c: reference_certificate_regularized(logits, 0, 1.0, c.item(), head)  # noqa: E731
    np.testing.assert_allclose(slope, finite_differences(truth, np.float64(1.0)), rtol=1e-4)
    truth = lambda v: reference_certificate_regularized(logits, 0, 1.0, 1.0, v)  # noqa: E731
    np.testing.assert_allclose(slopes, finite_differences(truth, head), atol=1e-5)
    assert slope > 0


@pytest.mark.parametrize("kind", ["upper", "exact", "estimate"])
def test_a_bound_of_any_kind_will_do_for_training(kind):
    logits = jnp.array([3.0, 1.0, 0.0])
    for loss in (
        functools.partial(certificate_regularized, gamma=0.3),
        functools.partial(emma, epsilon=0.3),
    ):
        given = loss(logits, 0, lipschitz=Bound(1.5, kind))
        assert given == loss(logits, 0, lipschitz=1.5)


def test_what_no_input_can_change_earns_nothing_infinite():
    same = jnp.ones((2, 3))  # equal class vectors: these gaps are constants
    for label in range(3):
        for logits in (jnp.array([2.0, 1.0, 1.0]), jnp.zeros(3)):
            for options in ({"lipschitz": 1.0, "head": same}, {"lipschitz": 0.0}):
                loss = functools.partial(certificate_regularized, gamma=1.0, **options)
                value, slope = jax.value_and_grad(loss)(logits, label)
                assert value == cross_entropy(logits, label)
                assert np.isfinite(slope).all()


# --- EMMA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("epsilon", [0.05, 0.4, 3.0])
def test_emma_is_the_formula_with_its_gradient(head, epsilon, with_head):
    head = head if with_head else None
    for seed in range(3):
        logits = 2 * jax.random.normal(jax.random.key(seed), (6,))
        label = int(jnp.argmax(logits)) if seed else 0
        ours = functools.partial(emma, label=label, epsilon=epsilon, lipschitz=1.5, head=head)
        truth, part = reference_emma(logits, label, epsilon, 1.5, head)
        np.testing.assert_allclose(ours(logits), truth, rtol=1e-5)
        frozen = lambda z: reference_emma(z, label, epsilon, 1.5, head, part)[0]  # noqa: E731, B023
        slope = finite_differences(frozen, logits)
        np.testing.assert_allclose(jax.grad(ours)(logits), slope, atol=1e-5)


def test_emma_with_epsilon_zero_is_the_cross_entropy(key, head):
    logits = jax.random.normal(key, (6,))
    for label in range(6):
        loss = functools.partial(emma, label=label, epsilon=0.0, lipschitz=1.0, head=head)
        np.testing.assert_allclose(loss(logits), cross_entropy(logits, label), rtol=1e-6)
        slope = jax.grad(cross_entropy)(logits, label)
        np.testing.assert_allclose(jax.grad(loss)(logits), slope, atol=1e-6)


def test_emma_grows_with_the_radius_and_the_constant(key):
    logits = jax.random.normal(key, (6,))
    radii = jnp.array([0.0, 0.01, 0.1, 0.5, 1.0, 4.0])
    for label in range(6):
        of = jax.vmap(lambda e, c: emma(logits, label, epsilon=e, lipschitz=c))  # noqa: B023
        assert (np.diff(of(radii, jnp.ones(6))) > 0).all()
        assert (np.diff(of(jnp.ones(6), 0.1 + radii)) > 0).all()


def test_emma_shifts_by_the_radius_to_the_tie_or_by_a_hundredth():
    """Two classes that the label leads by more and by less than it takes, and one that leads it."""
    logits, root = jnp.array([5.0, 1.0, 4.5, 6.0]), np.sqrt(2)
    shifted = emma_logits(logits, 0, epsilon=1.0, lipschitz=1.0)
    np.testing.assert_allclose(shifted, [0, root - 4, 0, 1 + 0.01 * root], atol=1e-6)


def test_negative_control_emma_without_the_stopped_gradient_forgets_the_near_ones():
    """Up to the tie the shift cancels the gap: differentiated through, no gradient is left."""
    logits = jnp.array([5.0, 4.5, 4.4])

    def leaky(z):
        gaps = z - z[0]
        reach = jnp.sqrt(2.0) * jnp.array([0.0, 1.0, 1.0])
        return cross_entropy(gaps + jnp.clip(-gaps / jnp.maximum(reach, 1e-8), 0.01, 1) * reach, 0)

    ours = functools.partial(emma, label=0, epsilon=1.0, lipschitz=1.0)
    np.testing.assert_allclose(ours(logits), leaky(logits), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(ours)(logits), [-2 / 3, 1 / 3, 1 / 3], rtol=1e-5)
    assert np.abs(jax.grad(leaky)(logits)).max() < 1e-6


def test_emma_trains_the_lipschitz_constant():
    logits = jnp.array([5.0, 1.0, 4.5])
    slope = jax.grad(lambda c: emma(logits, 0, epsilon=0.1, lipschitz=c))(jnp.float32(1.0))
    part = reference_emma(logits, 0, 0.1, 1.0)[1]
    truth = lambda c: reference_emma(logits, 0, 0.1, c.item(), part=part)[0]  # noqa: E731
    np.testing.assert_allclose(slope, finite_differences(truth, np.float64(1.0)), rtol=1e-4)


# --- Logit annealing -------------------------------------------------------------------------------


def reference_logit_annealing(logits, label, offset, temperature, beta):
    loss = reference_cross_entropy(logits, label, offset, temperature)
    return (1 - np.exp(-loss / temperature)) ** beta * loss


@pytest.mark.parametrize(
    "offset, temperature, beta", [(2.0, 0.75, 5.0), (0.5, 1.5, 0.5), (0, 1, 2)]
)
def test_logit_annealing_is_the_formula_with_its_gradient(seeded_key, offset, temperature, beta):
    logits = 2 * jax.random.normal(seeded_key, (7,))
    options = {"offset": offset, "temperature": temperature, "beta": beta}
    for label in (0, 3):
        ours = functools.partial(logit_annealing, label=label, **options)
        truth = functools.partial(reference_logit_annealing, label=label, **options)
        np.testing.assert_allclose(ours(logits), truth(logits), rtol=1e-5, atol=1e-7)
        slope = finite_differences(truth, logits)
        np.testing.assert_allclose(jax.grad(ours)(logits), slope, atol=1e-5)


def test_logit_annealing_without_annealing_is_the_cross_entropy(key):
    logits = jax.random.normal(key, (6,))
    for label in range(6):
        for beta in (0, 0.0, jnp.float32(0.0)):
            plain = logit_annealing(logits, label, offset=0.0, temperature=1.0, beta=beta)
            np.testing.assert_allclose(plain, cross_entropy(logits, label), rtol=1e-6)
        tempered = logit_annealing(logits, label, beta=0.0)
        same = cross_entropy(logits, label, offset=2.0, temperature=0.75)
        np.testing.assert_allclose(tempered, same, rtol=1e-6)


@pytest.mark.parametrize("beta", [0, 0.0, 0.3, 1.0, 5.0])
def test_logit_annealing_lets_go_smoothly(beta):
    """At a probability that rounds to 1, where powers of 0 wait."""
    leads = jnp.array([0.0, 1.0, 3.0, 8.0, 20.0, 90.0, 1e4])
    loss = lambda lead: logit_annealing(jnp.stack([lead, 0 * lead]), 0, beta=beta)  # noqa: E731
    values, slopes = jax.vmap(jax.value_and_grad(loss))(leads)
    assert np.isfinite(values).all() and np.isfinite(slopes).all()
    assert (np.diff(values) <= 0).all() and values[-1] == 0 == slopes[-1]


def test_bronet_trains_on_annealed_emma_logits(key):
    logits = jax.random.normal(key, (5,))
    shifted = emma_logits(logits, 2, epsilon=36 / 255, lipschitz=1.0)
    moved = reference_emma(logits, 2, 36 / 255, 1.0)[1] * (36 / 255 * np.sqrt(2))
    gaps = np.asarray(logits[2] - logits, np.float64)
    truth = reference_logit_annealing(np.where(gaps == 0, 0, moved - gaps), 2, 2.0, 0.75, 5.0)
    np.testing.assert_allclose(logit_annealing(shifted, 2), truth, rtol=1e-5)


# --- Hinge Kantorovich-Rubinstein ------------------------------------------------------------------


def reference_hkr(scores, labels, alpha, min_margin):
    """The binary objective on a batch, by its definition."""
    scores = np.asarray(scores, np.float64)
    signs = np.where(labels == 1, 1.0, -1.0)
    transport = scores[labels == 1].mean() - scores[labels != 1].mean()
    return alpha * np.maximum(0, min_margin - signs * scores).mean() - transport


@pytest.mark.parametrize("alpha, min_margin", [(10.0, 1.0), (0.0, 1.0), (2.0, 0.3)])
def test_binary_hkr_averages_to_the_definition(seeded_key, alpha, min_margin):
    scores = jax.random.normal(seeded_key, (40,))
    labels = np.arange(40) % 5 // 4  # a fifth of ones
    options = {"alpha": alpha, "min_margin": min_margin, "share": 0.2}
    ours = jax.vmap(functools.partial(binary_hkr, **options))(scores, jnp.asarray(labels))
    truth = reference_hkr(scores, labels, alpha, min_margin)
    np.testing.assert_allclose(ours.mean(), truth, rtol=1e-5, atol=1e-6)
    balanced = jax.vmap(functools.partial(binary_hkr, alpha=alpha, min_margin=min_margin))
    assert abs(balanced(scores, jnp.asarray(labels)).mean() - truth) > 1e-2  # the share matters


@pytest.mark.parametrize("even", [True, False])
def test_hkr_averages_to_the_mean_of_the_binary_ones(seeded_key, even):
    """With the right class in the hinge as heavy as all others together."""
    labels = np.arange(60) % 4 if even else np.repeat(np.arange(4), [6, 12, 18, 24])
    logits = jax.random.normal(seeded_key, (60, 4))
    shares = None if even else np.bincount(labels).astype(np.float32) / 60
    loss = functools.partial(hkr, alpha=3.0, min_margin=0.5, shares=shares)
    ours = jax.vmap(loss)(logits, jnp.asarray(labels)).mean()
    z = np.asarray(logits, np.float64)
    truth = 0.0
    for k in range(4):
        right = labels == k
        transport = reference_hkr(z[:, k], right.astype(int), 0.0, 0.5)
        hinges = np.maximum(0, 0.5 - np.where(right, z[:, k], -z[:, k]))
        truth += transport + 3 * np.where(right, 3 * hinges, hinges).mean()
    np.testing.assert_allclose(ours, truth / 4, rtol=1e-5)


def test_hkr_of_even_classes_is_the_lead_over_the_mean_of_the_others():
    logits = jnp.array([2.0, 0.0, -1.0, 0.5])
    lead = 2.0 - (0.0 - 1.0 + 0.5) / 3
    np.testing.assert_allclose(hkr(logits, 0, alpha=0.0), -lead, rtol=1e-6)
    hinge = (3 * 0.0 + 1.0 + 0.0 + 1.5) / 4
    np.testing.assert_allclose(hkr(logits, 0), 10 * hinge - lead, rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(hkr)(logits, 0), [-1, 2.5 + 1 / 3, 1 / 3, 2.5 + 1 / 3], rtol=1e-6
    )


def test_binary_hkr_by_hand():
    loss = lambda score, label: binary_hkr(jnp.float32(score), label)  # noqa: E731
    assert [float(loss(f, 1)) for f in (2.0, 1.0, 0.0, -1.0)] == [-4, -2, 10, 22]
    assert all(loss(f, 1) == loss(-f, 0) for f in (2.0, 1.0, 0.0, -1.0))
    assert [float(jax.grad(binary_hkr)(jnp.float32(f), 1)) for f in (2.0, 0.0)] == [-2, -12]


def test_a_class_that_is_all_or_nothing_has_no_distance():
    logits = jnp.array([2.0, 0.0, -1.0])
    shares = jnp.array([0.5, 0.5, 0.0])
    loss, slope = jax.value_and_grad(hkr)(logits, 0, alpha=0.0, shares=shares)
    np.testing.assert_allclose(loss, -(2 * 2.0 - 2 * 0.0) / 3)
    np.testing.assert_allclose(slope, [-2 / 3, 2 / 3, 0], rtol=1e-6)
    for share in (0.0, 1.0):
        assert binary_hkr(jnp.float32(3.0), 1, share=share) == 0


# --- What all have in common -----------------------------------------------------------------------


LOSSES = {
    "cross_entropy": lambda z, y: cross_entropy(z, y, offset=SLL_OFFSET, temperature=0.25),
    "margin_loss": margin_loss,
    "certificate_regularized": lambda z, y: certificate_regularized(z, y, gamma=0.5, lipschitz=1.0),
    "emma": lambda z, y: emma(z, y, epsilon=108 / 255, lipschitz=1.0),
    "logit_annealing": logit_annealing,
    "hkr": hkr,
}
MAY_BE_NEGATIVE = {"certificate_regularized", "hkr"}


def test_published_defaults():
    defaults = lambda fn: {  # noqa: E731
        name: p.default
        for name, p in inspect.signature(fn).parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    assert defaults(margin_loss) == {"margin": 0.7}
    assert defaults(logit_annealing) == {"offset": 2.0, "temperature": 0.75, "beta": 5.0}
    assert defaults(hkr) == {"alpha": 10.0, "min_margin": 1.0, "shares": None}
    assert defaults(binary_hkr) == {"alpha": 10.0, "min_margin": 1.0, "share": 0.5}
    assert defaults(certificate_regularized) == {"gamma": 0.0, "head": None}
    assert defaults(emma) == defaults(emma_logits) == {"epsilon": 108 / 255, "head": None}
    assert abs(training.SLL_OFFSET - 2.1213) < 1e-4 and training.SLL_TEMPERATURE == 0.25


@pytest.fixture(params=LOSSES.values(), ids=LOSSES)
def loss(request):
    return request.param


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1.0, 1e4, 1e9, 1e20, 1e30, 1e36])
def test_loss_and_gradient_are_finite(request, loss, size, jit):
    """Compiled too: fused multiplications leave roundings that a large logit makes infinite."""
    signed = any(name in request.node.name for name in MAY_BE_NEGATIVE)
    both = jax.value_and_grad(loss)
    both = jax.jit(both, static_argnums=1) if jit else both
    for signs in ([1, -1, 0], [-1, 1, 1], [0, 0, 0], [-1, -1, -1]):
        logits = size * jnp.array(signs, jnp.float32)
        for label in range(3):
            value, slope = both(logits, label)
            assert np.isfinite(value) and (value >= 0 or signed)
            assert np.isfinite(slope).all()


def test_a_single_class_costs_nothing(loss):
    for size in (0.0, 1.0, 1e30):
        value, slope = jax.value_and_grad(loss)(jnp.full(1, size), 0)
        assert value == 0 and slope[0] == 0


def test_a_larger_logit_of_the_label_never_costs(loss, key):
    others = jax.random.normal(key, (4,))
    own = jnp.linspace(-6.0, 6.0, 200)
    values = jax.vmap(lambda z: loss(jnp.concatenate([z[None], others]), 0))(own)
    assert (np.diff(values) <= 1e-5).all() and values[0] > values[-1] + 1


def test_nan_comes_through(loss):
    for logits in (jnp.array([jnp.nan, 0.0, 1.0]), jnp.array([0.0, jnp.nan, 1.0])):
        assert np.isnan(loss(logits, 0))


@pytest.mark.parametrize("size", [0.0, 1e-38, 1.0, 1e30])
def test_losses_with_a_head_and_binary_ones_are_finite(size):
    logits = size * jnp.array([1.0, 1.0, -1.0])
    for head in (jnp.zeros((2, 3)), jnp.eye(3), jnp.ones((2, 3))):
        for loss in (
            functools.partial(certificate_regularized, gamma=1.0, lipschitz=1.0),
            functools.partial(emma, epsilon=0.1, lipschitz=1.0),
        ):
            for label in range(3):
                value, slopes = jax.value_and_grad(
                    lambda z, v: loss(z, label, head=v),  # noqa: B023
                    argnums=(0, 1),
                )(logits, head)
                assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)
    for score in (-size, size):
        for label in (0, 1):
            value, slope = jax.value_and_grad(binary_hkr)(jnp.float32(score), label)
            assert np.isfinite(value) and np.isfinite(slope)


def test_batches_come_from_vmap_and_jit_changes_nothing(loss, key):
    logits = jax.random.normal(key, (6, 4))
    labels = jnp.arange(6, dtype=jnp.int32) % 4
    mapped = jax.jit(jax.vmap(loss))(logits, labels)
    singly = jnp.stack([loss(z, y) for z, y in zip(logits, labels)])
    np.testing.assert_allclose(mapped, singly, rtol=2e-6)


def test_a_traced_label_out_of_range_gives_nan(loss):
    logits = jnp.array([0.5, 0.0, -1.0])
    values = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(logits, jnp.array([-1, 0, 2, 3]))
    assert np.isnan(values).tolist() == [True, False, False, True]


def test_a_traced_label_out_of_range_of_two_gives_nan():
    values = jax.vmap(binary_hkr, in_axes=(None, 0))(jnp.float32(0.5), jnp.array([-1, 0, 1, 2]))
    assert np.isnan(values).tolist() == [True, False, False, True]


@pytest.mark.every
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


def test_lists_and_numbers_are_taken():
    logits = [1.0, 2.0, 3.0]
    for loss, options in (
        (cross_entropy, {}),
        (margin_loss, {}),
        (hkr, {"shares": [0.2, 0.3, 0.5]}),
        (logit_annealing, {}),
        (emma, dict(epsilon=0.1, lipschitz=1.0)),
        (certificate_regularized, dict(gamma=0.1, lipschitz=1.0)),
    ):
        arrays = {name: jnp.asarray(value) for name, value in options.items()}
        np.testing.assert_allclose(
            loss(logits, 0, **options), loss(jnp.array(logits), 0, **arrays), rtol=1e-6
        )
    assert binary_hkr(0.5, 1) == binary_hkr(jnp.float32(0.5), 1)
    with pytest.raises(ValueError, match="logits has dtype int32"):
        cross_entropy([1, 2, 3], 0)
    with pytest.raises(ValueError, match="score has dtype int32"):
        binary_hkr(1, 1)
    with pytest.raises(ValueError, match="shares is .*must sum to 1"):
        hkr(logits, 0, shares=[0.2, 0.3, 0.4])


def test_options_are_checked():
    with pytest.raises(ValueError, match="temperature is 0"):
        cross_entropy(jnp.zeros(3), 0, temperature=0.0)
    with pytest.raises(ValueError, match="offset is -1"):
        cross_entropy(jnp.zeros(3), 0, offset=-1.0)
    with pytest.raises(ValueError, match="margin is nan"):
        margin_loss(jnp.zeros(3), 0, margin=float("nan"))


@pytest.mark.every
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda z: certificate_regularized(z, 0, gamma=-1.0, lipschitz=1.0), "gamma is -1"),
        (lambda z: certificate_regularized(z, 0, gamma=1.0, lipschitz=-1.0), "lipschitz is -1"),
        (lambda z: emma(z, 0, epsilon=1.0, lipschitz=float("inf")), "lipschitz is inf"),
        (lambda z: hkr(z, 0, shares=jnp.array([0.9, 0.9, 0.2])), "it must sum to 1"),
        (
            lambda z: certificate_regularized(z, 0, gamma=1.0, lipschitz=jnp.ones(3)),
            "lipschitz has",
        ),
        (lambda z: emma(z, 0, epsilon=-0.1, lipschitz=1.0), "epsilon is -0.1"),
        (lambda z: emma(z, 0, epsilon=0.1, lipschitz=1.0, head=jnp.ones((2, 4))), "head has shape"),
        (lambda z: emma(z, 3, epsilon=0.1, lipschitz=1.0), "label is 3"),
        (lambda z: logit_annealing(z, 0, beta=-1.0), "beta is -1"),
        (lambda z: logit_annealing(z, 0, temperature=0.0), "temperature is 0"),
        (lambda z: hkr(z, 0, alpha=-1.0), "alpha is -1"),
        (lambda z: hkr(z, 0, shares=jnp.ones(2)), "shares has shape"),
        (lambda z: hkr(z, 0, shares=jnp.array([0.5, 1.5, -1.0])), "shares is"),
        (lambda z: binary_hkr(z, 0), "score has shape"),
        (lambda z: binary_hkr(z[0], 2), "label is 2"),
        (lambda z: binary_hkr(z[0], 0, share=1.5), "share is 1.5"),
        (lambda z: binary_hkr(z[0], 0, min_margin=-1.0), "min_margin is -1"),
    ],
)
def test_errors_of_the_certified_losses_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros(3))


@pytest.mark.parametrize(
    "make,word",
    [
        (lambda f: cross_entropy(f, 0, offset=np.inf), "offset is inf"),
        (lambda f: cross_entropy(f, 0, offset=np.ones(2)), "offset is array"),
        (lambda f: cross_entropy(f, 0, temperature=np.ones(3)), "temperature has shape"),
        (lambda f: margin_loss(f, 0, margin=np.inf), "margin is inf"),
    ],
)
def test_options_are_finite_numbers(make, word):
    with pytest.raises(ValueError, match=word):
        make(jnp.array([1.0, 0.0]))
