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
# # Randomized smoothing: from one set of samples to six certificates
#
# A smoothed classifier takes the class that a network votes for most often under Gaussian noise, or
# whose score is largest on average. Whatever the network, the class cannot change within a radius that
# follows from the chances of the classes. Those are bounded from samples, and every certificate here
# comes from the same ones. Each may be wrong with chance alpha, and says how alpha was spent.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from lipjax import data, nn
from lipjax.models import ConvNetConfig, LipschitzConvNet
from lipjax.smoothing import curves, gaussian, lipschitz, losses, multiclass, simplex, soft
from lipjax.smoothing.noise import Gaussian, IntegerGaussian
from lipjax.smoothing.sampling import sample_both
from lipjax.typing import ABSTAIN, Bound

SIGMA, ALPHA = 0.25, 0.001
digits = data.load("digits")
x, y = data.to_unit(digits.train.images, 16), jnp.asarray(digits.train.labels, jnp.int32)

# %% [markdown]
# A small 1-Lipschitz network, trained with the loss of Gaussian noise: one noisy copy of each image.

# %%
config = ConvNetConfig(
    image_shape=(8, 8, 1),
    mean=(0.3053,),
    conv_depth=0,
    pool=1,
    dense_depth=3,
    dense_width=64,
    dense_hidden=64,
)
model = LipschitzConvNet(config, rngs=nnx.Rngs(0))
optimizer = optax.adam(0.005)
state = optimizer.init(model)


@jax.jit
def step(model, state, rows, key):
    def loss(model):
        weights = nn.constrain(model)

        def fn(z):
            return weights(z) / 0.1

        keys = jax.random.split(key, len(rows))
        return jax.vmap(lambda k, a, b: losses.gaussian(k, fn, a, b, sigma=SIGMA))(
            keys, x[rows], y[rows]
        ).mean()

    updates, state = optimizer.update(jax.grad(loss)(model), state)
    return optax.apply_updates(model, updates), state


rng = np.random.default_rng(0)
for i in range(600):
    model, state = step(model, state, jnp.asarray(rng.integers(0, len(x), 128)), jax.random.key(i))
network = nn.freeze(model)
bound = network.bound()
print("proved Lipschitz bound of all logits", bound)

# %% [markdown]
# ## One map, chosen before any test image is seen
#
# Scores are a softmax or sparsemax of the logits at some temperature. Cold maps have large margins, and
# a large variance and Lipschitz constant; warm ones the opposite. `trade_off` measures it on training
# images kept aside; its best map is fixed from here on. (Choosing the best map for each test image, as
# published code does, is not sound: `soft.unsound_per_input` exists to show it.)

# %%
fn = jax.jit(lambda z: network(z))
maps = [(name, t) for name in ("softmax", "sparsemax") for t in (0.03, 0.1, 0.3, 1.0)]
found = soft.trade_off(
    jax.random.key(1),
    fn,
    x[-40:],
    y[-40:],
    maps=maps,
    sigma=SIGMA,
    alpha=ALPHA,
    num_samples=500,
    num_classes=10,
    batch_size=500,
    planned_samples=10_000,
    lipschitz=bound,
)
print(f"{'map':>16} {'spread':>7} {'margin':>7} {'constant':>9} {'radius':>7}")
for (name, t), *row in zip(found.maps, found.spread, found.margin, found.constant, found.radius):
    print(f"{name:>10} {t:5g} " + "{:7.3f} {:7.3f} {:9.3f} {:7.3f}".format(*row))
name, temperature = found.best
print("chosen:", name, temperature)
assert (np.diff(found.margin[:4]) < 0).all() and (np.diff(found.constant[:4]) < 0).all()

# %% [markdown]
# ## The samples
#
# Votes and scores of 40 test images: 100 noisy copies to choose with, 10,000 others to certify with.
# Pixels and noise are integers (the digits have 16 levels), so that the noise has exactly the law that
# the theorem speaks of; the grid of the noise is finer than that of the pixels, since the certificate
# that uses a Lipschitz constant feels the grid. Sums of scores are exact too: they do not depend on
# batches or devices.

# %%
noise = IntegerGaussian.finest(SIGMA, levels=16)
images, labels = jnp.asarray(digits.test.images[::9]), digits.test.labels[::9]
score = getattr(simplex, name)


def sample(stage, count):
    @jax.jit
    def one(j, image):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(10_000), j), stage)
        options = dict(num_samples=count, num_classes=10, batch_size=count)
        scores = functools.partial(score, temperature=temperature)
        return sample_both(key, network, image, score=scores, noise=noise, **options)

    found = [one(j, image) for j, image in enumerate(images)]
    return jax.tree.map(lambda *parts: np.stack(parts), *found)


first_votes, first_scores = sample(0, 100)
votes, scores = sample(1, 10_000)
print("votes of the first image", votes[0], "  mean scores", scores.mean[0].round(3))
assert (votes.sum(1) == 10_000).all()

