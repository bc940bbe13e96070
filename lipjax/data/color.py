"""Changes of colour with a given strength, each for one image `float[h, w, c]` in [0, 1].

The formulas are those of torchvision's `adjust_*` functions on float images: a blend with black
(brightness), with the mean grey level (contrast) or with the grey image (saturation), and a turn
of the hue in HSV. The grey level is 0.299 r + 0.587 g + 0.114 b; torchvision writes 0.2989 for
the first weight, which makes white a little darker than 1. A factor or shift may be traced.

Reference: Smith (1978), Color gamut transform pairs, https://doi.org/10.1145/965139.807361.
"""

import jax
import jax.numpy as jnp

from lipjax import _checks

Array = jax.Array


def adjust_brightness(image: Array, factor) -> Array:
    """`factor * image`, clipped to [0, 1]. 0 is black, 1 the image.

    >>> float(adjust_brightness(jnp.full((1, 1, 1), 0.25), 2.0)[0, 0, 0])
    0.5
    """
    check_image(image)
    return jnp.clip(factor * image, 0, 1)


def adjust_contrast(image: Array, factor) -> Array:
    """`factor * image + (1 - factor) * mean grey level`, clipped. 0 is flat grey, 1 the image."""
    check_image(image)
    level = image if image.shape[2] == 1 else _grey(image)
    return _blend(image, jnp.mean(level), factor)


def adjust_saturation(image: Array, factor) -> Array:
    """`factor * image + (1 - factor) * grey image`, clipped. 0 is grey, 1 the image. RGB only."""
    check_rgb(image, "adjust_saturation")
    return _blend(image, _grey(image), factor)


def adjust_hue(image: Array, shift) -> Array:
    """The image with its hue turned by `shift` (a full circle is 1), clipped. RGB only.

    >>> adjust_hue(jnp.array([[[1.0, 0.0, 0.0]]]), 1 / 3).round(3)  # red becomes green
    Array([[[0., 1., 0.]]], dtype=float32)
    """
    check_rgb(image, "adjust_hue")
    hsv = rgb_to_hsv(image)
    turned = jnp.stack([hsv[..., 0] + shift, hsv[..., 1], hsv[..., 2]], axis=-1)
    return jnp.clip(hsv_to_rgb(turned), 0, 1)


def rgb_to_hsv(image: Array) -> Array:
    """Hue, saturation and value, each in [0, 1]. Grey has hue 0; black has saturation 0 too."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.max(image, axis=-1)
    spread = value - jnp.min(image, axis=-1)
    divisor = jnp.where(spread > 0, spread, 1)
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        jnp.mod((green - blue) / divisor, 6),
        jnp.where(green >= blue, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    saturation = spread / jnp.where(value > 0, value, 1)
    return jnp.stack([sextant / 6, saturation, value], axis=-1)


def hsv_to_rgb(image: Array) -> Array:
    """The inverse of `rgb_to_hsv`; hues that differ by an integer are the same.

    A channel is `v - v s max(0, min(k, 4 - k, 1))` with `k = (n + 6 h) mod 6` and n = 5, 3, 1 for
    red, green, blue.
    """
    hue, saturation, value = image[..., 0], image[..., 1], image[..., 2]

    def channel(n):
        k = jnp.mod(n + 6 * hue, 6)
        return value - value * saturation * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def check_image(image: Array) -> None:
    """One float image; uint8 images go through `to_unit` first."""
    _checks.ranked(3, "[h, w, c] of one example (jax.vmap maps over a batch)", image=image)
    _checks.nonempty(image=image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"image has dtype {image.dtype}; it must be floating with values in [0, 1] "
            "(use lipjax.data.to_unit)."
        )


def check_rgb(image: Array, name: str) -> None:
    """One float image with three channels."""
    check_image(image)
    if image.shape[2] != 3:
        raise ValueError(
            f"image has shape {image.shape}; {name} needs 3 colour channels. Grey images have "
            "no saturation and no hue: leave those at 0."
        )


def _grey(image: Array) -> Array:
    red, green, blue = image[..., 0:1], image[..., 1:2], image[..., 2:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _blend(image: Array, other: Array, factor) -> Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)
