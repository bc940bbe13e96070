"""A small training run in a process of its own, for the tests that kill it.

`python digits_run.py RUN_DIR SECONDS` trains in RUN_DIR, sleeping SECONDS before every step, and
writes every array of the final state to `final.npz`.
"""

import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.loops import supervised
from lipjax.data import augment, load
from lipjax.training import cross_entropy, triangular

NUM_STEPS = 300


def constrain(params):
    """Weights with norm at most 1 (up to rounding), by the AOL rescaling."""
    sums = [jnp.sum(jnp.abs(w.T @ w), axis=1) for w in params]
    return [w / jnp.sqrt(s)[None, :] for w, s in zip(params, sums)]


def loss_fn(weights, batch, key):
    x = batch.images.reshape(len(batch.images), -1)
    x = x + 0.01 * jax.random.normal(key, x.shape)
    logits = jax.nn.relu(x @ weights[0]) @ weights[1]
    loss = jax.vmap(functools.partial(cross_entropy, offset=0.3, temperature=0.1))
    right = jnp.argmax(logits, axis=1) == batch.labels
    return jnp.mean(loss(logits, batch.labels)), {"accuracy": jnp.mean(right.astype(jnp.float32))}


def train(run_dir, *, split=None, num_steps=NUM_STEPS, **options):
    """The run, with a few options of the loop left to the caller."""
    first, second = jax.random.split(jax.random.key(5))
    params = [jax.random.normal(first, (64, 32)), jax.random.normal(second, (32, 10))]
    data = load("digits")
    defaults = {"seed": 3, "checkpoint_every": 50, "log_every": 20, "chunk": 7}
    with jax.numpy_dtype_promotion("standard"):
        return supervised.train(
            params,
            loss_fn,
            split or data.train,
            max_value=data.max_value,
            optimizer=optax.adam(triangular(0.01, num_steps)),
            num_steps=num_steps,
            batch_size=64,
            run_dir=run_dir,
            constrain=constrain,
            augment=functools.partial(augment.gaussian_noise, sigma=0.05),
            **(defaults | options),
        )


def slowed(function, seconds):
    def slow(*args, **kwargs):
        time.sleep(seconds)
        return function(*args, **kwargs)

    return slow


if __name__ == "__main__":
    run_dir = Path(sys.argv[1])
    supervised.batch_indices = slowed(supervised.batch_indices, float(sys.argv[2]))
    state = train(run_dir)
    state = state._replace(key=jax.random.key_data(state.key))
    np.savez(run_dir / "final.npz", *jax.tree.leaves(state))