# %% [markdown]
# ## Six certificates

# %%
options = dict(sigma=SIGMA, alpha=ALPHA, law_error=noise.law_error(64))
counted = options | {"num_samples": 10_000}
chosen = dict(temperature=temperature, num_classes=10)
constant = bound * Bound(simplex.component(name, **chosen), "upper")
of_margins = bound * Bound(np.sqrt(2) * simplex.whole(name, **chosen), "upper")
certificates = {"Cohen et al.": gaussian.certify(first_votes, votes, **counted)}
for budget in ("bonferroni", "partition", "auto"):
    certificates[f"all classes, {budget}"] = multiclass.certify(
        first_votes, votes, budget=budget, **counted
    )
certificates["soft scores"] = soft.certify(first_scores, scores, **options)
certificates["soft, Lipschitz-aware"] = soft.certify(
    first_scores,
    scores,
    lipschitz=constant,
    margin_lipschitz=of_margins,
    slope_error=noise.law_error(64, lipschitz=float(constant.value)),
    **options,
)

figure, axis = plt.subplots(figsize=(6, 3.6))
grid = np.linspace(0, 1.6, 200)
print(f"{'':<26}{'mean radius':>12}{'at 0.25':>9}{'at 0.5':>9}{'abstains':>10}")
for title, c in certificates.items():
    right = c.prediction == labels
    one = curves.curve(c.radius, right, grid, alpha=ALPHA)
    axis.plot(grid, one.certified, label=title)
    at = curves.curve(c.radius, right, [0.25, 0.5], alpha=ALPHA).certified
    mean = curves.mean_radius(c.radius, right)
    print(
        f"{title:<26}{mean:12.4f}{at[0]:9.1%}{at[1]:9.1%}{np.mean(c.prediction == ABSTAIN):10.1%}"
    )
    assert all(
        np.all(sum(c.info["ledger"].values()) <= ALPHA * (1 + 1e-9)) for c in certificates.values()
    )
axis.set(xlabel="l2 radius", ylabel="certified accuracy", ylim=(0, 1))
axis.legend(fontsize=7)
plt.show()
mean = {t: curves.mean_radius(c.radius, c.prediction == labels) for t, c in certificates.items()}
assert abs(mean["soft, Lipschitz-aware"] - mean["soft scores"]) < 1e-3
assert mean["all classes, auto"] >= max(mean["all classes, bonferroni"], mean["Cohen et al."])

# %% [markdown]
# ## What knowing the Lipschitz constant is worth
#
# Here next to nothing: the map that was chosen is so steep that its scores are nearly votes. With votes
# nothing is known of the network, and 10,000 samples that all agree certify at most 0.80
# at this noise. A score that is L-Lipschitz before it is smoothed changes slower: the quantile of a
# normal number plus a uniform one of width 1/L takes the place of the normal quantile. The exact form
# is never below the published approximation, which is not even increasing.

# %%
p = np.linspace(0.5, 0.9999, 300)
for constant in (np.inf, 1.0, 0.5, 0.2):
    plt.plot(p, lipschitz.radius(p, lipschitz=constant, sigma=SIGMA), label=f"L = {constant:g}")
published = lipschitz.published_radius(p, lipschitz=0.2, sigma=SIGMA)
plt.plot(p, published, "k:", label="L = 0.2, as published")
plt.xlabel("lower bound of the score")
plt.ylabel("radius")
plt.legend(fontsize=8)
plt.show()
assert (published <= lipschitz.radius(p, lipschitz=0.2, sigma=SIGMA) + 1e-9).all()
assert (np.diff(published) < 0).any()

# %% [markdown]
# ## Floats leak
#
# A classifier that asks whether noise was added to exactly this image: subtracting and adding it again
# gives the same float if it was. With float noise it is certified at two images whose balls overlap,
# with different classes: one certificate is wrong. With integer noise nothing tells.

# %%
secret = jnp.asarray(rng.integers(0, 255, 3072) / 255, jnp.float32)
near = secret + jnp.asarray(0.004 * rng.choice([-1, 1], 3072), jnp.float32)
answers = []
for j, place in enumerate((secret, near)):
    counts = []
    for stage in range(2):
        noisy = jnp.stack(
            [Gaussian(0.5)(k, place) for k in jax.random.split(jax.random.key(2 * j + stage), 200)]
        )
        back = ((noisy - secret) + secret == noisy).mean(-1)
        hits = int((back > 0.985).sum())
        counts.append([hits, 200 - hits])
    answers.append(gaussian.certify(*map(np.array, counts), sigma=0.5, alpha=ALPHA))
distance = float(jnp.linalg.norm(near - secret))
print(f"distance {distance:.2f}:", [(int(a.prediction), float(a.radius.round(2))) for a in answers])
assert answers[0].prediction != answers[1].prediction and min(a.radius for a in answers) > distance
