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
# # Certify in ten lines
#
# A network whose features are 1-Lipschitz cannot change its mind quickly: if the leading logit is
# ahead by a margin, no input closer than the margin over the Lipschitz constant of the difference
# of two logits has another class. Here is such a network, its proof, its certificates, and an
# attack that tries to break them.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from lipjax import attacks, data, margin, models, nn, training

# %% [markdown]
# ## The ten lines
#
# Data, network, a loss that asks for a margin, two hundred steps of Adam, frozen weights with
# their proved bound, certificates.

# %%
digits = data.load("digits")
x, y = data.to_unit(digits.train.images, 16), digits.train.labels
model = models.LipschitzConvNet("digits", rngs=nnx.Rngs(0))
optimizer = optax.adam(0.01, b1=0.5, b2=0.9)


def loss(model, batch, key):
    images, labels = batch
    pairs = jax.vmap(lambda f, k: training.cross_entropy(f, k, offset=0.9, temperature=0.15))
    return pairs(model(images), labels).mean(), {}


step = training.make_step(loss, optimizer, constrain=nn.constrain)
state = training.init_state(jax.random.key(0), model, optimizer)
for i in range(200):
    rows = data.batch_indices(0, i, num_examples=len(y), batch_size=256)
    state, metrics = step(state, (x[rows], y[rows]))

network = nn.freeze(state.params)
bound, head = network.feature_bound(), network.head.weights().kernel
test_x, test_y = data.to_unit(digits.test.images, 16), jnp.asarray(digits.test.labels)
exact = {"lipschitz": bound, "head": head, "logit_error": 1e-5}  # of float32 logits, generously
certify = jax.vmap(lambda logits: margin.certify(logits, **exact))
certificate = certify(network(test_x))

# %% [markdown]
# ## What is proved
#
# The bound is computed in float64 from the very float32 weights that the network multiplies with.
# It covers every input, not only those we have.

# %%
print(bound)
assert bound.kind == "upper" and bound.value <= 1 + 1e-6

correct = certificate.prediction == test_y
radii = np.array([0, 36 / 255, 0.5, 1.0])
certified = [float(correct.mean())]
certified += [float(margin.certified_accuracy(certificate.radius, correct, r)) for r in radii[1:]]
for r, share in zip(radii, certified):
    print(f"correct and certified at l2 radius {r:.3f}: {share:.1%}")
assert certified[0] > 0.9 and certified[1] > 0.8

# %% [markdown]
# ## Trying to break it
#
# Projected gradient descent at exactly the certified radius of each image. Not one prediction may
# change. At four times the radius, many do: the attack works.

# %%
attack = jax.tree_util.Partial(attacks.pgd, jax.random.key(1), network, num_steps=30)
inside = attack(test_x, certificate.prediction, eps=certificate.radius)
outside = attack(test_x, certificate.prediction, eps=4 * certificate.radius)
sure = np.asarray(certificate.radius) > 0
print("broken inside the certified radius:", int(np.sum(np.asarray(inside.success)[sure])))
print("broken within four times it:       ", int(np.sum(np.asarray(outside.success)[sure])))
assert not np.any(np.asarray(inside.success)[sure])
assert np.mean(np.asarray(outside.success)[sure]) > 0.2

# %% [markdown]
# The Lipschitz constant can also be measured, from below. It never passes the bound.

# %%
measured = attacks.lipschitz_lower_bound(
    jax.random.key(2), jax.tree_util.Partial(lambda n, x: n.features(x), network), test_x[:64]
)
print(f"measured {float(measured.value):.4f} <= proved {bound.value:.4f}")
assert float(measured.value) <= bound.value

# %% [markdown]
# ## Certified accuracy against radius

# %%
grid = np.linspace(0, 1.2, 200)
curve = margin.certified_accuracy(certificate.radius, correct, jnp.asarray(grid))
plt.plot(grid, curve)
plt.xlabel("l2 radius (pixels in [0, 1])")
plt.ylabel("certified accuracy")
plt.grid(alpha=0.3)
plt.show()
