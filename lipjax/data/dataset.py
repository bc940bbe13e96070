"""What a data set is, and how its pixels become numbers in [0, 1].

Images stay `uint8` on the host (a quarter of the memory and of the transfer); `to_unit` turns a
batch into `float32` on the device, inside the jitted step. Radii are measured after it: l2 in
units of the pixel scale [0, 1].
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import _checks


class Split(NamedTuple):
    """Images and their labels, on the host.

    Attributes:
        images: `uint8[n, h, w, c]`.
        labels: `int32[n]`, in `[0, num_classes)`.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its published test split.

    Attributes:
        name: The name that `lipjax.data.load` takes.
        train: The training split; settings are chosen on a part of it (`hold_out`).
        test: The published test split.
        num_classes: Labels lie in `[0, num_classes)`.
        max_value: The pixel value that means 1.0: 16 for the digits, 255 otherwise.
        class_names: One name a class, or empty.
        notes: What a reader of results on this data must know, for example a checksum that
            differs from the original's. They belong in every published result.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    max_value: int
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def to_unit(images, max_value: int) -> jax.Array:
    """Pixel values as `float32` in [0, 1]: `images / max_value`.

    Args:
        images: `uint8[...]`, a NumPy or a device array, also a traced one.
        max_value: The pixel value that means 1.0, `Dataset.max_value`.

    Returns:
        `float32[...]`. 0 is 0 and `max_value` is 1, exactly. Values above `max_value` are not
        clipped.

    Raises:
        ValueError: `images` is not uint8 (a float image is already scaled, or was scaled
            differently), or `max_value` is not an integer in [1, 255].

    >>> to_unit(np.array([0, 4, 16], np.uint8), 16)
    Array([0.  , 0.25, 1.  ], dtype=float32)
    """
    dtype = jnp.result_type(images)
    if dtype != jnp.uint8:
        raise ValueError(f"images has dtype {dtype}; it must be uint8, as in Split.images.")
    _checks.integer(1, max_value=max_value)
    _checks.within(1, 255, max_value=max_value)
    return jnp.asarray(images).astype(jnp.float32) / int(max_value)
