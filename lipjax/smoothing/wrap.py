"""What can be smoothed: functions of other programs, and classifiers behind a denoiser.

`sampling` takes any function of a batch. A Flax module is one; so are `functools.partial(model.apply,
params)` of Linen, `functools.partial(transformed.apply, params, None)` of Haiku and `jax.vmap(model)` of
Equinox. `host` makes one of a function outside of JAX, `denoised` of a denoiser and a classifier.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import _checks
from lipjax.typing import Array


def host(fn: Callable, *, num_classes: int) -> Callable:
    """A function of NumPy arrays as one of JAX arrays, for jit and loops.

    Args:
        fn: `float32[b, ...] -> [b, num_classes]`, in NumPy, PyTorch (as
            `lambda x: model(torch.from_numpy(x)).numpy()`) or what else takes and gives NumPy arrays.
            Instead of one array it may take a tuple or another tree of arrays with one first axis,
            such as tokens and an image.
        num_classes: Number of classes.

    Returns:
        The function; it takes what `fn` takes, and returns `float32[b, num_classes]`. float64 logits are
        rounded to float32, where two that were not equal may be: the vote then goes to the first of
        them. What is certified is the classifier that votes so.

    Raises:
        ValueError: for inputs without a first axis in common, and for an `fn` that returns another
            shape or no real numbers. Inside of jit, vmap and loops, where `fn` runs later, the second
            arrives as an error of JAX's runtime that quotes it. Inside of `shard_map` over several CPU
            devices, whose callbacks JAX lets wait for each other.

    >>> fn = host(lambda x: np.stack([x.sum(-1), -x.sum(-1)], -1), num_classes=2)
    >>> jax.jit(fn)(jnp.ones((3, 4))).shape
    (3, 2)
    """
    _checks.integer(2, num_classes=num_classes)
    if not callable(fn):
        raise ValueError(f"fn is {fn!r}; it must be a function of a batch.")

    def called(x):
        out = np.asarray(fn(jax.tree.map(np.array, x)))  # a copy: the program may write into it
        size = len(jax.tree.leaves(x)[0])
        if out.shape != (size, num_classes):
            raise ValueError(
                f"fn returns shape {out.shape} for a batch of {size}; it must return "
                f"({size}, {num_classes})."
            )
        if not (out.dtype.kind in "fiub" or jnp.issubdtype(out.dtype, jnp.floating)):
            raise ValueError(f"fn returns dtype {out.dtype}; it must return real logits.")
        return out.astype(np.float32)

    def run(x):
        x = jax.tree.map(jnp.asarray, x)
        leaves = jax.tree.leaves(x)
        sizes = {leaf.shape[:1] for leaf in leaves}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                f"x has shapes {[leaf.shape for leaf in leaves]}; all must have the same first axis."
            )
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return jnp.asarray(called(x))
        mesh = jax.sharding.get_abstract_mesh()
        devices = mesh.size if mesh.manual_axes else 1
        if devices > 1 and jax.default_backend() == "cpu":
            raise ValueError(
                f"fn is a host function inside of shard_map on {devices} CPU devices, where its calls "
                "wait for each other for ever; certify it outside of shard_map, on one device."
            )
        made = jax.ShapeDtypeStruct((*sizes.pop(), num_classes), jnp.float32)
        return jax.pure_callback(called, made, x, vmap_method="sequential")

    return run


def denoised(
    denoiser: Callable[[Array, float], Array],
    classifier: Callable[[Array], Array],
    *,
    sigma: float,
    low: float = 0.0,
    high: float = 1.0,
    model_low: float = -1.0,
    model_high: float = 1.0,
) -> Callable:
    """A classifier of noisy images that removes the noise first.

    Args:
        denoiser: `(images, deviation) -> images`, in the denoiser's own range. A diffusion model gets
            the deviation that it must take off, in its own units.
        classifier: `images -> logits`, images in the range of the noisy ones.
        sigma: Standard deviation of the noise, in the units of the images that are certified.
        low: Least value of those images,
        high: and the largest.
        model_low: Least value of an image in the denoiser's range,
        model_high: and the largest.

    The denoiser gets `sigma (model_high - model_low) / (high - low)`: twice sigma for images in [0, 1]
    and a denoiser in [-1, 1]. The radius stays in the units of the images.

    References: Salman et al. (2020), https://arxiv.org/abs/2003.01908; Carlini et al. (2023),
    https://arxiv.org/abs/2206.10550.

    >>> given = []
    >>> fn = denoised(lambda x, s: (given.append(s), x)[1], lambda x: x, sigma=0.25)
    >>> fn(jnp.array([[0.0, 0.5]])).tolist(), given
    ([[0.0, 0.5]], [0.5])
    """
    _checks.ranked(0, "one number", sigma=sigma)
    _checks.positive(sigma=sigma)
    if not (low < high and model_low < model_high):
        raise ValueError(
            f"low is {low}, high {high}, model_low {model_low} and model_high {model_high}; each range "
            "must increase."
        )
    ratio = (model_high - model_low) / (high - low)

    def fn(x: Array) -> Array:
        clean = denoiser((x - low) * ratio + model_low, sigma * ratio)
        return classifier((clean - model_low) / ratio + low)

    return fn
