"""How much of a training step the constraint of the weights takes.

command: python -m experiments.benchmarks.constrain_share [--size S] [--batch-size 256] [--out FILE]
         (operations per device: --operations, XLA_FLAGS=--xla_force_host_platform_device_count=8)

Times, in one process and in turn: the whole step (constraint, forward, backward, pull-back of the
gradient through the constraint), the same without the constraint (weights as parameters), and
the constraint with its pull-back alone; and, for comparison, the dense constraint as one would
write it first, row sums of |W^T W| under plain automatic differentiation, layer by layer. Memory is
what the compiled step needs beside its arguments and results, with the dense constraint as it is and
as one would write it first; operations per device are those of the constraint with its pull-back,
alone and shared by 8 devices (counted by the compiler, not timed). Writes the medians as JSON.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
from flax import nnx

from experiments import config as configs
from experiments import setup
from experiments._memory import keep_freed_memory
from experiments.loops.supervised import Batch
from lipjax import nn, selfcheck
from lipjax.models import SIZES, LipschitzConvNet


def main(arguments=None) -> dict:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=sorted(SIZES))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--operations", action="store_true", help="count operations, time nothing")
    parser.add_argument("--out")
    args = parser.parse_args(arguments)
    model = LipschitzConvNet(args.size, rngs=nnx.Rngs(0))
    if args.operations:
        counted = {"size": args.size, "operations_per_device": _operations(model.dense)}
        return _write(counted | {"platform": selfcheck.describe_platform()}, args.out)
    loss_fn = setup.loss(configs.load("cifar10_s"))
    key = jax.random.key(0)
    images = jax.random.uniform(key, (args.batch_size, *model.config.image_shape))
    labels = jax.random.randint(key, (args.batch_size,), 0, 10, jnp.int32)
    batch = Batch(images, labels)

    def whole(model, batch):
        weights, pull = jax.vjp(nn.constrain, model)
        gradient = jax.grad(lambda w: loss_fn(w, batch, key)[0])(weights)
        return pull(gradient)[0]

    def unconstrained(weights, batch):
        return jax.grad(lambda w: loss_fn(w, batch, key)[0])(weights)

    def constraint(model, batch):
        del batch
        weights, pull = jax.vjp(nn.constrain, model)
        return pull(weights)[0]

    def dense_only(model, batch):
        del batch
        weights, pull = jax.vjp(nn.constrain, model.dense)
        return pull(weights)[0]

    def dense_plain(model, batch):
        """One layer after the other, two products for the gradient where one is enough."""
        del batch
        kernels = model.dense.free.get_value().kernel
        sums = [jnp.abs(jnp.matmul(w.T, w, precision="highest")).sum(1) for w in kernels]
        return sum(jnp.sum(2 / t) for t in sums)

    def whole_plain(model, batch):
        """A step whose Gram matrices automatic differentiation keeps."""

        def constrained(model):
            weights = nn.constrain(model)
            params, made = model.dense.free.get_value(), weights.dense.weights()
            sums = jax.vmap(_plain_sums)(params.kernel, jnp.exp(params.log_q))
            weights.dense._set(made._replace(step=2 / sums))
            return weights

        weights, pull = jax.vjp(constrained, model)
        gradient = jax.grad(lambda w: loss_fn(w, batch, key)[0])(weights)
        return pull(gradient)[0]

    weights = jax.jit(nn.constrain)(model)
    programs = {
        "whole_step": (jax.jit(whole), model),
        "without_constraint": (jax.jit(unconstrained), weights),
        "constraint_alone": (jax.jit(constraint), model),
        "dense_constraint": (jax.jit(dense_only), model),
        "dense_constraint_plain": (jax.jit(jax.grad(dense_plain)), model),
    }
    seconds = {name: [] for name in programs}
    for program, argument in programs.values():
        jax.block_until_ready(program(argument, batch))
    for _ in range(args.repeats):
        for name, (program, argument) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(argument, batch))
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    memory = {
        name: jax.jit(fn).lower(model, batch).compile().memory_analysis().temp_size_in_bytes
        for name, fn in (("plain", whole_plain), ("as_it_is", whole))
    }
    report = {
        "size": args.size,
        "batch_size": args.batch_size,
        "median_seconds": medians,
        "share_of_step": 1 - medians["without_constraint"] / medians["whole_step"],
        "images_per_second": args.batch_size / medians["whole_step"],
        "memory_of_a_step_bytes": memory,
        "operations_per_device": _operations(model.dense),
        "platform": selfcheck.describe_platform(),
    }
    return _write(report, args.out)


def _write(report, out) -> dict:
    print(json.dumps(report, indent=1))
    if out:
        with open(out, "w") as file:
            json.dump(report, file, indent=1)
    return report


def _plain_sums(kernel, q):
    gram = jnp.abs(jnp.matmul(kernel.T, kernel, precision="highest"))
    return jnp.sum(gram * q, axis=1) / q


def _operations(stack) -> dict:
    """Floating-point operations of the dense constraint and its pull-back, one device and 8."""
    if len(jax.devices()) < 8:
        return {}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def count(**options):
        def both(stack):
            weights, pull = jax.vjp(lambda m: nn.constrain(m, **options), stack)
            return pull(weights)[0]

        program = jax.jit(both, in_shardings=everywhere).lower(stack).compile()
        return program.cost_analysis()["flops"]

    return {"alone": count(), "shared_by_8": count(mesh=mesh, axis="data")}


if __name__ == "__main__":
    keep_freed_memory()
    main()
