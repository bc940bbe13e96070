r"""Noise for `lipjax.smoothing.sampling`: functions `(key, x) -> noisy x` of one example.

    Gaussian(sigma)           on floats, drawn in their precision
    IntegerGaussian(sigma)    on integer images: exactly the law that a certificate speaks of
    Tokens(kernel, ...)       on integer tokens, with a kernel of `lipjax.smoothing.kernels`
    Product(parts)            one noise for each part of a tuple

Floats leak. The sum of an image and float noise tells the image: of 3072 sums, nearly all go back to
x exactly if x is subtracted and added again, and a classifier that looks for that is certified where it
must not be (Voráček, Hein, ICLR 2023, https://openreview.net/forum?id=HaHCoGcpV9). Images are integers;
`IntegerGaussian` adds integers to them, and nothing leaks.
"""

import dataclasses
import fractions
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks
from lipjax.smoothing import _counts, _normal_law
from lipjax.smoothing.kernels import Ablation, Categorical, Mask, Uniform
from lipjax.typing import Array

DITHER = 0x64697468
"""Of the key by which a result is spread over its cell."""
LARGEST_DEVIATION = 2000
"""Of integers in a table, which has eighteen times as many entries."""


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Adds `sigma` times standard normal numbers, in the dtype of x.

    Attributes:
        sigma: Standard deviation, in the units of x. 0 adds nothing, which trains but proves nothing:
            `sample_counts(..., sigma=0)` and certificates refuse it.

    float32 normal numbers take 2^23 values: rounded to the 256 levels of an image, their law is up to
    5e-5 off for every pixel at sigma = 1, and sums leak x (see above). Good for training and for
    estimates; for a proof take `IntegerGaussian`.

    >>> Gaussian(0.5)(jax.random.key(0), jnp.zeros(3)).shape
    (3,)
    """

    sigma: float

    def __post_init__(self):
        _checks.nonnegative(sigma=self.sigma)
        if np.ndim(self.sigma):
            raise ValueError(f"sigma is {self.sigma!r}; it must be one number for all of x.")
        _checks.within(0.0, 1e30, sigma=self.sigma)

    def __call__(self, key: Array, x: Array) -> Array:
        return x + jnp.asarray(self.sigma, x.dtype) * _normal(key, x.shape, x.dtype)

    def check(self, x) -> None:
        """Refuses what is no floating array."""
        _checks.real_floating(x=_array(x))


@dataclasses.dataclass(frozen=True)
class IntegerGaussian:
    """`(refine x + round(refine levels sigma Z)) / (refine levels)` of an integer image x.

    Attributes:
        sigma: Standard deviation in units of `x / levels`, that is of [0, 1]; a known number, for the
            table is made on the host.
        levels: What makes the largest value one; 255 for bytes.
        refine: How many times finer the grid of the noise is than that of the images.
        dither: Parts of a cell of that grid, a power of two. Above 1 the result is spread uniformly
            over the cells of the grid; x must then lie between `-levels` and `levels`.

    The integers have the rounded normal law to 2^-64 for each value: 64 random bits choose one from a
    table of its probabilities, held as integers (Walker's alias method). For integer x, rounding
    `x + noise` is adding the rounded noise, so the result is a function of a Gaussian sample (and of
    numbers that know nothing of x), and every certificate that asks nothing of the classifier holds, for
    inputs on the grid, after `law_error` is taken off: pass it to `certify`.

    A certificate that knows a Lipschitz constant of the scores asks for a sample that is not rounded.
    For it `law_error(size, lipschitz=...)` adds what the rounding can move a mean by, which `finest`
    makes small.

    >>> noise = IntegerGaussian(0.25)
    >>> noise(jax.random.key(0), jnp.array([0, 255], jnp.uint8)).dtype
    dtype('float32')
    """

    sigma: float
    levels: int = 255
    refine: int = 1
    dither: int = 1

    def __post_init__(self):
        if isinstance(self.sigma, jax.core.Tracer) or np.ndim(self.sigma):
            raise ValueError(
                f"sigma is {self.sigma!r}; it must be one number, known outside of jit."
            )
        _checks.positive(sigma=self.sigma)
        _checks.integer(1, levels=self.levels, refine=self.refine, dither=self.dither)
        object.__setattr__(self, "sigma", float(self.sigma))  # arrays have no hash, for the tables
        for name in ("levels", "refine", "dither"):
            object.__setattr__(self, name, int(getattr(self, name)))
        grid = self.levels * self.refine
        if not 0.05 <= self.sigma * grid <= LARGEST_DEVIATION:
            raise ValueError(
                f"sigma is {self.sigma!r}; times {self.levels} levels, {self.refine} times refined, it "
                f"must lie in [0.05, {LARGEST_DEVIATION}]."
            )
        if self.dither & (self.dither - 1) or grid * self.dither > 2**22:
            raise ValueError(
                f"dither is {self.dither}; it must be a power of two, at most 2^22 / {grid}."
            )

    @classmethod
    def finest(cls, sigma: float, levels: int = 255) -> "IntegerGaussian":
        """On the finest grid that the table holds, dithered: for Lipschitz-aware certificates.

        >>> noise = IntegerGaussian.finest(0.25, 255)
        >>> noise.refine, noise.dither, noise.law_error(784, lipschitz=1.0) < 1e-5
        (31, 512, True)
        """
        _checks.positive(sigma=sigma)
        _checks.integer(1, levels=levels)
        refine = max(1, int(min(LARGEST_DEVIATION / sigma, 2**16) // levels))
        low = 0.05 / (levels * max(1, 2**16 // levels))
        high = LARGEST_DEVIATION / levels
        if not low <= sigma <= high:
            raise ValueError(
                f"sigma is {sigma!r}; with {levels} levels it must lie in [{low:.3g}, {high:.6g}]."
            )
        return cls(sigma, levels, refine, 2 ** max(0, int(math.log2(2**22 / (levels * refine)))))

    def __call__(self, key: Array, x: Array) -> Array:
        total = x.astype(jnp.int32) * self.refine + self.integers(key, x.shape)
        grid = self.levels * self.refine
        if self.dither == 1:
            return total.astype(jnp.float32) / grid
        words = _words(jax.random.fold_in(key, DITHER), x.shape)
        place = (words >> np.uint32(33 - self.dither.bit_length())).astype(jnp.int32)
        inside = (2 * place + 1 - self.dither).astype(jnp.float32) / (2 * self.dither)
        return (total.astype(jnp.float32) + inside) / grid

    def integers(self, key: Array, shape: tuple[int, ...]) -> Array:
        """`int32[shape]`, rounded normal numbers of deviation `refine * levels * sigma`."""
        grid = self.levels * self.refine
        cells, bits = _normal_law.alias(self.sigma, grid)
        first, second = _pair(key, shape)
        cell = jnp.asarray(cells).at[first >> np.uint32(32 - bits)].get(mode="promise_in_bounds")
        rest = first & np.uint32(2 ** (32 - bits) - 1)
        below = (rest < cell[..., 0]) | ((rest == cell[..., 0]) & (second < cell[..., 1]))
        chosen = jnp.where(below, cell[..., 2] >> 16, cell[..., 2] & np.uint32(0xFFFF))
        return chosen.astype(jnp.int32) - len(_normal_law.table(self.sigma, grid)) // 2

    def law_error(self, size: int, *, lipschitz: float = 0.0) -> float:
        """At most what the mean of a score in [0, 1] is off by, for images of `size` pixels.

        Args:
            size: Number of pixels.
            lipschitz: l2 constant of the score on the whole space, a number or an upper `Bound`, for a
                certificate that uses it. The reference is then a Gaussian sample; with 0 it is a
                rounded one, which does for all others.

        Rounding moves a pixel by less than `1 / sqrt(12)` of the grid in the quadratic mean, whatever
        the deviation. What is spread over the cells instead misses the slope of the density inside of a
        cell: where its logarithm changes by at most a, an exponential is the extreme, whose quantiles
        are at most a / 8 from uniform ones. The largest constant of all scores is the one to pass.

        >>> round(IntegerGaussian(0.25).law_error(784, lipschitz=1.0), 4)
        0.0317
        """
        _checks.integer(1, size=size)
        lipschitz = _counts.constant(lipschitz)
        _checks.nonnegative(lipschitz=lipschitz)
        grid = self.levels * self.refine
        table = _normal_law.table(self.sigma, grid)
        exact = size * (len(table) + 2) * 2.0**-64
        moved = math.sqrt(1 / 12)
        if self.dither > 1:
            mass = np.diff(np.array([0, *table, 2**64], np.float64)) * 2.0**-64
            places = np.abs(np.arange(len(mass)) - len(mass) // 2)
            slope = (places + 0.5) / (self.sigma * grid) ** 2
            moved = math.sqrt((mass * np.minimum(slope / 8, 1) ** 2).sum()) + 0.5 / self.dither
        moved = moved / grid + 2.0**-23 * (1 + self.sigma)  # and what the last rounding does
        return min(1.0, (exact + float(lipschitz) * math.sqrt(size) * moved) * (1 + 1e-9))

    def check(self, x) -> None:
        """Refuses what is no integer array."""
        dtype = _array(x).dtype
        if not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(f"x has dtype {dtype}; it must be an integer image.")
        if self.dither > 1 and not isinstance(x, jax.core.Tracer):
            largest = np.abs(np.asarray(x, np.int64)).max(initial=0)
            if largest > self.levels:
                raise ValueError(
                    f"x has an entry of size {largest}; with dither it must lie within "
                    f"+-{self.levels}, the levels, or its last rounding is more than law_error says."
                )


def _token(mask) -> int:
    """As a Python integer that every token type of at least 32 bits holds."""
    value = np.asarray(mask)
    if value.ndim or not np.issubdtype(value.dtype, np.integer) or abs(int(value)) >= 2**31:
        raise ValueError(f"mask is {mask!r}; it must be an integer of 32 bits.")
    return int(value)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Replaces, masks or ablates tokens.

    Attributes:
        kernel: `kernels.Uniform`, whose tokens are 0 to `vocab_size - 1`, `Categorical`, whose column
            j has the values 0 to `sizes[j] - 1`, `Mask` or `Ablation`.
        mask: Token that stands for a masked one; with `Mask` and `Ablation` only.

    Keeps 64 random bits for each decision, see `law_error`.

    >>> from lipjax.smoothing.kernels import Mask
    >>> Tokens(Mask(1.0), mask=9)(jax.random.key(0), jnp.array([1, 2])).tolist()
    [9, 9]
    """

    kernel: Uniform | Categorical | Mask | Ablation
    mask: int | None = None

    def __post_init__(self):
        if not isinstance(self.kernel, Uniform | Categorical | Mask | Ablation):
            raise ValueError(
                f"kernel is {self.kernel!r}; it must be Uniform, Categorical, Mask or Ablation."
            )
        replaces = isinstance(self.kernel, Uniform | Categorical)
        if replaces != (self.mask is None):
            wanted = "None" if replaces else "the token of a masked place"
            raise ValueError(f"mask is {self.mask!r}; with {self.kernel!r} it must be {wanted}.")
        if not replaces:
            object.__setattr__(self, "mask", _token(self.mask))

    def __call__(self, key: Array, x: Array) -> Array:
        kernel = self.kernel
        self._check_dtype(x.dtype)
        if isinstance(kernel, Ablation):
            high, low = _pair(key, (kernel.length,))
            order = jnp.lexsort((low, high))
            kept = jnp.zeros(kernel.length, bool).at[order[: kernel.keep]].set(True)
            return jnp.where(kept, x, jnp.asarray(self.mask, x.dtype))
        chance_key, which_key = jax.random.split(key)
        changed = _happens(chance_key, x.shape, kernel.beta)
        if isinstance(kernel, Mask):
            return jnp.where(changed, jnp.asarray(self.mask, x.dtype), x)
        values = jnp.asarray(_num_values(kernel), jnp.int32)
        step = 1 + _below(which_key, x.shape, np.asarray(_num_values(kernel)) - 1).astype(jnp.int32)
        moved = x.astype(jnp.int32) - (values - step)  # no sum, which might wrap around
        moved = jnp.where(moved < 0, moved + values, moved).astype(x.dtype)
        return jnp.where(changed, moved, x)

    def law_error(self, size: int) -> float:
        """At most the total variation between the law of `size` tokens and the kernel's."""
        _checks.integer(1, size=size)
        replaces = isinstance(self.kernel, Uniform | Categorical)
        most = np.max(_num_values(self.kernel)) if replaces else 1
        return float(size * max(size, most) * 2.0**-62)

    def check(self, x) -> None:
        """Refuses tokens outside of the alphabet, types that do not hold it, and a length that is not
        the kernel's.

        Sampling calls it. Under jit tokens are not known: call it on the data before.
        """
        x = _array(x)
        self._check_dtype(x.dtype)
        places = {Ablation: "length", Categorical: "sizes"}.get(type(self.kernel))
        if places:
            length = getattr(self.kernel, places)
            length = length if places == "length" else len(length)
            if x.shape != (length,):
                raise ValueError(f"x has shape {x.shape}; it must be ({length},) tokens.")
        if isinstance(x, jax.core.Tracer):
            return
        values = np.asarray(x)
        if isinstance(self.kernel, Uniform | Categorical):
            size = _num_values(self.kernel)
            if np.any(values < 0) or np.any(values >= size):
                named = "vocab_size" if isinstance(self.kernel, Uniform) else "sizes"
                raise ValueError(
                    f"x is {values!r}; its tokens must lie between 0 and {named} - 1 = {size - 1}."
                )
        elif np.any(values == self.mask):
            raise ValueError(f"x is {values!r}; it holds the mask {self.mask}, which is no token.")

    def _check_dtype(self, dtype):
        """Refuses a type that does not hold every token that may come out."""
        if not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(f"x has dtype {dtype}; tokens are integers.")
        replaces = isinstance(self.kernel, Uniform | Categorical)
        token = int(np.max(_num_values(self.kernel))) - 1 if replaces else self.mask
        held = jnp.iinfo(dtype)
        if not held.min <= token <= held.max:
            raise ValueError(
                f"x has dtype {dtype}, which does not hold the token {token}; "
                "use x.astype(jnp.int32)."
            )


@dataclasses.dataclass(frozen=True)
class Product:
    """Independent noise on the parts of an example that is a tuple.

    Attributes:
        parts: One noise for each part; None leaves a part as it is.

    >>> noise = Product((Tokens(Mask(0.5), mask=9), Gaussian(1.0)))
    >>> tokens, image = noise(jax.random.key(0), (jnp.arange(3), jnp.zeros((2, 2))))
    >>> tokens.shape, image.shape
    ((3,), (2, 2))
    """

    parts: tuple[Any, ...]
    more: dataclasses.InitVar[Any] = None

    def __post_init__(self, more):
        if not isinstance(self.parts, tuple | list) or more is not None:
            raise ValueError(
                f"parts is {self.parts!r}; it must be one tuple, of one noise for each part: "
                "Product((noise, noise))."
            )
        object.__setattr__(self, "parts", tuple(self.parts))
        for part in self.parts:
            if part is not None and not callable(part):
                raise ValueError(f"parts holds {part!r}; each part must be a noise or None.")

    def __call__(self, key: Array, x: tuple) -> tuple:
        if len(x) != len(self.parts):
            raise ValueError(f"x has {len(x)} parts; it must have {len(self.parts)}.")
        keys = [jax.random.fold_in(key, i) for i in range(len(self.parts))]
        return tuple(
            value if part is None else part(k, value) for k, part, value in zip(keys, self.parts, x)
        )

    def law_error(self, sizes: tuple[int, ...]) -> float:
        """At most the total variation between the law of parts of these sizes and the exact one."""
        if np.ndim(sizes) != 1 or len(sizes) != len(self.parts):
            raise ValueError(f"sizes is {sizes!r}; it must hold {len(self.parts)} numbers.")
        for part in self.parts:
            if part is not None and not hasattr(part, "law_error"):
                raise ValueError(f"parts holds {part!r}, whose law has no proved error.")
        return sum(p.law_error(n) for p, n in zip(self.parts, sizes) if p is not None)

    def check(self, x) -> None:
        """Refuses what is no tuple of as many parts, or what a part refuses."""
        if not isinstance(x, tuple | list) or len(x) != len(self.parts):
            raise ValueError(f"x is a {type(x).__name__}; it must hold {len(self.parts)} parts.")
        for part, value in zip(self.parts, x):
            if hasattr(part, "check"):
                part.check(value)


def _array(x):
    """x as an array; a list or another tree is refused."""
    if not jax.tree_util.all_leaves([x]):
        raise ValueError(f"x is a {type(x).__name__}; it must be one array, as jnp.asarray(x).")
    return jnp.asarray(x)


def _num_values(kernel):
    """Of a token, or of every column."""
    return kernel.vocab_size if isinstance(kernel, Uniform) else np.asarray(kernel.sizes)


def _below(key, shape, most):
    """`uint32[shape]`, from 0 to `most - 1`, each with chance `1 / most` to 2^-64.

    The remainder of a number of 64 bits, found from the top a few bits at a time.
    """
    most = np.asarray(most, np.uint32)
    step = 32 - int(most.max()).bit_length()  # so that a remainder that is moved up fits
    high, low = _pair(key, shape)
    most = jnp.broadcast_to(jnp.asarray(most), shape)
    rest, left = high % most, 32
    while left:
        bits = min(step, left)
        left -= bits
        digits = (low >> np.uint32(left)) & np.uint32(2**bits - 1)
        rest = ((rest << np.uint32(bits)) | digits) % most
    return rest


def _happens(key, shape, chance: float):
    """True with that chance, to 2^-64."""
    if chance >= 1:
        return jnp.ones(shape, bool)
    limit = int(fractions.Fraction(chance) * 2**64)
    high, low = np.uint32(limit >> 32), np.uint32(limit & 0xFFFFFFFF)
    first, second = _pair(key, shape)
    return (first < high) | ((first == high) & (second < low))


def _pair(key, shape):
    """Two independent words of 32 random bits for every entry."""
    return _words(key, (2, *shape))


def _words(key, shape):
    """Random words of 32 bits.

    Threefry makes two at a time; `jax.random.bits` would keep one of them.
    """
    size = math.prod(shape)
    if str(jax.random.key_impl(key)) != "threefry2x32" or not 0 < size < 2**32:
        return jax.random.bits(key, shape, jnp.uint32)
    return _threefry(jax.random.key_data(key), size).reshape(shape)


def _threefry(key, size):
    """`jax.extend.random.threefry_2x32(key, iota(size))` as one chain of operations, which XLA fuses.

    On CPUs JAX keeps the rounds a loop over arrays in memory, which takes two to four times as long.
    """
    half = -(-size // 2)
    first = lax.iota(jnp.uint32, half)
    second = jnp.where(first < size - half, first + np.uint32(half), np.uint32(0))
    schedule = key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    first, second = first + schedule[0], second + schedule[1]
    for group in range(1, 6):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[(group - 1) % 2]:
            first = first + second
            second = second << np.uint32(turn) | second >> np.uint32(32 - turn)
            second = second ^ first
        first = first + schedule[group % 3]
        second = second + schedule[(group + 1) % 3] + np.uint32(group)
    return jnp.concatenate([first, second])[:size]


def _normal(key, shape, dtype):
    """Normal numbers, as `jax.random.normal` makes them of random words."""
    if dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    words = _words(key, shape) >> 9 | np.float32(2).view(np.uint32)
    between = lax.bitcast_convert_type(words, jnp.float32) - 3  # [-1, 1) in steps of 2^-22
    inside = jnp.maximum(between, np.nextafter(np.float32(-1), np.float32(0)))
    return np.float32(2**0.5) * lax.erf_inv(inside)
