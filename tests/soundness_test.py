"""Every bound is one, every layer is 1-Lipschitz, and every wrong version is caught."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.attacks import lipschitz_lower_bound
from lipjax.layers import activations, lmi
from tests import families, oracles


def doubled(array):
    """The same numbers in double precision."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


@functools.cache
def digits():
    """Scikit-learn's images, `float32[1797, 64]` in [0, 1]."""
    from sklearn.datasets import load_digits

    return load_digits().data.astype(np.float32) / 16


@functools.cache
def _jacobians(layer, options):
    apply = functools.partial(layer.apply, **dict(options))
    return jax.jit(jax.vmap(jax.jacobian(apply, argnums=1), (None, 0)))


def jacobian_norm(layer, weights, points, **options):
    """The largest norm of the layer's Jacobian at the points, in float64."""
    with jax.enable_x64(True):
        weights, points = jax.tree.map(doubled, (weights, points))
        jacobians = _jacobians(layer, tuple(options.items()))(weights, points)
    matrices = np.asarray(jacobians).reshape(len(points), -1, int(np.prod(layer.shape)))
    return oracles.singular_values(matrices).max()


@functools.cache
def batched(layer):
    """One function for every use, so that it is traced once."""
    return jax.vmap(layer.apply, (None, 0))


@functools.cache
def initial(layer):
    """Weights of a random start."""
    return layer.constrain(layer.init(jax.random.key(2)))


@functools.cache
def orthonormal(layer):
    """Weights of kernels that are isometries."""
    params = families.params_like(layer, families.isometry)
    return layer.constrain(jax.tree.map(lambda a: a[0], params))


@pytest.mark.parametrize("row", families.by_name(families.BOUNDS))
class TestUpperBounds:
    def test_never_below_the_truth(self, row):
        arrays = families.arrays(row.shape)
        truth = np.array([row.truth(a) for a in arrays])
        bounds = np.asarray(jax.vmap(row.fn)(arrays), np.float64)
        assert (truth <= bounds).all(), np.flatnonzero(truth > bounds)

    def test_within_the_stated_factor(self, row):
        arrays = families.arrays(row.shape)[-8:]
        truth = np.array([row.truth(a) for a in arrays])
        assert (np.asarray(jax.vmap(row.fn)(arrays)) <= row.factor * truth).all()

    def test_negative_control(self, row):
        arrays = families.arrays(row.shape)[-8:]
        wrong = np.array([float(row.broken(jnp.asarray(a))) for a in arrays])
        assert (wrong < np.array([row.truth(a) for a in arrays])).any()


@pytest.mark.parametrize("row", families.by_name(families.CONTRACTIONS))
class TestContractions:
    def test_norm_at_most_one(self, row):
        for result in np.asarray(jax.vmap(row.fn)(families.arrays(row.shape))):
            assert row.norm(result) <= 1

    def test_within_the_stated_factor(self, row):
        for result in np.asarray(jax.vmap(row.fn)(families.arrays(row.shape)[-8:])):
            assert row.norm(result) >= 1 / row.factor

    def test_negative_control(self, row):
        arrays = families.arrays(row.shape)[-8:]
        assert max(row.norm(np.asarray(row.broken(jnp.asarray(a)))) for a in arrays) > 1


