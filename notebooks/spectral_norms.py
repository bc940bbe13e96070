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

from experiments.benchmarks import reference_norms as reference
from lipjax import data, spectral

# %%
digits = data.load("digits")
x, y = data.to_unit(digits.train.images, 16), jnp.asarray(digits.train.labels)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in ((1, 16), (16, 16), (16, 16))])
        self.head = nnx.Linear(16, 10, rngs=rngs)

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
accuracy = float((jax.jit(model)(test).argmax(-1) == digits.test.labels).mean())
print(f"test accuracy {accuracy:.1%}")
assert accuracy > 0.85

# %% [markdown]
# ## One layer, every method
#
# The layers pad with zeros, at 8 x 8 points. First what the library gives: `exact` writes the whole
# operator out and decomposes it; `bound` is Gram iteration on a slightly larger torus, of which the
# zero-padded operator is a part, so it is never below; `lower` comes from the same iteration. Two
# bounds hold at every size: from a grid of frequencies, and from row sums of a power of the kernel.

# %%
kernels = [conv.kernel[...] for conv in model.convs]
here = dict(padding="zero", input_size=8)
print(f"{'layer':>8} {'lower':>9} {'exact':>9} {'bound':>9} {'any size':>9} {'row sums':>9}")
for i, kernel in enumerate(kernels):
    lower, upper = spectral.conv_enclosure(kernel, **here)
    exact = spectral.conv_spectral_norm(kernel, **here)
    anywhere = spectral.conv_gram_iteration(kernel, padding="any")
    rows = spectral.conv_kernel_bound(kernel)
    print(f"{i:>8} " + " ".join(f"{float(v):9.4f}" for v in (lower, exact, upper, anywhere, rows)))
    assert lower <= exact * (1 + 1e-6) and exact <= upper * (1 + 1e-6) and upper < 1.1 * exact
    assert min(anywhere, rows) >= exact

# %% [markdown]
# Then what others compute, written anew in `experiments.benchmarks`. `kernel as a matrix` is what
# several libraries divide by, and is far below. Power iteration approaches the norm from below. The
# four reshapings and the grid of polynomials are above and loose. Circular padding at the same size
# is another operator: its exact norm (`FFT, SVD`) and its published Gram iteration prove nothing
# about zero padding.

# %%
others = {
    "matrix": lambda k: jnp.linalg.norm(k.reshape(-1, k.shape[-1]), ord=2),
    "power 30": lambda k: reference.power_iteration(k, 8, 30),
    "reshaped": reference.reshapings,
    "polynomial": reference.polynomial_grid,
    "FFT, SVD": lambda k: reference.fft_svd(k, 8),
    "published": lambda k: reference.published_gram(k, 8),
}
print(f"{'layer':>8} " + " ".join(f"{name:>10}" for name in ("exact", *others)))
for i, kernel in enumerate(kernels):
    exact = float(spectral.conv_spectral_norm(kernel, **here))
    found = {name: float(fn(kernel)) for name, fn in others.items()}
    print(f"{i:>8} " + " ".join(f"{v:10.4f}" for v in (exact, *found.values())))
    assert found["matrix"] < exact and found["power 30"] < exact * (1 + 1e-5)
    assert found["polynomial"] > exact

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
jacobians = jax.jit(jax.vmap(jax.jacrev(lambda z: model(z[None])[0])))(test)
steepest = float(np.linalg.norm(np.asarray(jacobians).reshape(len(test), 10, -1), 2, (1, 2)).max())
print(f"steepest test image {steepest:.2f}, bound {float(found.value):.2f}")
assert steepest <= float(found.value)
