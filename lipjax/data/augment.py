"""Random changes of one image `float[h, w, c]` in [0, 1], on the device, under jit and vmap.

Each takes a key and one image; map over a batch with one key an image:

>>> keys = jax.random.split(jax.random.key(0), 5)
>>> images = jnp.zeros((5, 32, 32, 3))
>>> jax.vmap(lambda key, image: random_crop(key, image, pad=4))(keys, images).shape
(5, 32, 32, 3)

Options are static Python numbers, except `sigma`.
"""

import math
from numbers import Real

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax.data import color

Array = jax.Array
Strength = float | tuple[float, float]


def random_crop(key: Array, image: Array, *, pad: int, mode: str = "reflect") -> Array:
    """A window of the image's own size at a uniformly random place of the padded image.

    Args:
        key: A key.
        image: `float[h, w, c]`.
        pad: Pixels added at each of the four sides; 0 returns the image.
        mode: `"reflect"` (the border pixel is not repeated), `"edge"` or `"constant"` (zeros).

    Returns:
        `float[h, w, c]`, in the range of the image and of 0.

    Raises:
        ValueError: `pad` is no integer of at least 0, or reflects more than there is.

    >>> image = jnp.arange(9.0).reshape(3, 3, 1)
    >>> bool((random_crop(jax.random.key(0), image, pad=0) == image).all())
    True
    """
    color.check_image(image)
    _checks.one_key(key=key)
    _checks.integer(0, pad=pad)
    _checks.one_of(("reflect", "edge", "constant"), mode=mode)
    if mode == "reflect" and pad >= min(image.shape[:2]):
        raise ValueError(
            f"pad is {pad} for an image of shape {image.shape}; reflection allows at most "
            f"{min(image.shape[:2]) - 1} (or use mode='edge' or 'constant')."
        )
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_affine(
    key: Array,
    image: Array,
    *,
    shift: float = 0.0,
    rotation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
) -> Array:
    """The image moved, turned, stretched and sheared a little, zeros coming in at the border.

    Values between pixels come from cubic convolution (a = -1/2), which blurs less than bilinear
    interpolation: distances between images, and so margins, stay nearly as they are. All amounts
    are drawn uniformly and independently, once an image.

    Args:
        key: A key.
        image: `float[h, w, c]`. The cost is `h^2 w^2 c` operations: meant for small images.
        shift: Largest shift along each axis, in pixels.
        rotation: Largest turn, in degrees.
        scale: Each axis is stretched by a factor in `[1 - scale, 1 + scale]`; below 1.
        shear: Largest shift of a column per row.

    Returns:
        `float[h, w, c]`, clipped to [0, 1].

    Raises:
        ValueError: An amount is negative, or `scale` is not below 1.

    Reference: Keys (1981), https://doi.org/10.1109/TASSP.1981.1163711.

    >>> image = jnp.eye(4)[..., None]
    >>> bool(jnp.allclose(random_affine(jax.random.key(0), image), image, atol=1e-5))
    True
    """
    color.check_image(image)
    _checks.one_key(key=key)
    _checks.nonnegative(shift=shift, rotation=rotation, shear=shear)
    _checks.within(0.0, 0.99, scale=scale)
    keys = jax.random.split(key, 4)

    def draw(key, limit, shape=()):
        return jax.random.uniform(key, shape, image.dtype, minval=-limit, maxval=limit)

    angle = draw(keys[0], rotation * math.pi / 180)
    stretch = 1 + draw(keys[1], scale, (2,))
    slant = draw(keys[2], shear)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    skew = jnp.stack([jnp.stack([stretch[0], slant]), jnp.stack([0 * slant, stretch[1]])])
    height, width = image.shape[:2]
    center = jnp.asarray([(height - 1) / 2, (width - 1) / 2], image.dtype)
    rows, columns = (jnp.arange(n, dtype=image.dtype) for n in (height, width))
    points = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
    offset = points - center.reshape(1, 1, 2)
    source = jnp.einsum("ab,hwb->hwa", turn @ skew, offset)
    source = source + (center + draw(keys[3], shift, (2,))).reshape(1, 1, 2)
    vertical = _cubic(source[..., :1] - rows.reshape(1, 1, -1))
    horizontal = _cubic(source[..., 1:] - columns.reshape(1, 1, -1))
    return jnp.clip(jnp.einsum("ijk,ijl,klc->ijc", vertical, horizontal, image), 0, 1)


