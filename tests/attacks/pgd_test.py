"""PGD against exact answers, and what it does with ties, NaN, one class and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.attacks import Attack, minimal_distance, pgd
from lipjax.attacks._search import _random_directions
from tests.marks import slow

D, K, N = 12, 5, 40
FREE = dict(num_steps=40, num_restarts=3, bounds=None)  # shared, so that programs are compiled once


def affine(w, b, x):
    return jnp.matmul(x, w, precision="highest") + b[None]


def linear_problem(seed, norm):
    """A linear classifier, points, their classes and the exact distances to the nearest face."""
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=(D, K)).astype(np.float32), rng.normal(size=K).astype(np.float32)
    x = rng.uniform(size=(N, D)).astype(np.float32)
    logits = x.astype(np.float64) @ w.astype(np.float64) + b.astype(np.float64)
    label = logits.argmax(axis=1)
    gaps = logits.max(axis=1, keepdims=True) - logits
    difference = w.T.astype(np.float64)[label][:, None] - w.T.astype(np.float64)[None]
    slopes = np.linalg.norm(difference, ord=2 if norm == "l2" else 1, axis=2)
    slopes[np.arange(N), label] = 1e-30
    gaps[np.arange(N), label] = 1
    exact = (gaps / slopes).min(axis=1)

    fn = jax.tree_util.Partial(affine, jnp.asarray(w), jnp.asarray(b))  # one trace for all
    return fn, jnp.asarray(x), jnp.asarray(label), exact


def distance64(a, b, norm):
    difference = (np.asarray(a, np.float64) - np.asarray(b, np.float64)).reshape(len(a), -1)
    return np.linalg.norm(difference, ord=2 if norm == "l2" else np.inf, axis=1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_minimal_distance_of_a_linear_classifier_is_exact(seeded_key, norm):
    fn, x, label, exact = linear_problem(int(jax.random.randint(seeded_key, (), 0, 99)), norm)
    found = minimal_distance(seeded_key, fn, x, label, norm=norm, bounds=None, max_eps=8.0)
    assert np.all(found >= exact * (1 - 1e-5))
    assert np.all(found <= exact * 1.01)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_attack_succeeds_just_beyond_the_exact_radius_and_never_below(key, norm):
    fn, x, label, exact = linear_problem(0, norm)
    options = dict(FREE, norm=norm)
    beyond = pgd(key, fn, x, label, eps=jnp.asarray(exact * 1.01, jnp.float32), **options)
    below = pgd(key, fn, x, label, eps=jnp.asarray(exact * 0.999, jnp.float32), **options)
    assert beyond.success.all()
    assert not below.success.any()
    assert np.all(fn(beyond.example).argmax(axis=1) != label)
    assert np.all(beyond.margin <= 0) and np.all(below.margin > 0)


def test_attack_refutes_a_certificate_that_is_too_large(key):
    fn, x, label, exact = linear_problem(1, "l2")
    logits = jnp.sort(fn(x), axis=1)
    unsound = (logits[:, -1] - logits[:, -2]) / 1.0  # claims that every difference has norm 1
    attack = pgd(key, fn, x, label, eps=unsound, **FREE)
    assert (attack.success & (attack.distance < unsound)).mean() > 0.5
    sound = jnp.asarray(exact * (1 - 1e-4), jnp.float32)
    assert not pgd(key, fn, x, label, eps=sound, **FREE).success.any()


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "image,norm",
    [("flat", "l2"), ("flat", "linf"), ("far", "l2")]
    + [slow(*case) for case in (("random", "l2"), ("random", "linf"), ("far", "linf"))],
)
def test_example_lies_in_the_ball_and_in_the_box_exactly(key, norm, image):
    d = 784
    x = jnp.full((4, d), 0.7) if image == "flat" else jax.random.uniform(key, (4, d))
    bounds = (0.0, 1.0)
    if image == "far":  # roundings of x + delta are large here
        x, bounds = x + 1000, None
    w, b = jax.random.normal(key, (d, 3)), jnp.zeros(3)
    fn = jax.tree_util.Partial(affine, w, b)
    for eps, label in ((0.1, 0), (0.1, 1), (0.3, 2)):
        attack = pgd(
            *(key, fn, x, jnp.full(4, label)),
            **dict(eps=eps, num_steps=8, num_restarts=3, norm=norm, bounds=bounds),
        )
        exact = distance64(attack.example, x, norm)
        assert np.all(exact <= np.asarray(attack.distance, np.float64))
        assert np.all(np.asarray(attack.distance, np.float64) <= eps)
        if bounds:
            assert attack.example.min() >= 0 and attack.example.max() <= 1
    if image == "flat":  # control: the plain sum leaves the ball
        unsafe = x + jnp.float32(0.1) / (d**0.5 if norm == "l2" else 1)
        assert distance64(unsafe, x, norm).max() > 0.1


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_attack_reaches_the_border_of_the_ball(key, norm):
    x = jnp.full((4, 784), 0.5)
    fn = jax.tree_util.Partial(affine, jax.random.normal(key, (784, 3)), jnp.array([99.0, 0, 0]))
    options = dict(num_steps=8, num_restarts=3, norm=norm)
    attack = pgd(key, fn, x, jnp.zeros(4, int), eps=0.01, **options)
    assert not attack.success.any()
    assert distance64(attack.example, x, norm).min() > 0.01 * (1 - 2e-4)


def test_random_starts_are_uniform_in_the_ball(key):
    starts = np.asarray(_random_directions(key[None], 4001, 3, jnp.float32, "l2"))[0]
    assert not starts[0].any()
    volumes = np.sort(np.linalg.norm(starts[1:], axis=1) ** 3)  # uniform in [0, 1]
    assert np.abs(volumes - np.arange(4000) / 4000).max() < 1.95 / 4000**0.5  # Kolmogorov, 1e-3
    assert np.abs(starts[1:].mean(axis=0)).max() < 4 * (1 / 5 / 4000) ** 0.5
    box = np.asarray(_random_directions(key[None], 4001, 3, jnp.float32, "linf"))[0, 1:]
    assert box.min() < -0.99 and box.max() > 0.99 and np.abs(box.mean(axis=0)).max() < 0.04


def test_box_stops_the_attack():
    def fn(x):
        return jnp.stack([x[:, 0] + 0.1, jnp.zeros(len(x))], axis=1)

    x = jnp.zeros((1, 3))

    def run(bounds):
        return pgd(jax.random.key(0), fn, x, jnp.array([0]), eps=1.0, num_steps=10, bounds=bounds)

    assert run((-1.0, 1.0)).success.all()
    boxed = run((0.0, 1.0))
    assert not boxed.success.any() and not boxed.example[:, 0].any()


def test_batch_equals_a_loop_of_single_examples(key):
    fn, x, label, _ = linear_problem(2, "l2")
    eps = jnp.linspace(0.0, 0.4, N)
    batch = pgd(key, fn, x, label, eps=eps, **FREE)
    assert isinstance(batch, Attack) and batch.example.shape == x.shape
    for i in (0, 7, N - 1):  # with a key of the old kind, which must give the same
        own = jax.random.fold_in(jax.random.key_data(key), i)
        one = pgd(own, fn, x[i], label[i], eps=eps[i], **FREE)
        assert one.example.shape == (D,) and one.success.shape == ()
        for mine, theirs in zip(one, batch):
            np.testing.assert_allclose(mine, theirs[i], rtol=1e-4, atol=1e-5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(N))
    vmapped = jax.vmap(lambda k, x, y, e: pgd(k, fn, x, y, eps=e, **FREE))
    for mine, theirs in zip(jax.jit(vmapped)(keys, x, label, eps), batch):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_each_example_has_its_own_eps(key):
    fn, x, label, exact = linear_problem(3, "l2")
    eps = jnp.asarray(np.where(np.arange(N) % 2, exact * 1.02, exact * 0.98), jnp.float32)
    attack = pgd(key, fn, x, label, eps=eps, **FREE)
    np.testing.assert_array_equal(attack.success, np.arange(N) % 2 == 1)


def test_restarts_leave_a_stationary_point(key):
    def fn(x):  # x is where the margin is largest, and its gradient is zero
        return jnp.stack([1 - 20 * ((x - 0.5) ** 2).sum(axis=1), jnp.zeros(len(x))], axis=1)

    x, label = jnp.full((4, 2), 0.5), jnp.zeros(4, int)
    one = pgd(key, fn, x, label, eps=0.2, num_steps=5)
    two = pgd(key, fn, x, label, eps=0.2, num_steps=5, num_restarts=2)
    np.testing.assert_array_equal(one.margin, 1)
    np.testing.assert_allclose(two.margin, 0.2, rtol=1e-3)


def test_misclassified_and_tied_inputs(key):
    def fn(x):
        return jnp.concatenate([x, x], axis=1)  # classes 0 and 1 always tie

    x = jnp.array([[0.5]])
    lowest = pgd(key, fn, x, jnp.array([0]), eps=0.1, num_steps=3)
    other = pgd(key, fn, x, jnp.array([1]), eps=0.1, num_steps=3)
    assert not lowest.success[0] and lowest.margin[0] == 0
    assert other.success[0] and other.distance[0] == 0 and other.margin[0] == 0
    np.testing.assert_array_equal(other.example, x)
    assert minimal_distance(key, fn, x, jnp.array([1]), num_bisections=2)[0] == 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_constant_network_moves_nothing(key, norm):
    def fn(x):
        return jnp.zeros((len(x), 3)) + jnp.array([[1.0, 0.0, 0.5]])

    x = jax.random.uniform(key, (2, 4))
    attack = pgd(key, fn, x, jnp.array([0, 0]), eps=0.2, num_steps=5, norm=norm)
    assert not attack.success.any() and np.all(attack.margin == 0.5)
    np.testing.assert_array_equal(attack.example, x)
    if norm == "l2":
        assert np.all(np.isinf(minimal_distance(key, fn, x, jnp.array([0, 0]))))


def test_nan_logits_are_not_the_label(key):
    def fn(x):
        return jnp.where(x[:, :1] > 2, x[:, :1], jnp.nan) * jnp.ones((1, 3))

    attack = pgd(key, fn, jnp.zeros((2, 4)), jnp.array([0, 1]), eps=0.2, num_steps=5)
    assert attack.success.all() and not attack.distance.any() and np.isnan(attack.margin).all()
    assert np.isfinite(attack.example).all()


def test_gradients_that_are_not_finite_make_no_step(key):
    def fn(x):
        return jnp.stack([1 + jnp.sqrt(x[:, 0]), jnp.zeros(len(x))], axis=1)  # slope inf at 0

    x = jnp.array([[0.0, 0.5]])
    attack = pgd(key, fn, x, jnp.array([0]), eps=0.2, num_steps=5)
    assert not attack.success.any() and attack.margin[0] == 1
    np.testing.assert_array_equal(attack.example, x)


def test_one_class_never_changes(key):
    attack = pgd(key, lambda x: x[:, :1], jnp.ones((2, 4)), jnp.array([0, 0]), eps=1, num_steps=3)
    assert not attack.success.any() and np.all(np.isposinf(attack.margin))


def test_zero_eps_tries_x_alone_and_infinite_eps_the_whole_box(key):
    fn, x, label, _ = linear_problem(4, "l2")
    wrong = (label + 1) % K
    options = dict(num_steps=20, num_restarts=2)
    none = pgd(key, fn, x, label, eps=0.0, **options)
    assert not none.success.any()
    np.testing.assert_array_equal(none.example, x)
    assert pgd(key, fn, x, wrong, eps=0.0, **options).success.all()
    whole = pgd(key, fn, x, label, eps=jnp.inf, **options)
    assert np.isfinite(whole.example).all() and whole.success.any()


def test_images_and_half_precision_logits(key):
    def fn(x):
        return x.mean(axis=(1, 2)).astype(jnp.bfloat16)

    x = jax.random.uniform(key, (3, 4, 4, 2))
    attack = pgd(key, fn, x, jnp.zeros(3, int), eps=2.0, num_steps=10)
    assert attack.example.shape == x.shape and attack.margin.dtype == jnp.float32
    assert attack.success.all()


def test_double_precision_examples_and_single_precision_logits(key):
    with jax.enable_x64(True):
        x = jnp.full((2, 3), 0.5, jnp.float64)
        attack = pgd(
            key, lambda x: x.astype(jnp.float32), x, jnp.array([0, 1]), eps=0.1, num_steps=4
        )
        assert attack.example.dtype == attack.margin.dtype == jnp.float64
        assert attack.success.all() and 0 < attack.distance[0] <= 0.1 and attack.distance[1] == 0


def test_callables_are_traced_once(key):
    traces = []

    def apply(params, x):
        traces.append(x.shape)
        return x @ params["w"]

    x, label = jax.random.uniform(key, (3, 4)), jnp.array([0, 1, 2])
    weights = [{"w": jax.random.normal(jax.random.key(i), (4, 3))} for i in (1, 2)]

    def run(fn):
        return pgd(key, fn, x, label, eps=0.5, num_steps=3)

    first = run(jax.tree_util.Partial(apply, weights[0]))
    count = len(traces)
    second = run(jax.tree_util.Partial(apply, weights[1]))
    assert len(traces) == count  # new weights are new arguments
    assert np.any(first.margin != second.margin)

    def fixed(x):
        return apply(weights[0], x)

    np.testing.assert_allclose(run(fixed).margin, first.margin, rtol=1e-5)
    count = len(traces)
    run(fixed)
    assert len(traces) == count

    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return apply(weights[1], x)

    np.testing.assert_allclose(run(Unhashable()).margin, second.margin, rtol=1e-5)
    assert len(traces) > count


def test_updated_flax_module_is_not_attacked_with_its_old_weights(key):
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

        def logits(self, x):
            return self.dense(x)

    model = Model(nnx.Rngs(0))
    x, label = jax.random.uniform(key, (3, 4)), jnp.array([0, 1, 2])
    with jax.numpy_rank_promotion("allow"):
        margins = []
        for fn in (model.logits, model.logits, model, model):
            margins.append(pgd(key, fn, x, label, eps=0.1, num_steps=3).margin)
            model.dense.kernel[...] = -model.dense.kernel[...]
    assert np.any(margins[0] != margins[1])
    np.testing.assert_allclose(margins[:2], margins[2:], rtol=1e-5)


@pytest.mark.every
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(norm="l1"), "norm is 'l1'"),
        (dict(num_steps=0), "num_steps is 0"),
        (dict(num_restarts=1.5), "num_restarts is 1.5"),
        (dict(eps=-0.1), "eps is -0.1"),
        (dict(eps=float("nan")), "eps is nan"),
        (dict(eps=np.ones(3, np.float32)), r"eps has shape \(3,\)"),
        (dict(eps=float("inf"), bounds=None), "eps is inf"),
        (dict(step_size=0.0), "step_size is 0.0"),
        (dict(bounds=(1.0, 0.0)), r"bounds is \(1.0, 0.0\)"),
        (dict(bounds=1), "bounds is 1; it must be two numbers"),
        (dict(bounds=(jnp.zeros(4), jnp.ones(4))), "it must be two numbers"),
        (dict(x=jnp.full((2, 4), 2.0)), r"x has values from 2.0 to 2.0, outside bounds"),
        (dict(x=jnp.full((2, 4), jnp.nan)), "x has values from nan"),
        (dict(x=jnp.ones((2, 4), int)), "x has dtype int32"),
        (dict(x=jnp.ones((0, 4)), label=jnp.zeros(0, int)), "no axis may have length 0"),
        (dict(x=jnp.ones((3, 4))), "one example for each label"),
        (dict(label=jnp.zeros((2, 1), int)), "label has shape"),
        (dict(label=jnp.zeros(2)), "label has dtype float32"),
        (dict(label=jnp.array([0, 4])), "fn has 4 classes"),
        (dict(label=jnp.array([0, -1])), "fn has 4 classes"),
        (dict(fn=lambda x: x.sum(axis=1)), r"fn returns shape \(2,\)"),
        (dict(fn=lambda x: (x > 0).astype(int)), "fn returns"),
        (dict(fn=3), "fn is 3"),
    ],
)
def test_bad_input_is_named(key, change, message):
    arguments = dict(fn=lambda x: x, x=jnp.ones((2, 4)) / 2, label=jnp.array([0, 1]))
    arguments |= dict(eps=0.1, num_steps=2) | change
    positional = [arguments.pop(name) for name in ("fn", "x", "label")]
    with pytest.raises(ValueError, match=message):
        pgd(key, *positional, **arguments)


def test_minimal_distance_needs_an_end_without_a_box(key):
    for bounds in (None, (0, np.inf)):
        with pytest.raises(ValueError, match="max_eps is None"):
            minimal_distance(key, lambda x: x, jnp.ones((2, 4)), jnp.array([0, 1]), bounds=bounds)


def test_the_ends_of_the_box_are_numbers_that_the_examples_can_have(key):
    """0.1 in float32 is above 0.1: an input of that value is inside."""
    fn = jax.tree_util.Partial(lambda x: jnp.stack([1 - x[:, 0], x[:, 0]], axis=1))
    attack = pgd(key, fn, np.full(4, 0.1), 0, eps=0.05, num_steps=3, bounds=(0.0, 0.1))
    assert np.asarray(attack.example).max() <= np.float32(0.1)
    with pytest.raises(ValueError, match="outside bounds"):
        pgd(key, fn, np.full(4, 0.1001), 0, eps=0.05, num_steps=3, bounds=(0.0, 0.1))


def test_label_that_is_no_class_is_never_the_class_under_tracing(key):
    run = jax.jit(
        lambda label: pgd(key, lambda x: x, jnp.ones((3, 4)), label, eps=0.1, num_steps=2)
    )
    attack = run(jnp.array([-1, 4, 0]))
    np.testing.assert_array_equal(attack.success[:2], [True, True])
    np.testing.assert_array_equal(attack.distance[:2], [0, 0])


def test_written_out_it_is_the_same_attack(key):
    fn, x, label, exact = linear_problem(1, "l2")
    options = dict(
        eps=jnp.asarray(exact * 1.2, jnp.float32), num_steps=4, num_restarts=2, bounds=None
    )
    looped, written = (pgd(key, fn, x, label, unroll=unroll, **options) for unroll in (False, True))
    np.testing.assert_array_equal(looped.success, written.success)
    np.testing.assert_allclose(looped.example, written.example, rtol=1e-4, atol=1e-5)
