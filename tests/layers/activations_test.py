"""Activations: the slopes that the table states are the ones that the functions have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import activations
from lipjax.layers.activations import Activation, resolve

NAMES = sorted(activations._REGISTRY)


@pytest.mark.parametrize("name", NAMES)
def test_stated_slopes_hold(name):
    known = resolve(name)
    if known.slopes is None:
        return
    points = jnp.concatenate([jnp.linspace(-12, 12, 20001), jnp.array([0.0, -0.0])])
    both = jnp.stack([points, points[::-1]], axis=-1)  # some act on the first channels alone
    slopes = jax.grad(lambda x: known.fn(x).sum())(both)
    low, high = known.slopes
    assert slopes.min() >= low - 1e-6 and slopes.max() <= high + 1e-6
    assert slopes.max() >= high - 0.02 or high == known.lipschitz


@pytest.mark.parametrize("name", NAMES)
def test_one_lipschitz_is(name):
    fn = activations.one_lipschitz(name)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2000, 8)).astype(np.float32) * 3
    gap = np.linalg.norm(np.asarray(fn(a) - fn(b)), axis=1)
    assert (gap <= np.linalg.norm(a - b, axis=1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["max_min", "adjacent_max_min", "group_sort", "full_sort"])
def test_sorting_preserves_norms_and_gradients(name):
    fn = resolve(name).fn
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_allclose(np.sort(fn(x), -1), np.sort(x, -1))
    jacobian = jax.vmap(jax.jacobian(fn))(x)
    np.testing.assert_allclose(jacobian @ jacobian.swapaxes(1, 2), np.eye(6)[None].repeat(3, 0))


@pytest.mark.parametrize("channels", [6, 7])
def test_adjacent_max_min_is_max_min_of_other_channels(channels):
    x = np.random.default_rng(0).normal(size=(3, channels)).astype(np.float32)
    order = np.r_[0 : channels - 1 : 2, 1:channels:2, channels - 1 : channels][:channels]
    got = activations.adjacent_max_min(x)[:, order]
    np.testing.assert_array_equal(got, activations.max_min(x[:, order]))


def test_max_min_passes_an_odd_channel_and_ties_do_not_expand():
    assert activations.max_min(jnp.array([1.0, 2.0, 9.0])).tolist() == [2.0, 1.0, 9.0]
    jacobian = jax.jacobian(activations.max_min)(jnp.zeros(4))
    assert np.linalg.norm(jacobian, 2) <= 1 + 1e-6


def test_full_sort_is_one_group():
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    assert (activations.full_sort(x) == activations.group_sort(x, group_size=6)).all()


@pytest.mark.parametrize("beta, count", [(0.0, 0), (0.29, 29), (0.5, 50), (0.999, 99), (1.0, 100)])
def test_beta_abs_folds_the_first_channels(beta, count):
    y = activations.beta_abs(-jnp.ones((2, 100)), beta=beta)
    assert (y[:, :count] == 1).all() and (y[:, count:] == -1).all()
    assert (activations.beta_abs_of(beta).fn(-jnp.ones((2, 100))) == y).all()


# --- Householder activations -----------------------------------------------------------------------

HALF_TURNS = np.pi * np.array([0.0, 0.25, 0.5, 1.0, 1.25, 2.0])


def plane(x, angles):
    """Order 1 or 2 of pairs `float[n, 2]`, all with the same angles."""
    angles = jnp.asarray(angles, jnp.float32)[..., None]
    fn = activations.householder if angles.ndim == 1 else activations.householder_order_2
    return np.asarray(fn(jnp.asarray(x, jnp.float32), angles))


def ray(phi, radius=1.0):
    """The float32 point at angle `phi`."""
    return (radius * np.stack([np.cos(phi), np.sin(phi)], axis=-1)).astype(np.float32)


def exact_order_2(x, angles):
    """In float64, as a function of the angle of x."""
    t0, t1, t2 = np.asarray(angles, np.float64)
    x = np.asarray(x, np.float64)
    phi = np.arctan2(x[:, 1], x[:, 0])
    offset = (phi - t0 / 2) % (2 * np.pi)
    bounds = [offset < t1 / 2, offset < (t1 + t2) / 2, offset < np.pi + t2 / 2]
    turned = np.select(bounds, [phi, t0 + t1 - phi, phi - t2], t0 - phi)
    return np.linalg.norm(x, axis=1)[:, None] * ray_float64(turned)


def ray_float64(phi):
    return np.stack([np.cos(phi), np.sin(phi)], axis=-1)


def strict_last_sector(x, angles):
    """The published order 2: four masks, of which none holds where the angle rounds to 2 pi."""
    t0, t1, t2 = (np.float32(t) for t in angles)
    x = np.asarray(x, np.float32)
    circle = np.float32(2 * np.pi)
    phi = np.arctan2(x[:, 1], x[:, 0]) - np.float32(0.5) * t0
    phi = np.asarray(jnp.mod(jnp.asarray(phi), circle))
    last = np.float32(0.5) * (t1 + t2 + (circle - t1) + (circle - t2))
    third = np.float32(0.5) * (t1 + t2 + (circle - t1))
    covered = (phi >= 0) & (phi < third) | (phi >= third) & (phi < last)
    return np.where(covered[:, None], plane(x, angles), 0)


def order_1_angles():
    return [float(t) for t in HALF_TURNS] + [-1.5 * np.pi, 2.5 * np.pi, 0.7]


def order_2_angles():
    random = np.random.default_rng(0).uniform(0, np.pi, (4, 3))
    return [*random, (0, 0, 0), (2 * np.pi, 2 * np.pi, 2 * np.pi), (0.0, 2 * np.pi, 0.0)]


def all_angles():
    return [np.float32(t) for t in order_1_angles()] + [np.float32(t) for t in order_2_angles()]


def near_boundaries(angles):
    """Pairs of float32 points on both sides of each ray where the map changes, and of the wrap."""
    if np.ndim(angles) == 0:
        rays = [angles / 2, angles / 2 + np.pi]
    else:
        t0, t1, t2 = angles
        rays = [t0 / 2, (t0 + t1) / 2, (t0 + t1 + t2) / 2, (t0 + t2) / 2 + np.pi]
    rays = np.asarray([*rays, np.pi, -np.pi, 0.0], np.float64)
    steps = np.array([0, 1e-8, 3e-8, 1e-7, 3e-7, 1e-6, 1e-4, 1e-2])
    radius = np.random.default_rng(1).uniform(0.1, 10, (len(rays), len(steps), 1, 1))
    phi = rays[:, None, None] + steps[None, :, None] * np.array([-1.0, 1.0])
    x = radius * ray_float64(phi)
    return x[..., 0, :].reshape(-1, 2).astype(np.float32), x[..., 1, :].reshape(-1, 2).astype(
        np.float32
    )


@pytest.mark.parametrize("angles", all_angles(), ids=str)
def test_householder_preserves_norms_and_never_expands(angles):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 20000, 2)).astype(np.float32)
    a, b = near_boundaries(angles)
    x, y = np.concatenate([x, a]), np.concatenate([y, b])
    size = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(np.linalg.norm(plane(x, angles), axis=1), size, rtol=5e-7)
    gap = np.linalg.norm(plane(x, angles).astype(np.float64) - plane(y, angles), axis=1)
    true = np.linalg.norm(x.astype(np.float64) - y, axis=1)
    slack = 1e-6 * np.maximum(size, np.linalg.norm(y, axis=1))  # rounding of the angle
    assert (gap <= true + slack).all()


def test_negative_control_a_strict_last_sector_leaves_a_gap():
    """Angles just before a full circle round to it: the published masks all miss them."""
    misses = jumps = 0
    for t0 in np.float32(np.random.default_rng(0).uniform(0, np.pi, 50)):
        angles = (t0, np.float32(1.0), np.float32(0.5))
        x = ray(np.float64(t0) / 2 - np.linspace(-3e-7, 3e-7, 200))
        wrong, right = strict_last_sector(x, angles), plane(x, angles)
        np.testing.assert_allclose(np.linalg.norm(right, axis=1), 1, rtol=5e-7)
        np.testing.assert_allclose(right, exact_order_2(x, angles), atol=4e-6)
        misses += int((np.linalg.norm(wrong, axis=1) == 0).sum())
        jumps += int((np.linalg.norm(np.diff(wrong, axis=0), axis=1) > 0.9).sum())
    assert misses > 20 and jumps > 20  # of length 1, between neighbours at most 1e-7 apart


@pytest.mark.parametrize("angles", order_2_angles(), ids=str)
def test_order_2_is_its_definition(angles):
    x = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    angles = np.float32(angles)
    error = np.linalg.norm(plane(x, angles) - exact_order_2(x, angles), axis=1)
    assert (error <= 4e-6 * np.linalg.norm(x, axis=1)).all()


def test_order_1_contains_max_min_and_is_contained_in_order_2():
    x = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    sort = activations.max_min(x)
    at = lambda t: activations.householder(x, jnp.full(3, t * np.pi, jnp.float32))  # noqa: E731
    np.testing.assert_allclose(at(2.5), sort, atol=2e-6)
    swapped = jnp.concatenate([sort[:, 3:6], sort[:, :3], sort[:, 6:]], axis=-1)
    np.testing.assert_allclose(at(0.5), swapped, atol=2e-6)  # the smaller entries first
    full = jnp.array([[0.7] * 3, [2 * np.pi] * 3, [0.0] * 3], jnp.float32)
    one = activations.householder(x, full[0])
    np.testing.assert_allclose(activations.householder_order_2(x, full), one, atol=2e-6)


def test_negative_control_reflecting_both_sides_or_neither_is_no_activation():
    """The fold makes it nonlinear: at no angle is it the identity or a reflection everywhere."""
    x = ray(np.linspace(0, 2 * np.pi, 50))
    for t in order_1_angles():
        matrix = np.linalg.lstsq(x, plane(x, np.float32(t)), rcond=None)[0]
        assert np.abs(x @ matrix - plane(x, np.float32(t))).max() > 0.1


@pytest.mark.few(1)
@pytest.mark.parametrize("order", [1, 2])
def test_householder_gradients(order, key):
    channels = 7
    fn = activations.householder if order == 1 else activations.householder_order_2
    shape = (3,) if order == 1 else (3, 3)
    angles = jax.random.uniform(key, shape, maxval=np.pi)
    x = np.random.default_rng(0).normal(size=(20, channels)).astype(np.float32)
    jacobian = np.asarray(jax.vmap(jax.jacobian(fn), in_axes=(0, None))(x, angles))
    eye = np.broadcast_to(np.eye(channels), jacobian.shape)
    np.testing.assert_allclose(jacobian @ jacobian.swapaxes(1, 2), eye, atol=2e-6)
    loss = lambda x, angles: jnp.sum(fn(x, angles) * jnp.arange(1.0, channels + 1))  # noqa: E731
    for point in (jnp.zeros(channels), jnp.ones(channels), jnp.full(channels, 1e-38)):
        slopes = jax.grad(loss, argnums=(0, 1))(point, angles)
        assert all(np.isfinite(slope).all() for slope in slopes)
    step = 1e-2 * jax.random.normal(key, shape)
    rise = loss(x[0], angles + step) - loss(x[0], angles - step)
    slope = jnp.sum(2 * step * jax.grad(loss, argnums=1)(x[0], angles))
    np.testing.assert_allclose(rise, slope, rtol=2e-2)


def test_householder_passes_nan_and_the_odd_channel():
    for angles in (jnp.ones(1), jnp.ones((3, 1))):
        fn = activations.householder_of(angles).fn
        y = np.asarray(fn(jnp.array([jnp.nan, 1.0, 5.0])))
        assert np.isnan(y[:2]).all() and y[2] == 5
        assert fn(jnp.array([4.0])[:, None, None].repeat(3, -1)).shape == (1, 1, 3)


def test_householder_compiles_to_the_same(key):
    x = jax.random.normal(key, (4, 5, 6))
    angles = jax.random.uniform(key, (3, 3), maxval=np.pi)
    compiled = jax.jit(jax.vmap(activations.householder_order_2, in_axes=(0, None)))(x, angles)
    np.testing.assert_allclose(compiled, activations.householder_order_2(x, angles), atol=1e-6)


@pytest.mark.parametrize(
    "activation",
    [
        "max_min",
        "group_sort",
        "full_sort",
        "half_abs",
        "abs",
        activations.beta_abs_of(0.25),
        activations.householder_of(jnp.ones(3)),
        activations.householder_of(jnp.ones((3, 3))),
    ],
    ids=lambda activation: getattr(activation, "name", activation),
)
def test_norm_preserving_ones_stand_between_layers_only(activation):
    fn = activations.one_lipschitz(activation)
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(fn(x), axis=1), np.linalg.norm(x, axis=1), rtol=1e-6)
    with pytest.raises(ValueError, match="not 1-Lipschitz"):
        activations.slope_restricted(activation)


def test_known_functions_are_recognized():
    for fn in (activations.full_sort, activations.beta_abs, activations.max_min):
        assert resolve(fn).fn is fn
    for fn in (jax.nn.relu, jnp.tanh, jax.nn.elu, jax.nn.softplus):
        assert resolve(fn).slopes[0] >= 0


@pytest.mark.every
@pytest.mark.parametrize("unknown", ["swish2", lambda x: x, None, 3])
def test_unknown_activations_are_refused_with_what_would_work(unknown):
    with pytest.raises(ValueError, match="activation is .*nothing is known"):
        resolve(unknown)


def test_declaring_impossible_slopes_is_refused():
    with pytest.raises(ValueError, match="slopes is"):
        Activation("f", jnp.sin, (1.0, -1.0))
    with pytest.raises(ValueError, match="lipschitz is 1.0"):
        Activation("f", jnp.sin, (0.0, 2.0))
    with pytest.raises(ValueError, match="group_size is 4"):
        activations.group_sort(jnp.ones(6), group_size=4)
    with pytest.raises(ValueError, match="alpha"):
        activations.leaky_relu(1.5)
    with pytest.raises(ValueError, match="beta is 1.5"):
        activations.beta_abs(jnp.ones(6), beta=1.5)
    with pytest.raises(ValueError, match=r"angles has shape \(2,\); it must be \(3,\) for the 6"):
        activations.householder(jnp.ones(6), jnp.ones(2))
    with pytest.raises(ValueError, match=r"angles has shape \(3,\); it must be \(3, 3\)"):
        activations.householder_order_2(jnp.ones(6), jnp.ones(3))
    with pytest.raises(ValueError, match=r"angles has shape \(\)"):
        activations.householder_of(jnp.float32(1.0))


def test_activations_can_be_pickled():
    """So that a module that holds one can."""
    import pickle

    kept = [activations.resolve(n) for n in ("relu", "tanh", "half_abs", "leaky_relu")]
    kept += [activations.leaky_relu(0.2), activations.householder_of(jnp.ones(2))]
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    for activation in kept:
        again = pickle.loads(pickle.dumps(activation))
        np.testing.assert_array_equal(again.fn(x), activation.fn(x))
    restricted = pickle.loads(pickle.dumps(activations.slope_restricted("selu")))
    np.testing.assert_array_equal(restricted(x), activations.slope_restricted("selu")(x))


def test_angles_may_be_lists():
    x = jnp.array([5.0, 1.0, 3.0, 2.0])
    np.testing.assert_array_equal(
        activations.householder(x, [0.5, 1.0]), activations.householder(x, jnp.array([0.5, 1.0]))
    )
    rows = [[0.5, 1.0], [0.2, 0.3], [0.1, 0.4]]
    np.testing.assert_array_equal(
        activations.householder_order_2(x, rows),
        activations.householder_order_2(x, jnp.array(rows)),
    )


def test_numbers_and_sequences_of_other_types():
    assert activations.leaky_relu(jnp.float32(0.25)) is activations.leaky_relu(0.25)
    assert activations.beta_abs_of(np.float32(0.5)) is activations.beta_abs_of(0.5)
    known = Activation("double", lambda x: 2 * x, [0.0, 2.0], lipschitz=2.0)
    assert known.slopes == (0.0, 2.0)
    assert activations.slope_restricted(known)(jnp.float32(3.0)) == 3.0


def test_what_an_activation_cannot_be_is_named():
    for arguments, word in [
        (("a", 3, (0, 1)), "fn is 3; it must be a function"),
        (("a", jnp.abs, 3), "slopes is 3; it must be"),
        (("a", jnp.abs, ("low", "high")), "slopes is .'low', 'high'.; it must be"),
        (("a", jnp.abs, (0, 1), "x"), "lipschitz is 'x'; it must be one finite number"),
    ]:
        with pytest.raises(ValueError, match=word):
            activations.Activation(*arguments)
    with pytest.raises(ValueError, match="group_size is .2.; it must be an integer"):
        activations.group_sort_of([2])


def test_functions_without_a_hash_are_unknown():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    with pytest.raises(ValueError, match="about whose slopes nothing is known"):
        activations.resolve(Unhashable())
