"""Certificates from margins: against exact distances, at ties, NaN, one class and attacks."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax import margin
from lipjax.spectral import network_bound
from lipjax.typing import ABSTAIN, Bound

RNG = np.random.default_rng(0)


def exact_radii(features, head, bias, labels):
    """Distance of features to the decision boundary of `features @ head + bias`, in float64."""
    head, bias = np.float64(head), np.float64(bias)
    logits = np.float64(features) @ head + bias
    best = np.full(len(labels), np.inf)
    for k in range(head.shape[1]):
        gap = logits[np.arange(len(labels)), labels] - logits[:, k]
        pair = np.linalg.norm(head[:, labels] - head[:, [k]], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            best = np.where(labels == k, best, np.minimum(best, gap / pair))
    return best


def test_exact_for_a_linear_classifier_and_never_above():
    head = RNG.normal(size=(12, 5)).astype(np.float32)
    features = RNG.normal(size=(3000, 12)).astype(np.float32)
    logits = (np.float64(features) @ np.float64(head)).astype(np.float32)
    labels = logits.argmax(1)
    radius = jax.vmap(lambda f, y: margin.radius(f, y, lipschitz=1.0, head=head))
    got = np.asarray(radius(logits, labels), np.float64)
    truth = exact_radii(features, head, np.zeros(5), labels)
    error = 1e-6 * np.abs(logits).max()  # of the float32 logits themselves
    assert (got <= truth + error).all()
    np.testing.assert_allclose(got, truth, rtol=1e-4, atol=error)


def test_rounded_down_for_the_very_logits():
    """Logits that are exact in float32: the radius is at most the exact quotient."""
    logits = RNG.integers(-50, 50, size=(4000, 6)).astype(np.float32) / 8
    head = RNG.normal(size=(7, 6)).astype(np.float32)
    labels = logits.argmax(1)
    for constant in (1.0, 3.3, 1e-3):
        got = jax.vmap(lambda f, y: margin.radius(f, y, lipschitz=constant, head=head))(  # noqa: B023
            logits, labels
        )
        gaps = logits.astype(np.float64)
        gaps = gaps[np.arange(len(labels)), labels][:, None] - gaps
        wide = np.float64(head)
        pairs = np.linalg.norm(wide[:, labels].T[:, :, None] - wide[None], axis=1) * constant
        gaps[np.arange(len(labels)), labels] = np.inf
        pairs[np.arange(len(labels)), labels] = 1
        truth = np.maximum((gaps / pairs).min(1), 0)
        assert (np.float64(got) <= truth).all()
        np.testing.assert_allclose(got, truth, rtol=1e-4)


def test_without_a_head_the_pair_constant_is_root_two():
    logits = jnp.array([3.0, 1.0, 0.0])
    got = float(margin.radius(logits, 0, lipschitz=2.0))
    assert 0 < 2 / (2 * np.sqrt(2)) - got < 1e-5


def test_negative_control_a_single_constant_for_pairs_would_be_wrong():
    """A normalized head is not 1-Lipschitz: with constant 1 for each pair the radius is too large."""
    head = np.float32([[1, -1], [0, 0]])  # opposite class vectors, distance 2
    logits = np.float32([0.5, -0.5])  # features (0.5, 0), boundary at distance 0.5
    wrong = (logits[0] - logits[1]) / 1.0
    assert float(margin.radius(logits, 0, lipschitz=1.0, head=head)) <= 0.5 < wrong


@pytest.mark.parametrize(
    "logits,label,expected",
    [
        ([1.0, 1.0, 0.0], 0, 0.0),
        ([1.0, 1.0, 0.0], 1, 0.0),
        ([1.0, 2.0], 0, 0.0),
        ([np.nan, 1.0], 1, 0.0),
        ([1.0, np.nan], 0, 0.0),
        ([np.inf, 0.0], 0, 0.0),
        ([np.inf, np.inf], 0, 0.0),
        ([0.0], 0, np.inf),
        ([0.0, -np.inf], 0, 0.0),
    ],
)
def test_edges(logits, label, expected):
    assert float(margin.radius(jnp.array(logits), label, lipschitz=1.0)) == expected
    assert (
        float(
            jax.jit(margin.radius, static_argnames="lipschitz")(
                jnp.array(logits), jnp.int32(label), lipschitz=1.0
            )
        )
        == expected
    )


def test_constant_networks_and_equal_class_vectors():
    logits = jnp.array([1.0, 0.0])
    assert float(margin.radius(logits, 0, lipschitz=0.0)) == np.inf
    same = jnp.ones((3, 2))
    assert float(margin.radius(logits, 0, lipschitz=1.0, head=same)) == np.inf
    assert float(margin.radius(logits, 1, lipschitz=1.0, head=same)) == 0
    assert float(margin.radius(jnp.zeros(2), 0, lipschitz=1.0, head=same)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_constants_that_prove_nothing(bad):
    traced = jax.jit(lambda c: margin.radius(jnp.array([1.0, 0.0]), 0, lipschitz=c))
    assert float(traced(jnp.float32(bad))) == 0
    head = jnp.ones((3, 2)).at[0, 0].set(bad)
    assert float(margin.radius(jnp.array([1.0, 0.0]), 0, lipschitz=1.0, head=head)) == 0


@pytest.mark.parametrize(
    "logits,constant,head,largest",
    [
        ([3e38, -3e38], 1000.0, None, 4.3e35),
        ([1e-30, 0.0], 1e-40, None, 7.1e9),
        ([1e-30, 0.0], 1e-50, None, 7.1e19),
        ([1e-30, 0.0], 1.0, [[1e-40, 0.0]], 1.1e10),
        ([1e-20, 0.0], 1e-20, [[1e-25, 0.0]], 1.1e25),
    ],
)
def test_underflow_and_overflow_never_give_infinity(logits, constant, head, largest):
    head = None if head is None else jnp.array(head)
    got = margin.radius(jnp.array(logits), 0, lipschitz=constant, head=head)
    assert float(got) <= largest


@pytest.mark.parametrize("options", [{"lipschitz": -1.0}, {"lipschitz": 1.0, "logit_error": -5.0}])
def test_negative_numbers_that_are_traced_prove_nothing(options):
    traced = jax.jit(lambda options: margin.radius(jnp.array([3.0, 1.0]), 0, **options))
    assert float(traced(jax.tree.map(jnp.float32, options))) == 0


def test_rounding_of_the_logit_error_is_covered():
    logits = jnp.array([1.0, -0.75 * 2.0**-23])
    truth = 0.75 * 2.0**-23 / np.sqrt(2)
    assert float(margin.radius(logits, 0, lipschitz=1.0, logit_error=0.5)) <= truth


def test_gradients_in_the_constant_and_narrow_labels():
    gradient = jax.grad(lambda c: margin.radius(jnp.array([3.0, 1.0]), 0, lipschitz=c))(1.0)
    np.testing.assert_allclose(gradient, -np.sqrt(2), rtol=1e-3)
    logits = jnp.zeros(1000).at[100].set(10.0)
    assert float(margin.radius(logits, jnp.int8(100), lipschitz=1.0)) > 7


def test_labels_out_of_range():
    logits = jnp.array([1.0, 0.0])
    with pytest.raises(ValueError, match="label is 2"):
        margin.radius(logits, 2, lipschitz=1.0)
    traced = jax.jit(lambda y: (margin.radius(logits, y, lipschitz=1.0), margin.margin(logits, y)))
    for label in (-1, 2):
        got, gap = traced(jnp.int32(label))
        assert float(got) == 0 and np.isnan(gap)


def test_labels_that_int32_cannot_hold_are_no_classes():
    with jax.enable_x64(True):
        logits, label = jnp.array([3.0, 1.0]), jnp.asarray(2**32, jnp.int64)
        with pytest.raises(ValueError, match="label is 4294967296"):
            margin.radius(logits, label, lipschitz=1.0)
        traced = jax.jit(
            lambda y: (margin.radius(logits, y, lipschitz=1.0), margin.margin(logits, y))
        )
        for wrapped in (2**32, -(2**32), 2**33 + 1):
            got, gap = traced(jnp.asarray(wrapped, jnp.int64))
            assert float(got) == 0 and np.isnan(gap)
        assert float(traced(jnp.asarray(0, jnp.int64))[0]) > 1.41


def test_float64_arrays_that_a_jitted_function_closes_over():
    head = np.array([[1.0, -1.0], [0.1, 0.3]])
    logits = np.array([2.0, 0.1])
    for of_arrays in (
        lambda: margin.radius(jnp.array([2.0, 0.1]), 0, lipschitz=1.0, head=head),
        lambda: margin.certify(logits, lipschitz=1.0).radius,
    ):
        np.testing.assert_allclose(jax.jit(lambda _: of_arrays())(0.0), of_arrays(), rtol=1e-6)  # noqa: B023


def test_constants_of_any_rational_type():
    logits = jnp.array([1.0, 0.0])
    for constant in (10**30, Fraction(1, 3), np.int64(7), 10**400):
        got = margin.radius(logits, 0, lipschitz=constant)
        assert 0 <= float(got) and Fraction(float(got)) ** 2 * 2 * constant**2 <= 1
    assert float(margin.radius(logits, 0, lipschitz=Fraction(1, 3))) > 2.12


def test_logit_error_shrinks_the_radius_by_twice_itself():
    logits = jnp.array([2.0, 0.0])
    plain, careful = (
        float(margin.radius(logits, 0, lipschitz=1.0, logit_error=e)) for e in (0.0, 0.25)
    )
    np.testing.assert_allclose(careful, plain * 0.75, rtol=1e-5)
    assert float(margin.radius(logits, 0, lipschitz=1.0, logit_error=1.1)) == 0


def test_margin():
    logits = jnp.array([1.0, 4.0, 2.5])
    assert float(margin.margin(logits, 1)) == 1.5
    assert float(margin.margin(logits, 0)) == -3
    assert float(margin.margin(jnp.array([7.0]), 0)) == np.inf
    assert np.isnan(margin.margin(logits.at[0].set(jnp.nan), 1))


def test_certify_predicts_and_abstains():
    certificate = jax.vmap(lambda f: margin.certify(f, lipschitz=1.0))(
        jnp.array([[0.0, 2.0], [1.0, 1.0], [jnp.nan, 0.0]])
    )
    assert certificate.prediction.tolist() == [1, 0, ABSTAIN]
    assert certificate.prediction.dtype == jnp.int32
    assert float(certificate.radius[0]) > 1.41 and not np.asarray(certificate.radius[1:]).any()


@pytest.mark.parametrize(
    "kind,fine",
    [
        ("upper", True),
        ("exact", True),
        ("lower", False),
        ("estimate", False),
    ],
)
def test_only_proved_bounds_certify(kind, fine):
    logits, bound = jnp.array([1.0, 0.0]), Bound(1.0, kind)
    if fine:
        assert float(margin.radius(logits, 0, lipschitz=bound)) > 0
    else:
        with pytest.raises(ValueError, match=f"lipschitz.*{kind}.*'upper' or 'exact'"):
            margin.radius(logits, 0, lipschitz=bound)


def test_certified_accuracy_is_strict_and_counts_nan_as_lost():
    radii = jnp.array([0.5, 0.25, jnp.nan, jnp.inf, 1.0])
    correct = jnp.array([True, True, True, True, False])
    got = margin.certified_accuracy(radii, correct, jnp.array([0.0, 0.25, 0.5]))
    np.testing.assert_allclose(got, [3 / 5, 2 / 5, 1 / 5])
    assert margin.certified_accuracy(radii, correct, 0.25).shape == ()
    assert float(margin.certified_accuracy(radii[:1], correct[:1], 0.1)) == 1


@pytest.mark.every
@pytest.mark.parametrize(
    "call,word",
    [
        (lambda: margin.radius(jnp.ones((2, 3)), 0, lipschitz=1.0), "logits has shape.*jax.vmap"),
        (lambda: margin.radius(jnp.ones(3), 0, lipschitz=-1.0), "lipschitz is -1.0"),
        (
            lambda: margin.radius(jnp.ones(3), 0, lipschitz=1.0, head=jnp.ones((4, 2))),
            "head has shape",
        ),
        (
            lambda: margin.radius(
                jnp.ones(3), 0, lipschitz=network_bound(lambda x: 2 * x, jnp.ones(3))
            ),
            "lipschitz is a NetworkBound; pass its bound",
        ),
        (lambda: margin.radius(jnp.ones(3), 0.5, lipschitz=1.0), "label has dtype"),
        (lambda: margin.radius(jnp.ones(3), "a", lipschitz=1.0), "label is 'a'"),
        (
            lambda: margin.radius(jnp.ones(3), 0, lipschitz=True),
            "lipschitz is True; it must be a real",
        ),
        (
            lambda: margin.radius(jnp.ones(3), 0, lipschitz=1.0, head=Bound(1.0, "upper")),
            "a Bound goes into lipschitz",
        ),
        (lambda: margin.certified_accuracy(jnp.ones(2), jnp.ones(2, bool), "a"), "eps is 'a'"),
        (lambda: margin.radius(jnp.ones(3, jnp.bfloat16), 0, lipschitz=1.0), "logits has dtype"),
        (lambda: margin.radius(jnp.ones(3), 0, lipschitz=1.0, logit_error=-1.0), "logit_error"),
        (lambda: margin.margin(jnp.ones(0), 0), "logits has shape"),
        (lambda: margin.certified_accuracy(jnp.ones(2), jnp.ones(2), 0.1), "correct has dtype"),
        (lambda: margin.certified_accuracy(jnp.ones(0), jnp.ones(0, bool), 0.1), "radii has shape"),
        (
            lambda: margin.certified_accuracy(jnp.ones(2), jnp.ones(3, bool), 0.1),
            "correct has shape",
        ),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_subnormal_logits_and_errors_are_not_read_as_zero():
    logits = jnp.asarray([2e-38, 1.1e-38], jnp.float32)
    truth = (float(np.float32(2e-38)) - float(np.float32(1.1e-38))) / (1.2e-38 * np.sqrt(2))
    assert float(margin.radius(logits, 0, lipschitz=1.2e-38)) <= truth
    lone = jnp.asarray([2e-38, 0.0], jnp.float32)
    assert float(margin.radius(lone, 0, lipschitz=1.2e-38, logit_error=1.1e-38)) == 0


def test_infinite_only_where_nothing_can_change_the_prediction():
    for logits, lipschitz in (([100.0, 0.0], 1e-37), ([3e38, -3e38], 1e-3)):
        assert np.isfinite(margin.radius(jnp.asarray(logits), 0, lipschitz=lipschitz))
    assert np.isposinf(margin.radius(jnp.asarray([1.0, 0.0]), 0, lipschitz=0.0))


@pytest.mark.parametrize(
    "logits,head,truth",
    [
        ([10.0000005, 10.0], None, 5e-7 / np.sqrt(2)),
        ([16777219.0, 16777216.0], None, 3 / np.sqrt(2)),
        ([3.0, 1.0], [[1.0, 1 + 1e-9]], 2e9),
    ],
)
def test_float64_input_is_counted(logits, head, truth):
    """Negative control: rounded to float32 first, each of these radii is too large."""
    head = None if head is None else np.array(head)
    assert float(margin.radius(np.array(logits), 0, lipschitz=1.0, head=head)) <= truth
    first = jnp.array(logits, jnp.float32)
    single = None if head is None else jnp.array(head, jnp.float32)
    assert float(margin.radius(first, 0, lipschitz=1.0, head=single)) > truth


def test_one_error_for_all_logits():
    with pytest.raises(ValueError, match="logit_error"):
        margin.radius(jnp.array([3.0, 1.0]), 0, lipschitz=1.0, logit_error=jnp.array([10.0, 0.0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_head_without_a_finite_entry_proves_nothing(bad):
    head = jnp.full((1, 2), bad)
    assert float(margin.radius(jnp.array([3.0, 1.0]), 0, lipschitz=1.0, head=head)) == 0


@pytest.mark.parametrize("constant", [1e-40, -1e-40])
def test_a_subnormal_constant_under_jit_is_not_zero(constant):
    traced = jax.jit(lambda f, c: margin.radius(f, 0, lipschitz=c))
    assert np.isfinite(traced(jnp.array([2e-37, 0.0]), jnp.asarray(np.float32(constant))))
    batch = jax.jit(jax.vmap(lambda f, c: margin.certify(f, lipschitz=c), (0, None)))
    found = batch(jnp.array([[2e-37, 0.0]]), jnp.asarray(np.float32(constant)))
    assert np.isfinite(found.radius).all()


@pytest.mark.every
@pytest.mark.parametrize("constant", [None, "1", True, 1j, -1.0, np.nan])
def test_a_constant_that_is_no_number_is_refused(constant):
    with pytest.raises(ValueError, match="lipschitz"):
        margin.radius(jnp.array([3.0, 1.0]), 0, lipschitz=constant)


def test_a_float64_head_in_a_64_bit_program():
    """Rounded to the float32 of the logits, these class vectors would be equal."""
    logits = jnp.array([3.0, 1.0], jnp.float32)
    with jax.enable_x64(True):
        head = jnp.array([[1.0, 1 + 1e-9]], jnp.float64)
        found = float(margin.radius(logits, 0, lipschitz=1.0, head=head))
    assert 1.9e9 < found <= 2 / (np.float64(head)[0, 1] - 1)


@pytest.mark.parametrize("constant", [1e-39, 1e-44, 1e-300])
def test_float32_logits_and_a_tiny_constant_in_a_64_bit_program(constant):
    with jax.enable_x64(True):
        logits, head = jnp.array([1.0, 0], jnp.float32), jnp.array([[1e19, 0.0]], jnp.float32)
        for transform in (lambda f: f, jax.jit):
            found = transform(lambda f: margin.radius(f, 0, lipschitz=constant, head=head))(logits)
            assert 0 < float(found) * constant * 1e19 <= 1


def test_subnormal_class_vectors_lose_no_distance():
    """Both entries of a pair may be read as zero, and their difference too."""
    logits = np.array([0.0, 1.0], np.float32)
    for rows in (1, 4):
        head = np.repeat(np.array([[-1e-38, 1e-38]], np.float32), rows, 0)
        truth = 1 / (2e-38 * np.sqrt(rows))
        for fn in (margin.radius, jax.jit(margin.radius)):
            found = float(fn(logits, 1, lipschitz=1.0, head=head))
            assert 0.2 * truth < found <= truth
        assert float(margin.radius(logits, 1, lipschitz=1e38, head=head)) <= truth / 1e38


def test_lists_that_mix_python_and_jax_numbers_count_what_they_lose():
    for other in (jnp.float32(1e8), np.float32(1e8)):
        logits = [np.float64(1e8 + 5), other]
        assert float(margin.certify(logits, lipschitz=1.0).radius) <= 5 / np.sqrt(2)


def test_other_orders_of_bytes_and_other_objects():
    swapped = np.array([3.0, 1.0]).astype(">f4")
    assert float(margin.certify(swapped, lipschitz=1.0).radius) > 1.4
    if np.finfo(np.longdouble).bits > 64:
        with pytest.raises(ValueError, match="dtype longdouble|dtype float128"):
            margin.certify(np.array([3.0, 1.0], np.longdouble), lipschitz=1.0)

    class Weights:
        kernel = np.eye(2, dtype=np.float32)

    with pytest.raises(ValueError, match="head is a Weights.*kernel"):
        margin.certify(np.float32([3, 1]), lipschitz=1.0, head=Weights())


def test_logits_that_are_equal_at_infinity_tie():
    assert margin.margin(jnp.array([jnp.inf, jnp.inf]), 0) == 0
    assert margin.margin(jnp.array([-jnp.inf, -jnp.inf, -jnp.inf]), 1) == 0
    assert margin.margin(jnp.array([jnp.inf, 1.0]), 0) == jnp.inf
    assert margin.radius(jnp.array([jnp.inf, jnp.inf]), 0, lipschitz=1.0) == 0
    assert jnp.isnan(margin.margin(jnp.array([jnp.nan, 1.0]), 1))
