"""Projected gradient descent: the empirical side of every certificate.

A certificate says that no input within a radius changes the class; an attack looks for one. A
radius that an attack beats is refuted, so every certificate of lipjax is held against this module.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks
from lipjax._numerics import as_class
from lipjax.attacks._common import as_argument, box_ends
from lipjax.attacks._search import Attack, along_segment, diameter, search, targets_of
from lipjax.typing import Array


def pgd(
    key,
    fn,
    x,
    label,
    *,
    eps,
    num_steps: int,
    norm: str = "l2",
    num_restarts: int = 1,
    step_size=None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    unroll: bool = False,
) -> Attack:
    """The nearest adversarial example that projected gradient descent finds in a ball around `x`.

    Descends on `f_y - f_t` by normalized gradients (l2) or their signs (linf), projects onto the
    ball and the box, and keeps the best iterate. The target `t` of restart `r` is the runner-up
    whose linearized decision boundary is the `r`-th nearest, `(f_y - f_t) / ||grad (f_y - f_t)||`
    with the dual norm; restarts beyond their number begin again with the first. Restart 0 starts at
    `x`, the others at points drawn uniformly in the ball. Steps shrink from `step_size` to zero by
    half a cosine. (Measured on small digit classifiers with 20 steps: descent on the margin itself
    left an l2 accuracy of 23.9 % with one start and 23.1 % with two, these targets 21.4 % and
    20.0 %; constant steps of `2.5 eps / num_steps` never reached a lower margin.)

    Args:
        key: A PRNG key; example `i` of a batch is attacked with `jax.random.fold_in(key, i)`, so it
            meets the same attack in a batch as alone with that key.
        fn: Maps a batch `[n, ...]` of examples, each by itself, to logits `[n, K]`. Any callable;
            a callable pytree (`jax.tree_util.Partial(apply, params)`, a Flax NNX module, a method
            of one) hands over its arrays as arguments and is traced once for all weights. Any
            other function is traced once per function object, and the arrays that it closes over
            are constants, as under `jax.jit`: a fresh lambda works but is compiled anew.
        x: `float[...]`, one example, or `float[n, ...]`, a batch: `label` decides. It is taken as
            JAX holds it: float64 arrays are rounded first where it runs in 32 bits.
        label: `int[]` for one example, `int[n]` for a batch.
        eps: Radius of the ball in the units of `x`, one number or one for each example. 0 tries `x`
            alone; values beyond the diameter of the box (inf too) mean the whole box.
        num_steps: Gradient steps of every restart.
        norm: `"l2"` or `"linf"`.
        num_restarts: How many starts; all of them run as one batch.
        step_size: Length of the first step in the norm, one number or one for each example; `eps`
            when None.
        bounds: The box of valid inputs, two numbers `(low, high)` for every coordinate, rounded to
            the dtype of `x`; or None.
        unroll: Whether to write the steps out instead of looping: slower to compile, and about
            ten times faster to run for convolutions on CPUs, which XLA runs slowly inside loops.

    Returns:
        An `Attack`. An example is adversarial when its class, the largest logit with the lowest
        index winning ties, is not the label. NaN logits are not the label either, so they succeed;
        a misclassified `x` succeeds at distance 0. A gradient of zero, or one that is not finite,
        makes no step.

    Guarantee: `example` lies in the box, and its distance from `x`, computed exactly from the
    arrays (with subnormal numbers as zero), is at most `distance`, which is at most `eps`.
    `success` is what `fn` said of `example` inside this program; a network evaluated in another
    batch size or under another compilation may round differently, which shows when the best two
    logits agree up to rounding. Where `success` is false nothing is proved.

    Raises:
        ValueError: For a wrong shape, dtype or option, a label that is no class, and an `x` outside
            the box.

    Madry et al. (2018), https://arxiv.org/abs/1706.06083; targets by linearized distance as in
    DeepFool, Moosavi-Dezfooli et al. (2016), https://arxiv.org/abs/1511.04599.

    >>> fn = lambda x: jnp.stack([x[:, 0], 1 - x[:, 0]], axis=1)  # class 0 where x[0] >= 0.5
    >>> x = jnp.array([0.7, 0.3])
    >>> bool(pgd(jax.random.key(0), fn, x, 0, eps=0.19, num_steps=10).success)
    False
    >>> attack = pgd(jax.random.key(0), fn, x, 0, eps=0.21, num_steps=10)
    >>> bool(attack.success), 0.2 <= float(attack.distance) <= 0.21
    (True, True)
    """
    fn, batch, labels, bounds = _checked(fn, x, label, bounds, norm, num_steps, num_restarts)
    _checks.one_key(key=key)
    _checks.nonnegative(eps=eps)
    if bounds is None and not isinstance(eps, jax.core.Tracer) and not np.all(np.isfinite(eps)):
        raise ValueError(f"eps is {eps!r}; without bounds it must be finite.")
    if step_size is not None:
        _checks.positive(step_size=step_size)
        step_size = _per_example(labels, jnp.shape(label), batch.dtype, step_size=step_size)
    eps = _per_example(labels, jnp.shape(label), batch.dtype, eps=eps)
    attack = _pgd(
        *(_keys(key, label), fn, batch, labels, eps, step_size, bounds),
        **dict(num_steps=num_steps, norm=norm, num_restarts=num_restarts, unroll=unroll),
    )
    return attack if jnp.ndim(label) else jax.tree.map(lambda leaf: leaf[0], attack)


def minimal_distance(
    key,
    fn,
    x,
    label,
    *,
    num_steps: int = 50,
    num_bisections: int = 12,
    max_eps=None,
    norm: str = "l2",
    num_restarts: int = 1,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Array:
    """Distance to the nearest adversarial example found: an upper bound of the robust radius.

    Bisects the `eps` of `pgd` for every example by itself: from `max_eps` downwards in halves until
    something is found, then between the largest `eps` that failed and the smallest distance found.
    What is found is drawn towards `x` along the segment between them as far as it succeeds.

    Args:
        key: A PRNG key, used as in `pgd`.
        fn: As in `pgd`, with the same rule for tracing.
        x: `float[...]`, one example, or `float[n, ...]`, a batch.
        label: `int[]` or `int[n]`.
        num_steps: Gradient steps at every `eps`.
        num_bisections: How many values of `eps` are tried.
        max_eps: The largest of them, one number or one for each example; the diameter of the box
            when None. Without a box it must be given.
        norm: `"l2"` or `"linf"`.
        num_restarts: Starts of every attack.
        bounds: The box of valid inputs, or None.

    Returns:
        `float[]` or `float[n]`: 0 where `x` is misclassified, inf where nothing was found.

    Guarantee: some input of the box at most this far from `x` is adversarial in the sense of `pgd`,
    so no valid certified radius is larger; up to the rounding of `fn`.

    Raises:
        ValueError: As `pgd`.

    >>> fn = lambda x: jnp.stack([x[:, 0], 1 - x[:, 0]], axis=1)
    >>> distance = minimal_distance(jax.random.key(0), fn, jnp.array([0.7, 0.3]), 0)
    >>> round(float(distance), 3)
    0.2
    """
    fn, batch, labels, bounds = _checked(fn, x, label, bounds, norm, num_steps, num_restarts)
    _checks.one_key(key=key)
    _checks.integer(1, num_bisections=num_bisections)
    if max_eps is None:
        if bounds is None or not np.all(np.isfinite(bounds)):
            raise ValueError(
                "max_eps is None; without finite bounds it must be given, max_eps=1.0 say."
            )
        max_eps = diameter(batch[0].size, bounds, norm)
    _checks.positive(max_eps=max_eps)
    max_eps = _per_example(labels, jnp.shape(label), batch.dtype, max_eps=max_eps)
    distance = _minimal_distance(
        *(_keys(key, label), fn, batch, labels, max_eps, bounds),
        num_steps=num_steps,
        num_bisections=num_bisections,
        norm=norm,
        num_restarts=num_restarts,
    )
    return distance if jnp.ndim(label) else distance[0]


@functools.partial(jax.jit, static_argnames=("num_steps", "num_restarts", "norm", "unroll"))
def _pgd(keys, fn, x, label, eps, step_size, bounds, *, num_steps, num_restarts, norm, unroll):
    targets = targets_of(fn, x, label, norm, num_restarts, unroll)
    options = dict(num_steps=num_steps, norm=norm, unroll=unroll)
    return search(keys, fn, x, label, targets, eps, step_size, bounds, **options)


@functools.partial(jax.jit, static_argnames=("num_steps", "num_bisections", "num_restarts", "norm"))
def _minimal_distance(
    keys, fn, x, label, max_eps, bounds, *, num_steps, num_bisections, num_restarts, norm
):
    targets = targets_of(fn, x, label, norm, num_restarts)

    def bisect(state, index):
        failed, found = state  # the largest eps that failed below the smallest distance found
        halved = max_eps * 0.5 ** index.astype(x.dtype)
        eps = jnp.where(jnp.isinf(found), halved, (failed + found) / 2)
        fresh = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        attack = search(
            *(fresh, fn, x, label, targets, eps, None, bounds), num_steps=num_steps, norm=norm
        )
        failed = jnp.where(attack.success | jnp.isinf(found), failed, eps)
        nearer = along_segment(fn, x, label, attack, norm)
        return (failed, jnp.where(attack.success, nearer, found)), None

    none = max_eps + jnp.zeros_like(x, shape=max_eps.shape)  # as sharded as x
    start = jnp.zeros_like(none), jnp.full_like(none, jnp.inf)
    return lax.scan(bisect, start, jnp.arange(num_bisections))[0][1]


def _keys(key, label):
    n = jnp.shape(label)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n[0])) if n else key[None]


def _per_example(labels, shape, dtype, **named):
    ((name, value),) = named.items()
    if jnp.shape(value) not in ((), shape):
        raise ValueError(
            f"{name} has shape {jnp.shape(value)}; it must be one number or have the shape of "
            f"label, {shape}."
        )
    return jnp.broadcast_to(jnp.asarray(value, dtype), labels.shape)


def _checked(fn, x, label, bounds, norm, num_steps, num_restarts):
    """`(fn, batch, labels, bounds)`, or the error that says what is wrong with the arguments."""
    _checks.one_of(("l2", "linf"), norm=norm)
    _checks.integer(1, num_steps=num_steps, num_restarts=num_restarts)
    x, label = jnp.asarray(x), jnp.asarray(label)
    _checks.ranked((0, 1), "one label or a batch of them", label=label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"label has dtype {label.dtype}; it must be an integer type.")
    _checks.at_least_rank(label.ndim, x=x)
    _checks.nonempty(x=x)
    _checks.real_floating(x=x)
    if label.ndim:
        _checks.axis_size(0, label.shape[0], "one example for each label", x=x)
    if bounds is not None:
        bounds = box_ends(bounds, x.dtype)
        _check_inside(x, bounds)
    fn, label = as_argument(fn), as_class(label)
    batch, labels = (x, label) if label.ndim else (x[None], label[None])
    num_classes = _num_classes(fn, batch)
    if not isinstance(label, jax.core.Tracer):
        values = np.asarray(label)
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"label is {values!r}; fn has {num_classes} classes.")
    return fn, batch, labels, bounds


def _check_inside(x, bounds):
    if not isinstance(x, jax.core.Tracer):
        low, high = float(x.min()), float(x.max())
        if not bounds[0] <= low <= high <= bounds[1]:
            raise ValueError(
                f"x has values from {low} to {high}, outside bounds {bounds!r}; scale x into the "
                "box (and keep the normalization inside fn), or pass the box of x, or bounds=None."
            )


def _num_classes(fn, batch) -> int:
    logits = _evaluate.eval_shape(fn, batch)
    wanted = f"it must map a batch of shape {batch.shape} to float logits ({batch.shape[0]}, K)"
    if not hasattr(logits, "shape") or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"fn returns {logits!r}; {wanted}.")
    if logits.ndim != 2 or logits.shape[0] != batch.shape[0] or logits.shape[1] == 0:
        raise ValueError(f"fn returns shape {logits.shape}; {wanted}.")
    return logits.shape[1]


@jax.jit
def _evaluate(fn, x):
    return fn(x)
