# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Spectral norms of a trained network
#
# The Lipschitz constant of a network is at most the product of the norms of its layers. Here a small
# convolutional network is trained on real digits, and the norm of each layer is found in every way
# that is in use: exactly, from below, from above, and by reshaping the kernel, which is neither.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from lipjax import data, spectral

# %%
digits = data.load("digits")
x, y = data.to_unit(digits.train.images, 16), jnp.asarray(digits.train.labels)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in ((1, 16), (16, 16), (16, 24))])
        self.head = nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.head(x.mean((1, 2)))


model = Net(nnx.Rngs(0))
optimizer = optax.adam(0.005)
state = optimizer.init(model)


@jax.jit
def step(model, state, rows):
    def loss(model):
        logits = model(x[rows])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

    updates, state = optimizer.update(jax.grad(loss)(model), state)
    return optax.apply_updates(model, updates), state


rng = np.random.default_rng(0)
for _ in range(300):
    model, state = step(model, state, jnp.asarray(rng.integers(0, len(x), 128)))
test = data.to_unit(digits.test.images, 16)
accuracy = float((model(test).argmax(-1) == digits.test.labels).mean())
print(f"test accuracy {accuracy:.1%}")
assert accuracy > 0.85

# %% [markdown]
# ## One layer, six numbers
#
# The layers pad with zeros, at 8 x 8 points. `exact` writes the whole operator out and decomposes
# it. `bound` is Gram iteration on a slightly larger torus, of which the zero-padded operator is a
# part: it is never below. `enclosure` adds a lower bound. `reshaped` is the norm of the kernel as a
# matrix, which several libraries divide by: it is far below.

# %%
print(f"{'layer':>8} {'reshaped':>9} {'lower':>9} {'exact':>9} {'bound':>9} {'any size':>9} {'circular':>9}")
for i, conv in enumerate(model.convs):
    kernel = conv.kernel[...]
    lower, upper = spectral.conv_enclosure(kernel, padding="zero", input_size=8)
    exact = spectral.conv_spectral_norm(kernel, padding="zero", input_size=8)
    reshaped = jnp.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), ord=2)
    anywhere = spectral.conv_gram_iteration(kernel, padding="any")
    circular = spectral.conv_gram_iteration(kernel, padding="circular", input_size=8)
    numbers = (reshaped, lower, exact, upper, anywhere, circular)
    print(f"{i:>8} " + " ".join(f"{float(v):9.4f}" for v in numbers))
    assert reshaped < exact and lower <= exact * (1 + 1e-6) and exact <= upper * (1 + 1e-6)
    assert upper < 1.1 * exact and anywhere >= exact

# %% [markdown]
# ## Circular is not zero
#
# The norm with circular padding at the same size is often close and sometimes *below* the one with
# zero padding. A checkerboard filter on an odd number of points shows it; using the circular number
# for a zero-padded layer would prove something false.

# %%
checker = jnp.asarray((-1.0) ** np.add.outer(np.arange(3), np.arange(3)), jnp.float32)[..., None, None]
circular = float(spectral.conv_gram_iteration(checker, padding="circular", input_size=5, num_iters=8))
zero = float(spectral.conv_spectral_norm(checker, padding="zero", input_size=5))
bound = float(spectral.conv_gram_iteration(checker, padding="zero", input_size=5, num_iters=8))
print(f"circular {circular:.4f} < zero {zero:.4f} <= bound {bound:.4f}")
assert circular < 0.95 * zero <= zero <= bound

# %% [markdown]
# ## Precision against cost
#
# Each Gram product squares the gap between the largest singular value and the others. Splitting off
# one vector at the end (`final="deflated"`) is worth one to three products over the published
# Frobenius norm; `num_iters="auto"` stops when a lower bound meets the upper one.

# %%
gauss = jax.random.normal(jax.random.key(1), (3, 3, 64, 64)) / 24
truth = float(spectral.conv_spectral_norm(gauss, padding="circular", input_size=16))
figure, axis = plt.subplots(figsize=(5, 3.4))
for final, marker in (("frobenius", "x"), ("deflated", "o")):
    milliseconds, excess = [], []
    for count in (1, 2, 3, 4, 5):
        fn = jax.jit(
            lambda k, n=count, f=final: spectral.conv_gram_iteration(
                k, padding="circular", input_size=16, num_iters=n, final=f
            )
        )
        value = float(fn(gauss))
        start = time.perf_counter()
        fn(gauss).block_until_ready()
        milliseconds.append(1e3 * (time.perf_counter() - start))
        excess.append(value / truth - 1)
    axis.semilogy(range(1, 6), excess, marker=marker, label=final)
    print(final, [f"{e:.1e}" for e in excess], [f"{t:.0f} ms" for t in milliseconds])
    assert min(excess) > -1e-6
axis.set(xlabel="Gram products", ylabel="relative excess over the norm", xticks=range(1, 6))
axis.legend()
plt.show()
auto = float(spectral.conv_gram_iteration(gauss, padding="circular", input_size=16, num_iters="auto"))
print(f"auto: {auto / truth - 1:.1e}")
assert -1e-6 < auto / truth - 1 < 2e-3

# %% [markdown]
# ## The whole network
#
# `network_bound` reads the program of any function and multiplies. The table says how much each
# layer matters. The largest slope met on the test images shows what a product of norms leaves.

# %%
found = spectral.network_bound(lambda z: model(z), x[:1])
print(found.table())
slope = jax.vmap(lambda z: jnp.linalg.norm(jax.jacrev(lambda v: model(v[None])[0])(z).reshape(10, -1), ord=2))
steepest = float(slope(test).max())
print(f"steepest test image {steepest:.2f}, bound {float(found.value):.2f}")
assert steepest <= float(found.value)