def inputs(layer, count=6):
    """Random ones and, every second, an image of a digit, tiled and cut to the shape."""
    points = np.random.default_rng(1).normal(size=(count, *layer.shape)).astype(np.float32)
    size = int(np.prod(layer.shape))
    for i, digit in enumerate(digits()[: count // 2]):
        points[2 * i + 1] = np.resize(digit, size).reshape(layer.shape)
    return points


@pytest.mark.few(9)
@pytest.mark.parametrize("layer", families.by_name(families.LAYERS))
def test_jacobian_at_most_one_for_every_kernel(layer):
    params = families.params_like(layer, families.arrays)
    weights = jax.jit(jax.vmap(layer.constrain))(params)
    x = inputs(layer, len(params.kernel))
    jacobians = jax.jit(jax.vmap(jax.jacobian(layer.apply, argnums=1)))(weights, x)
    matrices = np.asarray(jacobians, np.float64).reshape(len(x), -1, x[0].size)
    assert oracles.singular_values(matrices).max() <= 1 + 1e-5


@pytest.mark.parametrize("layer", families.one_of_each(families.LAYERS))
class TestLayers:
    @pytest.mark.few(6)
    def test_jacobian_at_most_one_where_it_is_largest(self, layer, seeded_key):
        weights = layer.constrain(layer.init(seeded_key))
        found = lipschitz_lower_bound(
            seeded_key,
            jax.tree_util.Partial(batched(layer), weights),
            inputs(layer),
            num_ascent_steps=10,
        )
        assert found.kind == "lower" and 0.1 < float(found.value) <= 1 + 1e-5

    def test_negative_control_jacobian(self, layer):
        weights = layer.broken(orthonormal(layer))
        assert jacobian_norm(layer, weights, 100 * inputs(layer)) > 1.02

    def test_tight_for_orthonormal_kernels(self, layer):
        assert jacobian_norm(layer, orthonormal(layer), inputs(layer)) >= layer.tight

    def test_bound_is_proved_and_at_most_one(self, layer):
        params = families.params_like(layer, families.arrays)
        for i in (0, 1, 4, 6, 7, 9, -1):
            one = jax.tree.map(lambda leaf: leaf[i], params)  # noqa: B023
            for make in (layer.constrain, layer.freeze):
                bound, rounding = layer.bound(make(one)), layer.slack
                if layer.orthogonal and make is layer.constrain:
                    rounding = max(rounding, 1e-5)
                assert bound.kind == "upper" and 0 <= bound.value <= 1 + rounding

    def test_bound_of_wrong_weights_says_so(self, layer):
        weights = layer.broken(orthonormal(layer))
        bound = layer.bound(weights).value
        measured = jacobian_norm(layer, weights, 100 * inputs(layer))
        assert 1.02 < measured <= bound

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_bound_of_weights_that_are_not_finite_is_infinite(self, layer, bad):
        weights = initial(layer)
        for broken in (
            weights._replace(kernel=weights.kernel.at[..., 0, 0].set(bad)),
            weights._replace(bias=weights.bias.at[0].set(bad)),
        ):
            assert layer.bound(broken).value == np.inf

    def test_nan_in_any_parameter_is_no_finite_bound(self, layer):
        params = layer.init(jax.random.key(0))
        for name, value in zip(params._fields, params):
            if value.size:
                broken = params._replace(**{name: value.at[(-1,) * value.ndim].set(jnp.nan)})
                for make in (layer.constrain, layer.freeze):
                    assert layer.bound(make(broken)).value == np.inf, name

    def test_frozen_is_the_same_function(self, layer):
        params = layer.init(jax.random.key(0))
        a, b = (
            layer.apply(make(params), inputs(layer)) for make in (layer.constrain, layer.freeze)
        )
        np.testing.assert_allclose(a, b, atol=layer.frozen, rtol=0)

    @pytest.mark.few(5)
    def test_smallest_eigenvalue_of_the_condition(self, layer):
        if layer.matrices is None:
            return
        params = families.params_like(layer, families.arrays)
        for i in (0, 1, 2, 4, 5, 11, -1):
            one = jax.tree.map(lambda leaf: leaf[i], params)  # noqa: B023
            if layer.orthogonal:
                with jax.enable_x64(True):
                    one = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), one)
                    assert smallest_eigenvalue(layer, layer.constrain(one)) >= -1e-9
                continue
            for make in (layer.constrain, layer.freeze):
                assert smallest_eigenvalue(layer, make(one)) >= -1e-9

    @pytest.mark.few(5)
    def test_negative_control_smallest_eigenvalue(self, layer):
        if layer.matrices is None:
            return
        weights = layer.broken(orthonormal(layer))
        assert smallest_eigenvalue(layer, weights) < -1e-3


def around_activations(*, dense: bool):
    """Layers with an activation inside; with Jacobians at hand, the dense ones."""
    rows = families.one_of_each(families.LAYERS)
    layers = [(row, row.values[0]) for row in rows]
    return [row for row, one in layers if one.activation and not (dense and len(one.shape) > 1)]


class TestActivations:
    @pytest.mark.few(6)
    @pytest.mark.parametrize("layer", around_activations(dense=True))
    @pytest.mark.parametrize("name", ["leaky_relu", "tanh", "sigmoid", "elu", "softplus", "selu"])
    def test_every_admissible_activation(self, layer, name):
        weights = initial(layer)
        points = np.concatenate([0.1 * inputs(layer), 3 * inputs(layer)])
        assert jacobian_norm(layer, weights, points, activation=name) <= 1 + 1e-5

    @pytest.mark.few(10)
    @pytest.mark.parametrize("layer", around_activations(dense=False))
    @pytest.mark.parametrize("name", ["abs", "max_min", "group_sort", "gelu", "silu"])
    def test_others_are_refused_with_the_reason(self, layer, name):
        weights = initial(layer)
        with pytest.raises(ValueError, match=f"{name}.*(mixes channels|slope goes down)"):
            layer.apply(weights, inputs(layer)[0], activation=name)

    @pytest.mark.parametrize("layer", around_activations(dense=True))
    def test_refusing_is_right(self, layer):
        """With a forbidden activation declared admissible, the layer does expand."""
        cheat = activations.Activation("cheat", jnp.abs, (0.0, 1.0))
        weights = orthonormal(layer)
        assert jacobian_norm(layer, weights, inputs(layer, 12), activation=cheat) > 1.5


def smallest_eigenvalue(layer, weights):
    with jax.enable_x64(True):
        weights = jax.tree.map(lambda a: jnp.asarray(doubled(a)), weights)
        return float(jnp.linalg.eigvalsh(lmi.residual(*layer.matrices(weights))).min())
