"""Weights are made once: in a stack, in a step with micro-batches, and for evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn
from lipjax.layers import activations
from lipjax.spectral import gram_iteration
from tests.nn import modules


def stack(depth=3, **options):
    return nn.Stack(lambda rngs: nn.SLLDense(6, 4, rngs=rngs), depth, rngs=nnx.Rngs(0), **options)


def test_stack_is_its_layers_in_a_row():
    deep = stack()
    layers = [nn.SLLDense(6, 4, rngs=rngs) for rngs in [nnx.Rngs(0)] for _ in range(3)]
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    expected = x
    for layer in layers:
        expected = layer(expected)
    np.testing.assert_allclose(deep(x), expected, atol=1e-6)
    np.testing.assert_allclose(stack(unroll=False)(x), expected, atol=1e-6)


def test_between_acts_between_layers():
    deep = stack(between=activations.max_min)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    assert not np.allclose(deep(x), stack()(x))


def test_bound_of_a_stack_is_the_product():
    weights = nn.constrain(stack())
    value = weights.explicit.get_value()
    wrong = value._replace(step=value.step.at[0].multiply(1.5).at[2].multiply(1.5))
    weights._set(wrong)
    layer = nn.SLLDense(6, 4, rngs=nnx.Rngs(0))
    one = jax.tree.map(lambda leaf: leaf[0], wrong)
    assert weights.bound().value > layer.bound_weights(one).value > 1.01


def test_constrain_is_differentiable_and_equals_the_direct_gradient():
    deep = stack()
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)

    def loss(module):
        return (module(x) ** 2).sum()

    weights, pull = jax.vjp(nn.constrain, deep)
    (indirect,) = pull(jax.grad(loss)(weights))
    for a, b in zip(jax.tree.leaves(indirect), jax.tree.leaves(jax.grad(loss)(deep))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gram_matrices_are_formed_once_per_step_with_micro_batches():
    """The products of the step: those of the constraint appear once, outside the loop."""
    import optax

    from lipjax.training import init_state, make_step

    deep = nn.Stack(lambda rngs: nn.SLLDense(6, 4, rngs=rngs), 2, unroll=True, rngs=nnx.Rngs(0))

    def loss_fn(module, batch, key):
        return (module(batch) ** 2).mean(), {}

    def gram_products(parts):
        step = make_step(loss_fn, optax.sgd(0.1), constrain=nn.constrain, num_microbatches=parts)
        state = init_state(jax.random.key(0), deep, optax.sgd(0.1))
        text = step.lower(state, jnp.ones((8, 6))).as_text()
        # Only the constraint asks for the highest precision.
        return sum("HIGHEST" in line for line in text.splitlines() if "dot_general" in line)

    assert gram_products(1) == gram_products(4) > 0


def test_functions_of_unknown_slope_between_layers_are_refused():
    with pytest.raises(ValueError, match="nothing is known"):
        stack(between=lambda x: 5 * x)


@pytest.mark.parametrize(
    "options",
    [
        lambda i: dict(padding=("zero", "circular")[i]),
        lambda i: dict(strides=1 + i),
        lambda i: dict(kernel_size=3 + 2 * i),
        lambda i: dict(side=("input", "output")[i]),
    ],
)
def test_layers_that_differ_are_no_stack(options):
    """Of the layers only the first is kept: the others would silently become like it."""
    numbers = iter(range(2))
    with pytest.raises(ValueError, match="a first layer and a layer 1 that differ"):
        nn.Stack(
            lambda rngs: nn.AOLConv(2, 2, **options(next(numbers)), rngs=rngs), 2, rngs=nnx.Rngs(0)
        )


def test_functions_that_are_made_anew_for_every_layer_are_alike():
    made = (
        lambda rngs: nn.SpectralDense(
            4, 4, norm=lambda k: gram_iteration(k, num_iters=3), rngs=rngs
        ),
        lambda rngs: nn.SpectralDense(
            4, 4, norm=functools.partial(gram_iteration, num_iters=3), rngs=rngs
        ),
        lambda rngs: nn.SLLDense(
            4,
            4,
            activation=activations.Activation("h", lambda x: 0.5 * x, (0.0, 0.5), 0.5),
            rngs=rngs,
        ),
    )
    for make in made:
        assert nn.Stack(make, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape == (2, 4)
    counts = iter(range(1, 4))

    def other(rngs):
        count = next(counts)
        return nn.SpectralDense(4, 4, norm=lambda k: gram_iteration(k, num_iters=count), rngs=rngs)

    with pytest.raises(ValueError, match="a first layer and a layer 1 that differ"):
        nn.Stack(other, 3, rngs=nnx.Rngs(0))


def test_parameters_belong_to_one_module():
    layer = nn.AOLDense(4, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="same layer .AOLDense. twice"):
        nn.Stack(lambda rngs: layer, 2, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((1, 4))).shape == (1, 4)  # what was refused took nothing
    nn.Residual(layer)
    for use in (lambda: layer(jnp.ones((1, 4))), layer.bound):
        with pytest.raises(ValueError, match="this AOLDense gave its parameters"):
            use()
    for use in (nn.freeze, nn.constrain):
        with pytest.raises(ValueError, match="module is AOLDense, which gave its parameters"):
            use(layer)
    with pytest.raises(ValueError, match="no free parameters, which it gave away"):
        nn.ConvexMix(layer)
    frozen = nn.freeze(nn.AOLDense(4, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="no free parameters, but weights"):
        nn.Stack(lambda rngs: frozen, 1, rngs=nnx.Rngs(0))


def test_bad_depth_is_named():
    with pytest.raises(ValueError, match="make is a SLLDense; it must be a function"):
        nn.Stack(nn.SLLDense(4, 3, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="depth is 0"):
        stack(0)


def test_what_holds_weights_already_is_not_constrained_or_frozen_again():
    """Training it would move the weights themselves, out of the constraint."""
    layer = nn.SLLDense(6, 4, rngs=nnx.Rngs(0))
    for done in (nn.freeze(layer), nn.constrain(layer)):
        for again in (nn.freeze, nn.constrain):
            with pytest.raises(ValueError, match="module holds weights already.*SLLDense"):
                again(done)


def test_rounded_weights_have_a_bound_of_their_own():
    """The certificate of a network whose weights were cast is that of the cast weights."""
    from lipjax import margin
    from tests import oracles

    stack = nn.Stack(lambda rngs: nn.CayleyDense(32, 32, rngs=rngs), 4, rngs=nnx.Rngs(0))
    frozen = nn.freeze(stack)
    cast = nn.rounded(frozen, jnp.bfloat16)
    kernels = np.asarray(cast.weights().kernel)
    assert (kernels == kernels.astype(jnp.bfloat16).astype(np.float32)).all()
    truth = np.prod([oracles.norm(kernel) for kernel in kernels])
    before, after = float(frozen.bound().value), float(cast.bound().value)
    assert before < 1 + 1e-5 < 1.002 < truth <= after <= truth * (1 + 1e-6)  # the negative control
    logits = jnp.array([1.0, 0.0])
    radii = [margin.radius(logits, 0, lipschitz=m.bound()) for m in (frozen, cast)]
    assert radii[1] < radii[0]


def test_rounding_what_is_free_or_to_integers_is_refused():
    layer = nn.CayleyConv(2, 2, input_size=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="free parameters.*CayleyConv"):
        nn.rounded(layer, jnp.bfloat16)
    for dtype in (jnp.int8, "bf16"):
        with pytest.raises(ValueError, match="dtype is"):
            nn.rounded(nn.freeze(layer), dtype)
    dense = nn.freeze(nn.AOLDense(4, 4, rngs=nnx.Rngs(0)))
    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), dense)
    for dtype in (jnp.float32, jnp.bfloat16):
        with pytest.raises(ValueError, match="weights have dtype bfloat16.*lipjax.nn.rounded"):
            cast(jnp.ones((1, 4), dtype))
    assert float(nn.rounded(nn.freeze(layer), jnp.float16).bound().value) > 1 + 1e-5
    with pytest.raises(ValueError, match="bfloat16"):
        nn.freeze(layer)(jnp.ones((1, 4, 4, 2), jnp.bfloat16))


@pytest.mark.few(1)
@pytest.mark.parametrize("depth", [3, 8])
def test_devices_share_the_constraint(depth):
    """Every device makes an eighth of the weights, and all have them, with the same gradients."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    wide = nn.Stack(lambda rngs: nn.SLLDense(24, 32, rngs=rngs), depth, rngs=nnx.Rngs(0))
    replicated = jax.device_put(wide, everywhere)
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)

    def steps(module, **options):
        return nn.constrain(module, **options).weights().step

    def loss(module, **options):
        return jnp.mean(nn.constrain(module, **options)(x) ** 2)

    options = dict(mesh=mesh, axis="data")
    alone = jax.jit(steps).lower(replicated).compile()
    shared = jax.jit(lambda m: steps(m, **options)).lower(replicated).compile()
    np.testing.assert_allclose(shared(replicated), alone(replicated), rtol=1e-6)
    flops = [program.cost_analysis()["flops"] for program in (alone, shared)]
    assert flops[1] < flops[0] * (-(-depth // 8) / depth + 0.1)
    got = jax.jit(jax.grad(lambda m: loss(m, **options)))(replicated)
    want = jax.jit(jax.grad(loss))(wide)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name,shape",
    [
        pytest.param(name, (8,), marks=[] if i % 3 == 0 else [pytest.mark.slow])
        for i, name in enumerate(modules.LAYERS)
    ]
    + [(name, (2, 4)) for name in ("SLLDense", "AOLDense", "SpectralConv")],
)
def test_devices_share_the_constraint_of_every_layer_with_its_gradient(name, shape):
    """Custom derivatives inside, also on a mesh with a second axis that holds copies."""
    axes = ("data", "model")[: len(shape)]
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    mesh = jax.make_mesh(shape, axes, axis_types=auto)
    deep = nn.Stack(modules.LAYERS[name], 3, rngs=nnx.Rngs(0))
    replicated = jax.device_put(
        deep, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    x = np.random.default_rng(0).normal(size=(2, *modules.sample(name))).astype(np.float32)

    def loss(module, **options):
        return jnp.mean(nn.constrain(module, **options)(x) ** 2)

    got = jax.jit(jax.value_and_grad(lambda m: loss(m, mesh=mesh, axis="data")))(replicated)
    want = jax.jit(jax.value_and_grad(loss))(deep)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("options", [dict(axis="data"), dict(mesh=True), dict(mesh=True, axis="x")])
def test_axes_that_the_mesh_lacks_are_named(options):
    if "mesh" in options:
        options = options | {"mesh": jax.make_mesh((8,), ("data",))}
    with pytest.raises(ValueError, match="axis is .*; it must be one of the mesh's axes"):
        nn.constrain(stack(), **options)


HANGS = """
import jax, jax.numpy as jnp
from flax import nnx
from lipjax import nn
kinds = [nn.CholeskyDense, nn.CayleyDense, nn.QRDense, nn.CholeskyDense, nn.CayleyDense]
kinds += [nn.HouseholderDense, nn.HouseholderDense]
stacks = [nn.Stack(lambda rngs: kind(128, 128, rngs=rngs), 6, rngs=nnx.Rngs(0)) for kind in kinds]
x = jnp.ones((4, 128))
step = jax.jit(jax.grad(lambda stacks: sum(jnp.sum(s(x) ** 2) for s in stacks)))
for _ in range(10):
    jax.block_until_ready(step(stacks))
print("done")
"""


@pytest.mark.slow
def test_factorizations_of_several_stacks_come_to_an_end(tmp_path):
    """Batched ones, a few at a time, make JAX 0.10 wait for ever on two cores."""
    import subprocess
    import sys

    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.stdout.endswith("done\n"), done.stderr[-2000:]


def test_a_stack_of_one_layer_is_no_loop():
    """A loop of one turn made convolutions' gradients up to thirty times slower on CPUs."""
    one = nn.Stack(lambda rngs: nn.AOLConv(3, 3, rngs=rngs), 1, between="abs", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    layer = nn.AOLConv(3, 3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(one(x), jnp.abs(layer(x)), atol=1e-6)
    program = jax.make_jaxpr(lambda m, x: m(x))(nn.constrain(one), x)
    assert "scan" not in str(program)
    deep = nn.Stack(lambda rngs: nn.AOLConv(3, 3, rngs=rngs), 2, rngs=nnx.Rngs(0))
    assert "scan" in str(jax.make_jaxpr(lambda m, x: m(x))(nn.constrain(deep), x))


@pytest.mark.parametrize("nothing", [None, abs, {"a": 1.0}], ids=repr)
def test_what_holds_no_module_is_refused(nothing):
    for make in (nn.freeze, nn.constrain, lambda module: nn.rounded(module, jnp.bfloat16)):
        with pytest.raises(
            ValueError, match="module is .*; it must be a flax.nnx.Module, or hold some"
        ):
            make(nothing)


def test_containers_of_layers_are_frozen():
    frozen = nn.freeze([nn.SLLDense(4, 3, rngs=nnx.Rngs(0))])
    assert frozen[0].bound().value <= 1 + 1e-6 and frozen[0].free is None


def test_learnt_activations_between_layers_are_sent_into_them():
    make = lambda rngs: nn.SLLDense(4, 3, rngs=rngs)  # noqa: E731
    with pytest.raises(
        ValueError, match="between is a Householder, which has parameters.*nn.Chain"
    ):
        nn.Stack(make, 2, between=nn.Householder(4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
