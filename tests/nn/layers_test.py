"""Flax modules: parameters and a call, the same numbers as the pure functions, no state."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn
from lipjax.layers import aol, cpl, head, sll

IMAGE, VECTOR = (2, 5, 6, 3), (2, 6)
ROWS = [
    (lambda rngs: nn.SLLDense(6, 4, rngs=rngs), VECTOR, sll.constrain_dense, sll.apply_dense),
    (lambda rngs: nn.CPLDense(6, 4, rngs=rngs), VECTOR, cpl.constrain_dense, cpl.apply_dense),
    (lambda rngs: nn.AOLDense(6, 4, rngs=rngs), VECTOR, aol.constrain_dense, aol.apply_dense),
    (
        lambda rngs: nn.NormalizedHead(6, 4, rngs=rngs),
        VECTOR,
        head.constrain_dense,
        head.apply_dense,
    ),
    (lambda rngs: nn.SLLConv(3, 4, rngs=rngs), IMAGE, sll.constrain_conv, sll.apply_conv),
    (lambda rngs: nn.CPLConv(3, 4, 3, rngs=rngs), IMAGE, cpl.constrain_conv, cpl.apply_conv),
    (lambda rngs: nn.AOLConv(3, 4, rngs=rngs), IMAGE, aol.constrain_conv, aol.apply_conv),
]
IDS = ["SLLDense", "CPLDense", "AOLDense", "NormalizedHead", "SLLConv", "CPLConv", "AOLConv"]


@pytest.mark.few(1)
@pytest.mark.parametrize("make,shape,constrain,apply", ROWS, ids=IDS)
def test_delegates_and_works_under_plain_transforms(make, shape, constrain, apply):
    module = make(nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params = module.free.get_value()
    expected = apply(constrain(params), x)
    np.testing.assert_allclose(module(x), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(module, x), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda one: module(one))(x), expected, atol=1e-6)
    gradient = jax.grad(lambda m: (m(x) ** 2).sum())(module)
    assert jax.tree.structure(gradient) == jax.tree.structure(module)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("make,shape,constrain,apply", ROWS, ids=IDS)
def test_constrained_and_frozen_copies_leave_the_original_alone(make, shape, constrain, apply):
    module = make(nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = jax.tree.map(np.asarray, jax.tree.leaves(module))
    for copy in (nn.constrain(module), nn.freeze(module)):
        assert copy.free is None and copy.explicit is not None
        np.testing.assert_allclose(copy(x), module(x), atol=5e-3)
        assert copy.bound().kind == "upper"
    for a, b in zip(before, jax.tree.leaves(module)):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_computed_from_parameters_after_freezing():
    frozen = nn.freeze(nn.SLLDense(6, 4, rngs=nnx.Rngs(0)))
    text = jax.jit(lambda m, x: m(x)).lower(frozen, jnp.ones((2, 6))).as_text()
    free = jax.jit(lambda m, x: m(x)).lower(nn.SLLDense(6, 4, rngs=nnx.Rngs(0)), jnp.ones((2, 6)))
    assert text.count("dot_general") == 2 < free.as_text().count("dot_general")


def test_options_are_checked_when_building():
    with pytest.raises(ValueError, match="activation is 'max_min'"):
        nn.SLLDense(6, 4, activation="max_min", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="padding is 'reflect'"):
        nn.AOLConv(3, 4, padding="reflect", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="features is 0"):
        nn.SLLDense(0, 4, rngs=nnx.Rngs(0))


def test_activation_modules():
    x = jnp.array([[1.0, 4.0, 3.0, 2.0]])
    assert nn.MaxMin()(x).tolist() == [[3.0, 4.0, 1.0, 2.0]]
    assert nn.GroupSort(4)(x).tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert nn.FullSort()(x).tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_lists_are_taken_and_what_has_no_channels_is_named():
    for module in (nn.MaxMin(), nn.GroupSort(), nn.FullSort(), nn.Householder(2, rngs=nnx.Rngs(0))):
        np.testing.assert_array_equal(module([2.0, 1.0]), module(jnp.array([2.0, 1.0])))
        with pytest.raises(ValueError, match=r"x has shape \(\)"):
            module(1.0)
    layer = nn.SLLDense(4, 3, rngs=nnx.Rngs(0))
    assert layer([[1.0, 2.0, 3.0, 4.0]]).shape == (1, 4)
    with pytest.raises(ValueError, match="x is 'one'"):
        layer("one")


KINDS = [
    kind
    for kind in vars(nn).values()
    if isinstance(kind, type) and issubclass(kind, nn.Constrained) and kind is not nn.Constrained
]


@pytest.mark.parametrize("kind", KINDS)
def test_signatures_are_the_class_s_own_with_rngs_last(kind):
    parameters = inspect.signature(kind.__init__).parameters
    assert kind.__init__.__qualname__ == f"{kind.__name__}.__init__"
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    if kind not in (nn.Chain, nn.ConvexMix, nn.Residual):
        assert list(parameters)[-1] == "rngs"
        with pytest.raises(
            TypeError, match=f"^{kind.__name__}.*unexpected keyword argument 'colour'"
        ):
            kind(colour=1)


@pytest.mark.parametrize(
    "kind,published", [(nn.SLLDense, sll.init_dense), (nn.CPLDense, cpl.init_dense)]
)
def test_the_published_start_is_an_option(kind, published):
    layer = kind(4, 32, init="published", rngs=nnx.Rngs(0))
    expected = published(nnx.Rngs(0).params(), 4, 32, init="published")
    for a, b in zip(layer.free.get_value(), expected):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="init is 'best'"):
        kind(4, 32, init="best", rngs=nnx.Rngs(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make,shape",
    [
        (lambda **o: nn.CPLDense(4, 3, **o), (4,)),
        (lambda **o: nn.CPLConv(2, 2, **o), (3, 3, 2)),
        (lambda **o: nn.SpectralDense(4, 3, **o), (4,)),
        (lambda **o: nn.SpectralConv(2, 2, **o), (3, 3, 2)),
        (lambda **o: nn.SkewDense(4, 3, **o), (4,)),
        (lambda **o: nn.SOCConv(2, 2, **o), (3, 3, 2)),
    ],
)
def test_what_the_error_of_second_derivatives_says_can_be_done(make, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def slope(layer):
        return jax.grad(lambda x: (layer(x) ** 3).sum())(x)

    def twice(layer):
        first = jax.grad(lambda layer: (layer(x) ** 3).sum())
        turned = jax.grad(lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(first(p))))
        return jax.tree.leaves(turned(layer))

    layer = make(rngs=nnx.Rngs(0))
    assert np.isfinite(slope(layer)).all()
    with pytest.raises(
        ValueError, match="first derivatives only.*gradient='bound', also to layers"
    ):
        twice(layer)
    found = twice(make(gradient="bound", rngs=nnx.Rngs(0)))
    assert all(np.isfinite(leaf).all() for leaf in found)
    with pytest.raises(ValueError, match="gradient is 'none'"):
        make(gradient="none", rngs=nnx.Rngs(0))


def test_linen_users_are_served_by_the_bridge():
    linen = nnx.bridge.to_linen(nn.SLLDense, 6, 4)
    x = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    variables = linen.init(jax.random.key(0), x)
    assert linen.apply(variables, x).shape == (2, 6)


def test_bad_options_are_refused_when_the_module_is_made():
    rngs = nnx.Rngs(0)
    for make, word in (
        (lambda: nn.RescaledDense(4, 4, num_iters=0, rngs=rngs), "num_iters"),
        (lambda: nn.RescaledConv(4, 4, num_iters=0, rngs=rngs), "num_iters"),
        (lambda: nn.AOLConv(4, 4, strides=0, rngs=rngs), "strides"),
        (lambda: nn.GroupSort(0), "group_size"),
        (
            lambda: nn.SLLDense(4, 3, rngs=nnx.Rngs(dropout=0)),
            r"rngs has the streams \['dropout'\]",
        ),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_group_sort_between_layers():
    stack = nn.Stack(
        lambda rngs: nn.AOLDense(8, 8, rngs=rngs), 2, between=nn.GroupSort(4), rngs=nnx.Rngs(0)
    )
    y = stack(jnp.arange(8.0)[None])[0].reshape(2, 4)
    assert (jnp.diff(y) >= 0).all()
