"""Bounds of traced networks: against written-out operators, Jacobians and hand-made products."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax import lax

from lipjax.spectral import network_bound, padding_norm, penalty
from tests import oracles

RNG = np.random.default_rng(0)


def gaussian(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def jacobian_norm(fn, x):
    """Largest singular value of the Jacobian at `x`, in float64: a lower bound on the constant."""
    matrix = np.asarray(jax.jacrev(lambda z: fn(z).reshape(-1))(x))
    return oracles.norm(matrix.reshape(matrix.shape[0], -1))


def conv(x, kernel, strides=(1, 1), padding="SAME", **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers, precision="highest", **options
    )


X = jnp.asarray(RNG.random((1, 6, 6, 2)), jnp.float32)
K, K2, WIDE = gaussian(3, 3, 2, 2), gaussian(3, 3, 2, 4), gaussian(72, 3)


@jax.custom_vjp
def with_rules(x):
    return 2 * x


with_rules.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
BIG = jnp.asarray(True)
SCALE = jnp.asarray([0.1, 3.0]).reshape(1, 1, 1, 2)
LINEAR = {  # programs that are linear maps, with the largest factor the bound may have over the norm
    "matrix": (lambda x: x.reshape(1, -1) @ WIDE, 1.001),
    "matrix from the left": (lambda x: WIDE.T @ x.reshape(-1), 1.001),
    "contraction in the middle": (
        lambda x: jnp.einsum("nhwc,hk->nkwc", x, K2[0, :, 0].repeat(2, 0)),
        1.01,
    ),
    "convolution": (lambda x: conv(x, K), 1.1),
    "valid": (lambda x: conv(x, K, padding="VALID"), 1.3),
    "strided": (lambda x: conv(x, K2, (2, 2)), 1.4),
    "dilated": (lambda x: conv(x, K, rhs_dilation=(2, 2)), 1.3),
    "grouped": (lambda x: conv(x, K2[:, :, :1], feature_group_count=2), 1.1),
    "transposed": (lambda x: lax.conv_transpose(x, K, (2, 2), "SAME"), 2.1),
    "uneven padding": (lambda x: conv(x, K, padding=((0, 2), (3, 1))), 1.1),
    "channels scaled": (lambda x: conv(x, K) * SCALE, 1.1),
    "divided": (lambda x: conv(x, K) / SCALE[..., ::-1], 1.1),
    "two branches": (lambda x: x + conv(x, K), 1.3),
    "difference": (lambda x: conv(x, K) - x, 1.3),
    "mean": (lambda x: x.mean((1, 2)), 1.001),
    "sum pooling": (lambda x: nnx.avg_pool(x, (2, 2), (2, 2)), 1.001),
    "overlapping pooling": (lambda x: nnx.avg_pool(x, (3, 3), (1, 1), padding="SAME"), 1.6),
    "copies": (lambda x: jnp.broadcast_to(x.reshape(72, 1), (72, 5)), 1.001),
    "joined": (lambda x: jnp.concatenate([x, 2 * x], -1), 1.001),
    "stacked and tiled": (lambda x: jnp.tile(jnp.stack([x, 2 * x]), (1, 1, 2, 1, 1)), 1.001),
    "moved": (lambda x: jnp.flip(x.transpose(0, 2, 1, 3)[:, 1:], 2), 1.001),
    "padded": (lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0))), 1.001),
    "scalar times an array": (lambda x: x.sum() * jnp.arange(1.0, 5), 2.5),
    "scalar and an array": (lambda x: lax.add(x.sum(), jnp.ones(())) + jnp.zeros(7), 1.001),
    "rolled": (lambda x: jnp.roll(x, (1, 2), (1, 2)), 1.001),
    "picked": (lambda x: x[:, np.array([0, 2, 2, 5, 2])], 1.001),
    "taken and written": (
        lambda x: jnp.zeros((3, 6, 2)).at[1].set(jnp.take(x[0], 2, axis=0)),
        1.001,
    ),
    "written over": (lambda x: x.at[:, np.array([0, 2])].set(3 * x[:, :2]), 1.1),
    "filled": (lambda x: x[0, 0, 0].at[np.array([7, 1])].get(mode="fill", fill_value=0.0), 1.001),
    "unstacked": (lambda x: jnp.stack(list(x[0])[::-1]), 2.5),
    "overlapping slices": (lambda x: jnp.concatenate([x[:, :4], x[:, 1:], -x[:, 2:3]], 1), 1.001),
    "slices in a loop": (
        lambda x: lax.fori_loop(0, 2, lambda _, y: jnp.concatenate([y[:, 2:], y[:, 1:3]], 1), x),
        1.5,
    ),
    "a slice carried": (
        lambda x: lax.fori_loop(
            0,
            2,
            lambda _, c: (c[0][:, ::-1], c[0][:, :3], jnp.concatenate([c[1], c[0][:, 3:]], 1)),
            (x, x[:, :3], x),
        )[2],
        1.001,
    ),
    "a branch": (lambda x: lax.cond(BIG, lambda y: y @ K[0, 0], lambda y: 0.1 * y, x), 1.001),
    "one kernel twice": (lambda x: conv(x, K)[:, :3, :3] + conv(x, K, (2, 2)), 2.5),
    "custom rules": (lambda x: with_rules(x), 1.001),
    "checkpoint": (jax.checkpoint(lambda x: 3 * x), 1.001),
    "constant": (lambda x: jnp.ones((3,)), None),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_programs_are_bounded_tightly(name):
    fn, factor = LINEAR[name]
    if "pooling" in name:  # Flax divides by an integer
        with jax.numpy_dtype_promotion("standard"):
            value, truth = float(network_bound(fn, X).value), jacobian_norm(fn, X)
    else:
        value, truth = float(network_bound(fn, X, num_iters=8).value), jacobian_norm(fn, X)
    if factor is None:
        assert value == 0
        return
    assert truth <= value * (1 + 1e-6) and value <= truth * factor


ACTIVATIONS = (
    "relu relu6 silu mish softplus log_sigmoid soft_sign squareplus elu celu selu leaky_relu "
    "hard_tanh hard_silu hard_sigmoid sigmoid tanh"
).split()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_their_slope(name):
    fn = getattr(jax.nn, name)
    bound = float(network_bound(fn, jnp.ones(4)).value)
    points = jnp.linspace(-12, 12, 40001)
    slopes = np.abs(np.asarray(jax.vmap(jax.grad(fn))(points), np.float64))
    assert slopes.max() <= bound * (1 + 1e-6) and bound <= 1.02 * slopes.max()


def identity(scale):
    return scale * jnp.eye(4)


UNDERFLOW = {  # programs whose intermediate constants vanish in float32, and their true constants
    "joined": (lambda x: jnp.concatenate([1e-23 * x, 1e-23 * x]) * 1e23, 1.4142),
    "maximum": (
        lambda x: jnp.maximum(x @ identity(1e-23), -(x @ identity(1e-23))) @ identity(1e23), 1.0
    ),
    "huge divisor": (lambda x: jnp.tanh(x) * 1e38 / 2e38, 0.5),
    "huge divisor folded": (lambda x: (x @ identity(1e38)) / 3e38, 0.333),
    "tiny factors": (
        lambda x: 1e20 * (jnp.tanh(1e-20 * jnp.tanh(1e-20 * jnp.tanh(x))) * 1e20), 1.0
    ),
    "tiny factors folded": (lambda x: ((x @ identity(1e-30)) * 1e-10) * 1e38, 1e-2),
    "subnormal factor": (lambda x: jnp.abs(x * jnp.float32(1e-40)) * 1e38, 1e-2),
    "subnormal scalars": (lambda x: x * 1e-40 * 1e38 * 1e10, 1e8),
    "subnormal entry folded": (lambda x: (x @ subnormal_entry()) * RAISED, 5e-2),
    "subnormal entry folded twice": (
        lambda x: ((x @ subnormal_entry()) * RAISED) * RAISED, 5e35
    ),
    "subnormal entry and divisor": (
        lambda x: (x @ subnormal_entry()) / np.float32([[1, 1, 1, 1e-37]]), 5e-2
    ),
}  # fmt: skip
RAISED = np.float32([[1e-30, 1, 1, 1e37]])


def subnormal_entry():
    return np.diag(np.float32([1, 0, 0, 5e-39]))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", UNDERFLOW)
def test_underflow_never_makes_it_too_small(name, compiled):
    fn, truth = UNDERFLOW[name]

    def bound(x):
        return network_bound(fn, x).value

    found = float((jax.jit(bound) if compiled else bound)(jnp.ones((1, 4))))
    assert 0.999 * truth <= found <= 1e5 * truth


def test_a_normal_kernel_with_a_large_factor_stays_tight():
    kernel = np.float32(1e-37) * np.eye(4, dtype=np.float32)
    found = network_bound(
        lambda x: (x @ kernel) * np.full((1, 4), 1e37, np.float32), jnp.ones((1, 4))
    )
    assert 1 <= float(found.value) < 1.01


def test_arguments_of_activations_count():
    for fn in (lambda x: jax.nn.celu(x, -1.0), lambda x: jax.nn.squareplus(x, -1.0)):
        assert np.isposinf(network_bound(fn, jnp.ones(3)).value)
    traced = jax.jit(lambda a: network_bound(lambda x: jax.nn.leaky_relu(x, a), jnp.ones(3)))(
        jnp.float32(2.0)
    )
    np.testing.assert_allclose(traced.value, 2, rtol=1e-5)

    def soft_sign(x, y):
        return x / (jnp.abs(x) + y)

    with pytest.raises(ValueError, match="div"):
        network_bound(lambda x: jax.jit(soft_sign)(x, 3.0), jnp.ones(3))


def test_an_activation_of_the_same_name_is_not_taken_for_it():
    @jax.jit
    def leaky_relu(x):
        return jnp.where(x >= 0, x, 5 * x)

    with pytest.raises(ValueError, match="comparison"):
        network_bound(leaky_relu, jnp.ones(3))
    for slope, bound in ((0.2, 1.0), (3.0, 3.0)):
        found = network_bound(lambda x, s=slope: jax.nn.leaky_relu(x, s), jnp.ones(3))
        np.testing.assert_allclose(found.value, bound, rtol=1e-5)


@pytest.mark.every
@pytest.mark.parametrize(
    "fn,word",
    [
        (lambda x: x * x, "product of two"),
        (lambda x: x @ x, "product of two"),
        (lambda x: 1 / (1 + x), "division"),
        (lambda x: jnp.where(x > 0, x, 0), "comparison"),
        (lambda x: x[jnp.argmax(x, 0)], "comparison"),
        (lambda x: lax.dynamic_update_slice(x, x[:1], (jnp.argmax(x[0]), 0)), "comparison"),
        (lambda x: lax.top_k(x, 1)[1], "outcome of a comparison"),
        (lambda x: x.at[0].apply(lambda v: 100 * v), "function of its own"),
        (lambda x: x.at[0].apply(jnp.exp), "function of its own"),
        (lambda x: x.at[0].multiply(3.0), "scatter"),
        (jnp.exp, "exp"),
        (jnp.sqrt, "sqrt"),
        (lambda x: x.astype(jnp.bfloat16), "bfloat16"),
        (lambda x: lax.while_loop(lambda y: y.sum() > 1, lambda y: y / 2, x), "while"),
        (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), "comparison"),
        (lambda x: (x, x), "returns 2 arrays"),
        (lambda x: jnp.argmax(x, -1).astype(jnp.float32), "comparison"),
        (lambda x: jnp.argmax(x, -1), "outcome of a comparison"),
    ],
)
def test_what_has_no_bound_is_refused_by_name(fn, word):
    with pytest.raises(ValueError, match=word):
        network_bound(fn, jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="x has 2 arrays"):
        network_bound(fn, (jnp.ones((2, 2)), jnp.ones((2, 2))))


def test_the_largest_entries_move_no_more_than_the_input():
    np.testing.assert_allclose(network_bound(lambda x: lax.top_k(2 * x, 2)[0], X).value, 2, 1e-5)


def test_indices_of_a_traced_program_are_counted():
    picks = jnp.array([0, 1, 1, 1])
    bounds = [jax.jit(lambda i: network_bound(lambda x: x[i], jnp.ones(3)).value)(picks)]
    bounds.append(jax.jit(lambda: network_bound(lambda x: x[picks], jnp.ones(3)).value)())
    assert all(3**0.5 <= bound <= 3**0.5 * (1 + 1e-5) for bound in bounds)


@pytest.mark.parametrize(
    "fn,norm",
    [
        (lambda x: x[np.array([9, 9, 9, 3])], 2.0),
        (lambda x: x[::-1][np.array([-9, -9, 0, 0])], 2.0),
        (lambda x: x.at[np.array([7, 7])].get(mode="promise_in_bounds"), 2**0.5),
    ],
)
def test_broken_promises_about_indices_are_counted_as_they_are_clamped(fn, norm):
    """Reverse mode leaves out what the program clamps; forward mode and differences do not."""
    truth = oracles.norm(np.asarray(jax.jacfwd(fn)(jnp.ones(4))))
    assert abs(truth - norm) < 1e-6
    assert norm <= float(network_bound(fn, jnp.ones(4)).value) <= norm * 1.001


def test_traced_indices_that_are_out_of_range_are_counted_where_they_are_clamped():
    def bound(i):
        return network_bound(lambda x: x[i], jnp.ones(4)).value

    assert 2 <= float(jax.jit(bound)(jnp.array([9, 9, 9, 3]))) <= 2.0001


def test_a_branch_chosen_under_a_trace_counts_as_the_largest():
    def bound(choice):
        options = (lambda x: 2 * x, lambda x: 5 * x, lambda x: jnp.zeros_like(x))
        return network_bound(lambda x: lax.switch(choice, options, x), jnp.ones(3)).value

    assert all(5 <= bound(c) <= 5.0001 for c in (0, 1, 2)) and 5 <= jax.jit(bound)(0) <= 5.0001


def test_loops_of_known_length_are_written_out():
    weights = jnp.stack([jnp.diag(jnp.array([a, 1.0])) for a in (2.0, 3.0, 0.5)])

    def forward(x, w):
        return jax.nn.relu(x @ w), (x @ w).sum(), w.sum()

    def chain(x, reverse=False):
        step = lambda x, w: (forward(x, w)[0], forward(x, w)[1:])  # noqa: E731
        return lax.scan(step, x, weights, reverse=reverse)

    for reverse in (False, True):
        last = network_bound(lambda x: chain(x, reverse)[0], jnp.ones(2))  # noqa: B023
        np.testing.assert_allclose(last.value, 6.0, rtol=1e-3)
    sums = network_bound(lambda x: chain(x)[1][0], jnp.ones(2)).value
    np.testing.assert_allclose(sums, np.sqrt(2) * np.linalg.norm([2.0, 6.0, 6.0]), rtol=1e-3)
    halved = network_bound(lambda x: lax.fori_loop(0, 3, lambda i, y: y / 2 + i, x), jnp.ones(2))
    np.testing.assert_allclose(halved.value, 0.125, rtol=1e-5)


class Block(nnx.Module):
    def __init__(self, c_in, c_out, stride, rngs):
        options = dict(padding=1, use_bias=False, rngs=rngs)
        self.first = nnx.Conv(c_in, c_out, (3, 3), strides=stride, **options)
        self.second = nnx.Conv(c_out, c_out, (3, 3), **options)
        self.norms = nnx.List([nnx.BatchNorm(c_out, rngs=rngs) for _ in range(3)])
        same = stride == 1 and c_in == c_out
        options = dict(strides=stride, use_bias=False, rngs=rngs)
        self.short = None if same else nnx.Conv(c_in, c_out, (1, 1), **options)

    def __call__(self, x):
        y = jax.nn.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        return jax.nn.relu(y + (x if self.short is None else self.norms[2](self.short(x))))


class ResNet18(nnx.Module):
    """The usual ResNet-18 for small images, narrow; with one block a stage, ResNet-10."""

    def __init__(self, width, rngs, blocks=2):
        self.stem = nnx.Conv(3, width, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nnx.List(
            Block(
                widths[i] if j == 0 else widths[i + 1], widths[i + 1], 1 + (i > 0 and j == 0), rngs
            )
            for i in range(4)
            for j in range(blocks)
        )
        self.head = nnx.Linear(8 * width, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def shake(tree):
    """Batch statistics and scales that are not the trivial ones, variances positive."""
    return jax.tree.map(
        lambda a: jnp.abs(a) + jnp.asarray(RNG.random(a.shape), a.dtype) if a.ndim == 1 else a, tree
    )


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 2])
def test_resnets_of_nnx_as_they_stand(blocks):
    model = ResNet18(4, nnx.Rngs(0), blocks)
    model.eval()
    nnx.update(model, shake(nnx.state(model)))
    x = jnp.asarray(RNG.random((1, 16, 16, 3)), jnp.float32)
    found = network_bound(lambda z: model(z), x)
    assert [layer.kind for layer in found.layers].count("conv") == 1 + 8 * blocks + 3
    assert found.bound.kind == "upper" and "the network" in found.table()
    assert jacobian_norm(model, x) <= float(found.value)
    shares = {layer.name: float(layer.share) for layer in found.layers}
    assert max(shares.values()) <= 1 + 1e-5 and min(shares.values()) > 0


class LinenBlock(linen.Module):
    width: int
    stride: int = 1

    @linen.compact
    def __call__(self, x):
        norm = lambda: linen.BatchNorm(use_running_average=True)  # noqa: E731
        strides = (self.stride, self.stride)
        y = linen.Conv(self.width, (3, 3), strides, use_bias=False)(x)
        y = linen.Conv(self.width, (3, 3), use_bias=False)(linen.relu(norm()(y)))
        y = norm()(y)
        if x.shape != y.shape:
            x = norm()(linen.Conv(self.width, (1, 1), strides, use_bias=False)(x))
        return linen.relu(x + y)


class LinenResNet18(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(self.width, (3, 3), use_bias=False)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
        for i in range(4):
            for j in range(2):
                x = LinenBlock(self.width * 2**i, 1 + (i > 0 and j == 0))(x)
        return linen.Dense(10)(x.mean((1, 2)))


@pytest.mark.slow
def test_resnet18_of_linen_as_it_stands():
    model = LinenResNet18(4)
    x = jnp.asarray(RNG.random((1, 16, 16, 3)), jnp.float32)
    variables = shake(model.init(jax.random.key(0), x))
    found = network_bound(lambda z: model.apply(variables, z), x)
    assert jacobian_norm(lambda z: model.apply(variables, z), x) <= float(found.value)
    assert any("LinenBlock_7/Conv_0" in layer.name for layer in found.layers)


def test_batch_normalization_is_folded_and_smaller_than_the_product():
    kernel = jnp.asarray([[3.0, 0.1], [0.0, 0.1]]).reshape(1, 1, 2, 2)
    folded = network_bound(lambda x: conv(x, kernel) * SCALE + 1, X)
    apart = network_bound(lambda x: jax.nn.relu(conv(x, kernel)) * SCALE, X)
    assert float(folded.value) < 0.1 * float(apart.value)
    assert [layer.kind for layer in apart.layers] == ["conv", "scale"]


def test_negative_control_the_reshaped_kernel_is_no_bound():
    """What several libraries take for the norm of a convolution falls below the truth."""
    kernel = jnp.ones((3, 3, 1, 1))
    fn = lambda x: conv(x, kernel)  # noqa: E731
    x = jnp.ones((1, 8, 8, 1))
    truth = jacobian_norm(fn, x)
    assert float(jnp.linalg.norm(kernel.reshape(-1, 1), ord=2)) < 0.5 * truth
    assert truth <= float(network_bound(fn, x).value)


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "edge", "wrap", "constant"])
def test_norms_of_paddings(mode):
    for size in range(2, 8):
        for pad in range(size):
            truth = oracles.norm(np.pad(np.eye(size), ((pad, pad), (0, 0)), mode=mode))
            bound = padding_norm(mode, pad, size)
            assert truth * (1 - 1e-12) <= bound <= truth * (1 + 1e-9)
    assert padding_norm(mode, (0, 0), 5) == 1
    with pytest.raises(ValueError, match="mode is 'mirror'"):
        padding_norm("mirror", 1, 5)


def test_reflected_convolution_is_within_the_product():
    for kernel in gaussian(4, 3, 3, 1, 2):

        def fn(x, k=kernel):
            padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
            return conv(padded, k, padding="VALID")

        truth = jacobian_norm(fn, jnp.ones((1, 5, 5, 1)))
        inner = network_bound(
            lambda x, k=kernel: conv(x, k, padding="VALID"), jnp.ones((1, 7, 7, 1))
        )
        assert truth <= float(inner.value) * padding_norm("reflect", (1, 1), 5)


def test_penalty_lowers_the_bound_under_training():
    params = {"a": jnp.asarray(gaussian(6, 6)), "b": jnp.asarray(gaussian(6, 3))}
    x = jnp.ones((1, 6))

    def bounds(params):
        return network_bound(lambda x: jax.nn.relu(x @ params["a"]) @ params["b"], x)

    optimizer = optax.sgd(0.1)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        value, slope = jax.value_and_grad(lambda p: penalty(bounds(p), threshold=1.0))(params)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, value

    first = float(bounds(params).value)
    for _ in range(200):
        params, state, value = step(params, state)
    assert first > 4 and float(bounds(params).value) < 1.3 and float(value) < 0.3


def test_a_loop_without_a_pass_changes_nothing():
    none = jnp.zeros((0, 2, 2))

    def step(x, w):
        return x @ w, x

    ends = network_bound(lambda x: lax.scan(step, 3 * x, none)[0], jnp.ones(2))
    np.testing.assert_allclose(ends.value, 3.0, rtol=1e-5)
    assert network_bound(lambda x: lax.scan(step, x, none)[1], jnp.ones(2)).value == 0


@pytest.mark.parametrize(
    "fn,size,truth",
    [
        (lambda x: jax.nn.leaky_relu(x, jnp.ones((4, 3))), (3,), 2.0),
        (lambda x: jax.nn.elu(x, jnp.ones((4, 1))), (3,), 2.0),
        (lambda x: jax.nn.leaky_relu(x, jnp.ones(100)), (), 10.0),
        (lambda x: jax.nn.leaky_relu(x, jnp.ones(3)), (3,), 1.0),
    ],
)
def test_an_argument_of_an_activation_that_copies_its_input(fn, size, truth):
    with jax.numpy_rank_promotion("allow"):
        found = float(network_bound(fn, jnp.ones(size)).value)
    assert truth <= found <= truth * (1 + 1e-5)
