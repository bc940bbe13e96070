"""The step: one evaluation of `constrain`, gradients that do not depend on micro-batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lipjax import nn
from lipjax.training import init_state, make_step, make_update


def rescale(params):
    """An expensive parameterization in small: the AOL rescaling of each matrix."""
    sums = [jnp.sum(jnp.abs(w.T @ w), axis=1) for w in params]
    return [w / jnp.sqrt(s)[None, :] for w, s in zip(params, sums)]


def loss_fn(weights, batch, key):
    images, labels = batch
    hidden = jax.nn.relu(images @ weights[0])
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(hidden @ weights[1], labels)
    return jnp.mean(losses), {"norm": jnp.mean(hidden**2)}


@pytest.fixture
def params(key):
    first, second = jax.random.split(key)
    return [jax.random.normal(first, (6, 8)), jax.random.normal(second, (8, 4))]


@pytest.fixture
def batch(key):
    images = jax.random.normal(jax.random.fold_in(key, 7), (32, 6))
    return images, jnp.arange(32, dtype=jnp.int32) % 4


def run(params, batch, key, optimizer, num_steps=1, **options):
    step = make_step(loss_fn, optimizer, **options)
    state = init_state(key, params, optimizer)
    for _ in range(num_steps):
        state, metrics = step(state, batch)
    return state, metrics


def counted(constrain):
    """`constrain`, and a list that grows by one whenever it is executed (not when traced)."""
    executions = []

    def counting(params):
        jax.debug.callback(lambda: executions.append(1))
        return constrain(params)

    return counting, executions


def num_executions(step, constrain_log, state, batch):
    jax.block_until_ready(step(state, batch))
    jax.effects_barrier()
    return len(constrain_log)


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_constrain_is_executed_once_a_step(params, batch, key, num_microbatches):
    optimizer = optax.sgd(0.1)
    constrain, executions = counted(rescale)
    step = make_step(loss_fn, optimizer, constrain=constrain, num_microbatches=num_microbatches)
    state = init_state(key, params, optimizer)
    assert num_executions(step, executions, state, batch) == 1


def test_constraining_inside_the_loss_is_executed_for_every_microbatch(params, batch, key):
    """The control: the same count sees four evaluations where there are four."""
    optimizer = optax.sgd(0.1)
    constrain, executions = counted(rescale)
    step = make_step(lambda p, b, k: loss_fn(constrain(p), b, k), optimizer, num_microbatches=4)
    state = init_state(key, params, optimizer)
    assert num_executions(step, executions, state, batch) == 4


def test_the_gradient_is_that_of_the_composition(params, batch, key):
    state, metrics = run(params, batch, key, optax.sgd(1.0), constrain=rescale)
    whole = jax.value_and_grad(lambda p: loss_fn(rescale(p), batch, key)[0])
    loss, grads = whole(params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    moved = jax.tree.map(jnp.subtract, params, state.params)
    chex.assert_trees_all_close(moved, grads, rtol=1e-4, atol=1e-6)
    without = jax.grad(lambda p: loss_fn(p, batch, key)[0])(params)
    assert np.abs(moved[0] - without[0]).max() > 0.01  # the pull-back matters


@pytest.mark.parametrize("constrain", [None, rescale])
def test_microbatches_do_not_change_the_step(params, batch, key, constrain):
    whole, whole_metrics = run(params, batch, key, optax.sgd(1.0), constrain=constrain)
    parts, parts_metrics = run(
        params, batch, key, optax.sgd(1.0), constrain=constrain, num_microbatches=4
    )
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(parts_metrics, whole_metrics, rtol=1e-5)
    half, _ = run(params, (batch[0][:8], batch[1][:8]), key, optax.sgd(1.0), constrain=constrain)
    assert np.abs(half.params[0] - whole.params[0]).max() > 1e-3  # other examples are seen


def test_a_step_compiles_once(params, batch, key):
    optimizer = optax.sgd(0.1, momentum=0.9)
    traces = []

    def counting(weights, batch, key):
        traces.append(1)
        return loss_fn(weights, batch, key)

    step = make_step(counting, optimizer, constrain=rescale)
    state = init_state(key, params, optimizer)
    for _ in range(5):
        state, _ = step(state, batch)
    assert len(traces) == 1


def test_adam_learns(params, batch, key):
    with jax.numpy_dtype_promotion("standard"):
        state, last = run(params, batch, key, optax.adam(0.05), 100, constrain=rescale)
        _, first = run(params, batch, key, optax.adam(0.05), 1, constrain=rescale)
    assert state.step == 100 and last["loss"] < 0.9 * first["loss"]


def noisy(weights, batch, key):
    return jnp.sum(weights**2), {"draw": jax.random.uniform(key)}


def test_keys_depend_on_the_step_alone(key):
    optimizer = optax.sgd(0.1)
    update = make_update(noisy, optimizer)
    state = init_state(key, jnp.ones(2), optimizer)
    draws = []
    for _ in range(3):
        state, metrics = update(state, jnp.zeros(2))
        draws.append(float(metrics["draw"]))
    resumed = init_state(key, jnp.zeros(2), optimizer)._replace(step=jnp.int32(2))
    assert len(set(draws)) == 3
    assert float(update(resumed, jnp.zeros(2))[1]["draw"]) == draws[2]


def test_microbatches_draw_from_different_keys(key):
    optimizer = optax.sgd(0.1)
    states = [init_state(key, jnp.ones(2), optimizer) for _ in range(2)]
    one = make_update(noisy, optimizer)(states[0], jnp.zeros(2))[1]["draw"]
    two = make_update(noisy, optimizer, num_microbatches=2)(states[1], jnp.zeros(2))[1]["draw"]
    assert one != two  # two is the mean of one and of another draw


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_skipped(params, batch, key, bad):
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = make_step(loss_fn, optimizer)
    state, _ = step(init_state(key, params, optimizer), batch)
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    state, metrics = step(state, (batch[0].at[3, 2].set(bad), batch[1]))
    assert metrics["finite"] == 0 and state.step == 2
    chex.assert_trees_all_equal((state.params, state.opt_state), before)
    state, metrics = step(state, batch)
    assert metrics["finite"] == 1 and state.step == 3
    assert np.abs(state.params[0] - before[0][0]).max() > 0


def test_a_gradient_that_is_not_finite_is_noticed_behind_a_finite_loss(key):
    optimizer = optax.sgd(0.1)
    step = make_step(lambda w, b, k: (jnp.sqrt(jnp.sum(w)), {}), optimizer)
    state, metrics = step(init_state(key, jnp.zeros(2), optimizer), jnp.zeros(2))
    assert np.isfinite(metrics["loss"]) and metrics["finite"] == 0
    assert (state.params == 0).all()


class Layer(nnx.Module):
    def __init__(self, value):
        self.params = nnx.Param((value, jnp.zeros(value.shape[1])))


class Network(nnx.Module):
    def __init__(self, values):
        self.layers = nnx.List([Layer(value) for value in values])

    def __call__(self, x):
        for layer in self.layers:
            kernel, bias = layer.params.get_value()
            x = jax.nn.relu(x @ kernel + bias[None, :])
        return x


def test_a_flax_module_is_a_pytree(params, batch, key):
    def module_loss(network, batch, key):
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(network(batch[0]), batch[1])
        return jnp.mean(losses), {}

    optimizer = optax.sgd(0.1, momentum=0.9)
    network = Network(params)
    step = make_step(module_loss, optimizer, constrain=lambda n: jax.tree.map(jnp.tanh, n))
    state = init_state(key, network, optimizer)
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert isinstance(state.params, Network) and losses[-1] < losses[0]
    np.testing.assert_array_equal(network.layers[0].params.get_value()[0], params[0])


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_data_parallel_training_gives_the_same_numbers(params, batch, key, num_microbatches):
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    optimizer = optax.sgd(0.5, momentum=0.9)
    step = make_step(loss_fn, optimizer, constrain=rescale, num_microbatches=num_microbatches)
    single = init_state(key, params, optimizer)
    spread = jax.device_put(init_state(key, params, optimizer), replicated)
    shards = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    for _ in range(3):
        single, metrics = step(single, batch)
        spread, spread_metrics = step(spread, shards)
    assert spread.params[0].sharding.is_equivalent_to(replicated, 2)
    assert len(spread.params[0].devices()) == 8
    chex.assert_trees_all_close(
        jax.device_get(spread.params), jax.device_get(single.params), rtol=1e-4, atol=1e-6
    )
    chex.assert_trees_all_close(jax.device_get(spread_metrics), jax.device_get(metrics), rtol=1e-5)


def scalar(weights, batch, key):
    return jnp.sum(weights), {}


@pytest.mark.every
@pytest.mark.parametrize(
    "loss, options, message",
    [
        (lambda w, b, k: jnp.sum(w), {}, "loss_fn returns .*must return \\(loss, metrics\\)"),
        (lambda w, b, k: (w, {}), {}, "loss_fn returns loss with shape \\(2,\\)"),
        (lambda w, b, k: (jnp.sum(w), {"n": jnp.int32(1)}), {}, "n with shape .* dtype int32"),
        (lambda w, b, k: (jnp.sum(w), {"loss": jnp.sum(w)}), {}, "the metric 'loss'"),
        (scalar, {"num_microbatches": 3}, "num_microbatches is 3 and batch\\['x'\\] has shape"),
        (scalar, {"constrain": lambda p: (p, jnp.arange(2))}, "weights\\[1\\] has dtype int32"),
        (scalar, {"num_microbatches": 0}, "num_microbatches is 0"),
    ],
)
def test_errors_say_what_would_work(key, loss, options, message):
    optimizer = optax.sgd(0.1)
    with pytest.raises(ValueError, match=message):
        step = make_step(loss, optimizer, **options)
        step(init_state(key, jnp.ones(2), optimizer), {"x": jnp.zeros((8, 2))})


def test_weights_at_frequencies_are_complex():
    """A convolution that is made at each frequency trains as any other."""
    model = nn.CayleyConv(2, 2, input_size=4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 2))
    optimizer = optax.sgd(0.1)

    def loss_fn(model, x, key):
        return jnp.mean((model(x) - jnp.roll(x, 1, 1)) ** 2), {}

    direct = jax.jit(jax.grad(lambda m: loss_fn(m, x, None)[0]))(model)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, model, direct)
    for parts in (1, 2):
        step = make_step(loss_fn, optimizer, constrain=nn.constrain, num_microbatches=parts)
        state, metrics = step(init_state(jax.random.key(0), model, optimizer), x)
        model = nn.CayleyConv(2, 2, input_size=4, rngs=nnx.Rngs(0))  # the first was donated
        assert float(metrics["finite"]) == 1
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected)):
            np.testing.assert_allclose(a, b, atol=1e-6)