def random_flip(key: Array, image: Array) -> Array:
    """The image, or with probability 1/2 its mirror image (left and right exchanged).

    Args:
        key: A key. The same key takes the same decision, so that two calls with it undo each other.
        image: `float[h, w, c]`.
    """
    _checks.one_key(key=key)
    color.check_image(image)
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def color_jitter(
    key: Array,
    image: Array,
    *,
    brightness: Strength = 0.0,
    contrast: Strength = 0.0,
    saturation: Strength = 0.0,
    hue: Strength = 0.0,
) -> Array:
    """Brightness, contrast, saturation and hue changed by random amounts.

    The strengths mean what they mean in torchvision's `ColorJitter`; the order does not vary
    here: brightness, contrast, saturation, hue, each followed by a clip to [0, 1]. The four draws
    are independent, and switching one off leaves the others as they are.

    Args:
        key: A key.
        image: `float[h, w, 3]`, or `float[h, w, 1]` without saturation and hue.
        brightness: A number b draws the factor from [max(0, 1 - b), 1 + b], a pair is that range
            itself; 0 or (1, 1) leaves the image alone.
        contrast: As brightness.
        saturation: As brightness.
        hue: A number h in [0, 0.5] draws the turn from [-h, h] (1 is a full circle), a pair in
            [-0.5, 0.5] is that range itself; 0 or (0, 0) leaves the image alone.

    Returns:
        `float[h, w, c]` in [0, 1].

    Raises:
        ValueError: A strength is out of range, or a grey image is to change saturation or hue.

    >>> image = jnp.full((4, 4, 1), 0.5)
    >>> color_jitter(jax.random.key(0), image, brightness=(2.0, 2.0)).max()
    Array(1., dtype=float32)
    """
    _checks.one_key(key=key)
    color.check_image(image)
    steps = (
        (color.adjust_brightness, _factors(brightness=brightness), 1.0),
        (color.adjust_contrast, _factors(contrast=contrast), 1.0),
        (color.adjust_saturation, _factors(saturation=saturation), 1.0),
        (color.adjust_hue, _turns(hue=hue), 0.0),
    )
    for subkey, (adjust, (low, high), neutral) in zip(jax.random.split(key, 4), steps):
        if (low, high) != (neutral, neutral):
            amount = jax.random.uniform(subkey, (), image.dtype, minval=low, maxval=high)
            image = adjust(image, amount)
    return jnp.clip(image, 0, 1)


def gaussian_noise(key: Array, image: Array, *, sigma) -> Array:
    """The image plus independent normal noise of standard deviation `sigma`.

    The result is not clipped: randomized smoothing certifies the classifier under exactly this
    noise.

    Args:
        key: A key.
        image: `float[h, w, c]`.
        sigma: At least 0, in units of the pixel scale [0, 1]; may be traced.
    """
    color.check_image(image)
    _checks.one_key(key=key)
    _checks.nonnegative(sigma=sigma)
    scale = jnp.asarray(sigma).astype(image.dtype)
    return image + scale * jax.random.normal(key, image.shape, image.dtype)


def _cubic(x):
    """The kernel of cubic convolution."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))


def _factors(**named) -> tuple[float, float]:
    """The range of a factor around 1."""
    [(name, value)] = named.items()
    if isinstance(value, Real):
        low, high = max(0.0, 1.0 - value), 1.0 + value
        usable = 0 <= value < math.inf
    else:
        low, high = _pair(name, value)
        usable = 0 <= low <= high < math.inf
    if not usable:
        raise ValueError(
            f"{name} is {value!r}; it must be a finite number of at least 0, or a pair "
            "(low, high) with 0 <= low <= high."
        )
    return float(low), float(high)


def _turns(**named) -> tuple[float, float]:
    """The range of a turn around 0."""
    [(name, value)] = named.items()
    low, high = (-value, value) if isinstance(value, Real) else _pair(name, value)
    if not -0.5 <= low <= high <= 0.5:
        raise ValueError(
            f"{name} is {value!r}; it must be a number in [0, 0.5], or a pair (low, high) with "
            "-0.5 <= low <= high <= 0.5."
        )
    return float(low), float(high)


def _pair(name, value):
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise ValueError(f"{name} is {value!r}; it must be a number or a pair (low, high).")
    return value
