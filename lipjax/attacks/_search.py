"""The engine of `pgd`: every restart of every example in one scan over the gradient steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax._numerics import round_up, unit_roundoff
from lipjax.attacks._common import at_least_float32, norm_roundings, row_norm
from lipjax.typing import Array

_NUM_TARGETS = 10  # so many runners-up are compared when the targets are chosen


class Attack(NamedTuple):
    """What an attack found; each field has the leading axis of the labels, if they have one.

    Attributes:
        example: Like `x`: the nearest input found whose class is not the label; where there is
            none, the input with the smallest margin.
        success: `bool[...]`: whether the class of `example` is not the label.
        margin: `float[...]`: the smallest `f_y - max_{j != y} f_j` over all inputs tried (a nearer
            example may have a larger one); infinite for a single class, NaN where none was a
            number.
        distance: `float[...]`: from `x` to `example`, in the units of `x`, rounded up.
    """

    example: Array
    success: Array
    margin: Array
    distance: Array


def search(
    keys, fn, x, label, targets, eps, step_size, bounds, *, num_steps, norm, unroll=False
) -> Attack:
    """Runs every restart on every example: `x [n, ...]`, `targets [n, restarts]`, `eps [n]`."""
    shape, (n, restarts) = x.shape[1:], targets.shape
    x = x.reshape(n, 1, -1)
    d = x.shape[-1]
    if bounds is None:
        low, high = -jnp.inf, jnp.inf
    else:  # the box grows to hold an x outside it, so that the ball and the box always meet
        low, high = jnp.minimum(x, bounds[0]), jnp.maximum(x, bounds[1])
        eps = jnp.minimum(eps, diameter(d, bounds, norm))
    # Inwards for the projection, the placing, the measured distance and its rounding up.
    inwards = (4 * _roundings(d, norm) + 16) * unit_roundoff(x.dtype)
    radius = (eps * (1 - inwards))[:, None, None]
    first_step = radius if step_size is None else step_size[:, None, None]
    label = jnp.broadcast_to(label[:, None], (n, restarts))

    def logits_of(z):
        return fn(z.reshape(n * restarts, *shape)).reshape(n, restarts, -1)

    def place(delta):
        """The point at `x + delta` in the box, each coordinate rounded towards `x`."""
        z = x + delta
        towards_x = jnp.nextafter(z, jnp.broadcast_to(x, z.shape))
        z = jnp.where(jnp.abs(z - x) > jnp.abs(delta), towards_x, z)
        return jnp.clip(z, low, high)

    def project(delta):
        if norm == "linf":
            return jnp.clip(delta, -radius, radius)
        length = _length(delta, norm)[..., None]
        return delta * jnp.where(length > radius, radius / jnp.where(length > 0, length, 1), 1)

    def keep(best: Attack, z, logits) -> Attack:
        margin, success = _margin(logits, label)
        margin = margin.astype(x.dtype)
        distance = _rounded_up(z - x, norm)
        nearer = success & (~best.success | (distance < best.distance))
        closer = ~success & ~best.success & ~(margin >= best.margin)  # the first is NaN
        better = nearer | closer
        return Attack(
            jnp.where(better[..., None], z, best.example),
            best.success | success,
            jnp.fmin(best.margin, margin),
            jnp.where(better, distance, best.distance),
        )

    def step(state, decay):
        z, best = state
        logits, pullback = jax.vjp(logits_of, z)
        classes = logits.shape[-1]
        towards = jax.nn.one_hot(targets, classes, dtype=logits.dtype)
        (gradient,) = pullback(towards - jax.nn.one_hot(label, classes, dtype=logits.dtype))
        delta = z - x + decay * first_step * _direction(gradient, norm)
        return (place(project(delta)), keep(best, z, logits)), None

    z = place(project(radius * _random_directions(keys, restarts, d, x.dtype, norm)))
    none = jnp.zeros_like(z, shape=(n, restarts))
    best = Attack(jnp.broadcast_to(x, z.shape), none > 0, jnp.full_like(none, jnp.nan), none)
    decays = 0.5 + 0.5 * np.cos(np.pi * np.arange(num_steps) / num_steps)
    (z, best), _ = lax.scan(
        step, (z, best), jnp.asarray(decays, x.dtype), unroll=num_steps if unroll else 1
    )
    best = keep(best, z, logits_of(z))

    success = best.success.any(axis=1)
    merit = jnp.where(best.success, best.distance, jnp.inf)
    hardest = jnp.where(jnp.isnan(best.margin), jnp.inf, best.margin)
    winner = jnp.argmin(jnp.where(success[:, None], merit, hardest), axis=1)
    pick = jax.vmap(lambda values, index: values[index])
    example = pick(best.example, winner).reshape(n, *shape)
    margin = jnp.nanmin(best.margin, axis=1)
    return Attack(example, success, margin, pick(best.distance, winner))


def _margin(logits, label):
    """`f_y - max_{j != y} f_j`, and whether the argmax (lowest index first) is not `y`."""
    logits = at_least_float32(logits)
    classes = jnp.arange(logits.shape[-1], dtype=label.dtype)[None, None]
    mine = jnp.take_along_axis(logits, label[..., None], axis=-1)
    before, after = classes < label[..., None], classes > label[..., None]
    wins = jnp.where(before, mine > logits, jnp.where(after, mine >= logits, mine == mine))
    others = jnp.max(logits, axis=-1, where=before | after, initial=-jnp.inf)
    is_class = (label >= 0) & (label < logits.shape[-1])
    return mine[..., 0] - others, ~(wins.all(axis=-1) & is_class)


def along_segment(fn, x, label, attack: Attack, norm, num_halvings: int = 8):
    """Distance to the nearest success that bisection finds between `x [n, ...]` and the example."""
    n, shape = x.shape[0], x.shape
    x, end = x.reshape(n, -1), attack.example.reshape(n, -1)
    delta = end - x

    def halve(state, _):
        low, high, distance = state  # fractions of the segment: `high` is a success
        middle = (low + high) / 2
        z = jnp.clip(x + middle[:, None] * delta, jnp.minimum(x, end), jnp.maximum(x, end))
        _, success = _margin(fn(z.reshape(shape))[:, None], label[:, None])
        success = success[:, 0]
        measured = _rounded_up(z - x, norm)
        distance = jnp.where(success, jnp.minimum(distance, measured), distance)
        return (jnp.where(success, low, middle), jnp.where(success, middle, high), distance), None

    start = jnp.zeros_like(attack.distance), jnp.ones_like(attack.distance), attack.distance
    return lax.scan(halve, start, length=num_halvings)[0][2]


def targets_of(fn, x, label, norm, num_restarts, unroll=False):
    """`int[n, restarts]`: runners-up by the distance of their linearized decision boundary.

    Their gradients are found one after the other, or with `unroll` at once: more memory, no loop.
    """
    n = x.shape[0]
    logits, pullback = jax.vjp(fn, x)
    classes = logits.shape[-1]
    mine = jax.nn.one_hot(label, classes, dtype=logits.dtype)
    num = max(1, min(classes - 1, max(_NUM_TARGETS, num_restarts)))
    values, runners = lax.top_k(jnp.where(mine > 0, -jnp.inf, logits), num)
    gaps = jnp.take_along_axis(logits, label[:, None], axis=1) - values

    def slope(runner):
        (gradient,) = pullback(jax.nn.one_hot(runner, classes, dtype=logits.dtype) - mine)
        return _length(gradient.reshape(n, -1), "l2" if norm == "l2" else "l1")

    slopes = (jax.vmap(slope) if unroll else lambda r: lax.map(slope, r))(runners.T).T
    usable = slopes > 0
    boundary = gaps.astype(slopes.dtype) / jnp.where(usable, slopes, 1)
    boundary = jnp.where(usable, boundary, jnp.inf)
    runners = jnp.take_along_axis(runners, jnp.argsort(boundary, axis=1), axis=1)
    return runners[:, jnp.arange(num_restarts) % num]


def _random_directions(keys, restarts, d, dtype, norm):
    """`[n, restarts, d]`: zero for restart 0, then uniform in the unit ball of the norm.

    The first `d` coordinates of a uniform point on the sphere in `d + 2` dimensions are uniform in
    the ball (Harman and Lacko, 2010): a Gaussian over the norm of a slightly longer one.
    """

    def draw(key):
        if norm == "linf":
            return jax.random.uniform(key, (restarts - 1, d), dtype, -1, 1)
        normal = jax.random.normal(key, (restarts - 1, d + 2), dtype)
        return normal[:, :d] / row_norm(normal)[:, None]

    zero = jnp.zeros((keys.shape[0], 1, d), dtype)
    return zero if restarts == 1 else jnp.concatenate([zero, jax.vmap(draw)(keys)], axis=1)


def _direction(gradient, norm):
    """The steepest unit step; 0 where the gradient is 0 or not finite."""
    usable = jnp.isfinite(gradient).all(axis=-1, keepdims=True)
    gradient = jnp.where(usable, gradient, 0)
    if norm == "linf":
        return jnp.sign(gradient)
    length = row_norm(gradient)[..., None]
    return gradient / jnp.where(length > 0, length, 1)


def _length(delta, norm):
    if norm == "l2":
        return row_norm(delta)
    return jnp.abs(delta).max(axis=-1) if norm == "linf" else jnp.abs(delta).sum(axis=-1)


def _rounded_up(delta, norm):
    return round_up(_length(delta, norm), _roundings(delta.shape[-1], norm))


def _roundings(d: int, norm: str) -> int:
    return norm_roundings(d) if norm == "l2" else 1


def diameter(d: int, bounds, norm: str):
    """Largest distance between two points of the box in `d` dimensions."""
    return (bounds[1] - bounds[0]) * (d**0.5 if norm == "l2" else 1.0)
