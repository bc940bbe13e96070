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
# # Hybrid smoothing: changed words and a moved image at once
#
# A decision that depends on an image and on a text can be attacked in both: some words are changed,
# and the image is moved a little. Each part gets noise of its own, Gaussian on the image and
# replacement on the words, and one certificate says how far the image may move for every number of
# changed words.
#
# The task, from scikit-learn's digits: forty words each name a digit, most of them the same one. Does
# the image show it?

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from lipjax import data
from lipjax.smoothing import confidence, discrete, hybrid, lipschitz
from lipjax.smoothing.kernels import Categorical, Mask, Uniform
from lipjax.smoothing.noise import Gaussian, Product, Tokens
from lipjax.smoothing.sampling import sample_counts

SIGMA, BETA, WORDS, ALPHA = 0.4, 0.7, 40, 0.001
digits = data.load("digits")


def examples(split, rng, count):
    """Images, words that name the digit or another one, and whether they agree."""
    rows = rng.integers(0, len(split.labels), count)
    agrees = rng.integers(0, 2, count)
    other = (split.labels[rows] + rng.integers(1, 10, count)) % 10
    named = np.where(agrees, split.labels[rows], other)
    wrong = rng.random((count, WORDS)) < 0.1
    words = np.where(wrong, rng.integers(0, 10, (count, WORDS)), named[:, None])
    return np.float32(split.images[rows] / 16), words.astype(np.int32), agrees.astype(np.int32)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.image = nnx.Linear(64, 128, rngs=rngs)
        self.names = nnx.Linear(128, 10, rngs=rngs)
        self.match = nnx.Linear(1, 2, rngs=rngs)

    def __call__(self, x):
        words, images = x
        shown = jax.nn.softmax(self.names(jax.nn.relu(self.image(images.reshape(len(images), -1)))))
        said = jax.nn.one_hot(words, 10).mean(1)
        return self.match(20 * (shown * said).sum(-1, keepdims=True) - 4)


# %%
kernel = Uniform(BETA, 10)
noise = Product((Tokens(kernel), Gaussian(SIGMA)))
model = Net(nnx.Rngs(0))
optimizer = optax.adam(0.003)
state = optimizer.init(model)


@jax.jit
def step(model, state, key, words, images, labels):
    def loss(model):
        noisy = jax.vmap(noise)(jax.random.split(key, len(words)), (words, images))
        return optax.losses.softmax_cross_entropy_with_integer_labels(model(noisy), labels).mean()

    value, gradient = jax.value_and_grad(loss)(model)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(model, updates), state, value


rng = np.random.default_rng(0)
for i in range(1500):
    images, words, labels = examples(digits.train, rng, 256)
    model, state, value = step(model, state, jax.random.key(i), words, images, labels)
print(f"loss {float(value):.3f}")

# %% [markdown]
# ## One sample, a curve over the number of changed words
#
# The chance of the class at the clean input is bounded once, at level alpha. From that one number follow
# the radii for all numbers of edits together: nothing more is spent.

# %%
images, words, labels = examples(digits.test, np.random.default_rng(1), 60)


@jax.jit
def count(key, words, image):
    options = dict(noise=noise, num_samples=5000, num_classes=2, batch_size=5000)
    return sample_counts(key, lambda x: model(x), (words, image), **options)


keys = jax.random.split(jax.random.key(10_000), (2, 60))  # training had those of its steps
first, votes = (np.stack([count(k, w, x) for k, w, x in zip(row, words, images)]) for row in keys)
prediction = first.argmax(1)  # one sample chooses the class, another bounds its chance
p_lower = confidence.clopper_pearson(votes[np.arange(60), prediction], 5000, alpha=ALPHA).lower
right = prediction == labels
radii = hybrid.curve(p_lower, kernel=kernel, max_edits=4, sigma=SIGMA)
print(f"right {right.mean():.0%}; edits, mean radius of the right ones, share still certified:")
for d in range(5):
    kept = discrete.worst_case(p_lower, kernel=kernel, num_edits=d) > 0.5
    print(f"{d:4} {np.mean(radii[right, d]):8.3f} {np.mean(kept & right):8.0%}")
assert (np.diff(radii, axis=1) <= 0).all() and radii[right, 1].mean() > 0.05
for d in range(4):
    plt.plot(
        np.sort(radii[right, d])[::-1],
        np.linspace(0, right.mean(), right.sum()),
        label=f"{d} words",
    )
plt.xlabel("l2 radius of the image")
plt.ylabel("certified accuracy")
plt.legend()
plt.show()

# %% [markdown]
# ## An attack on both parts
#
# One word is changed to what hurts most among all words and places, and the image moved to the radius
# along the gradient of the smoothed score. The class stays, as proved.

# %%
surest = int(np.argmax(np.where(right, radii[:, 1], 0)))
image, text, label = jnp.asarray(images[surest]), words[surest], int(labels[surest])


@jax.jit
def mean_score(words, image, key):
    noisy = jax.vmap(noise, in_axes=(0, None))(jax.random.split(key, 500), (words, image))
    return jax.nn.softmax(model(noisy))[:, label].mean()


changed = [
    np.where(np.arange(WORDS) == t, v, text)
    for t in range(WORDS)
    for v in range(10)
    if v != text[t]
]
scores = [float(mean_score(jnp.asarray(c), image, jax.random.key(0))) for c in changed]
worst = jnp.asarray(changed[int(np.argmin(scores))])
radius = float(radii[surest, 1])
moved = image
for i in range(20):
    slope = jax.grad(mean_score, argnums=1)(worst, moved, jax.random.key(i))
    moved = moved - radius / 5 * slope / jnp.linalg.norm(slope)
    away = moved - image
    moved = image + away * jnp.minimum(1, radius / jnp.linalg.norm(away))
attacked = np.asarray(count(jax.random.key(99), worst, moved))
print(
    f"radius {radius:.3f} with one word: votes {votes[surest].tolist()} before, {attacked.tolist()} after"
)
assert attacked.argmax() == label

# %% [markdown]
# ## The two limits, and other kernels
#
# No edits give the Gaussian radius, radius 0 the certificate of the words alone. Masked words have a
# closed form; tables have columns with different numbers of values.

# %%
p = np.linspace(0.6, 0.9999, 100)
gauss = lipschitz.radius(p, lipschitz=np.inf, sigma=SIGMA)
np.testing.assert_allclose(
    hybrid.radius(p, kernel=kernel, num_edits=0, sigma=SIGMA), gauss, rtol=1e-6
)
table = Categorical(0.2, (2, 5, 16, 41))
for name, one in (("uniform, 10 words", kernel), ("mask", Mask(BETA)), ("table", table)):
    curve = hybrid.curve(0.999, kernel=one, max_edits=3, sigma=SIGMA)
    print(f"{name:<18} radius for 0 to 3 edits at p = 0.999: {curve.round(3).tolist()}")
    left = discrete.worst_case(0.999, kernel=one, num_edits=2)
    assert (curve[2] > 0) == (left > 0.5)
