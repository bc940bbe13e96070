r"""Noise on tokens, as what a certificate needs of it: the law of the likelihood ratio.

An attack that changes d tokens moves the law of the noisy input. What can still be proved depends on the
clean probability $p_i$ of each value of the likelihood ratio $\gamma_i$, adversarial over clean, alone.
All probabilities are kept as logarithms, so that hundreds of edits and alphabets of any size neither
overflow nor vanish.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipjax import _checks


class Atoms(NamedTuple):
    """The clean law of the likelihood ratio.

    Attributes:
        log_mass: `float64[n]`, logarithms of clean probabilities of the finite positive ratios.
        log_ratio: `float64[n]`, increasing.
        lost: Clean probability of ratio 0, of outcomes that the attacked input never has.
    """

    log_mass: np.ndarray
    log_ratio: np.ndarray
    lost: float


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Keeps a token with probability `1 - beta`, else replaces it by one of the others, uniformly.

    Attributes:
        beta: In [0, 1].
        vocab_size: Number of tokens that may occur, in the clean, the noisy and the attacked text; at
            least 2.

    Of d edits the ratio takes 2 d + 1 values. Reference: Lee et al. (2019),
    https://arxiv.org/abs/1906.04948.

    >>> Uniform(0.5, 3).atoms(1).lost
    0.0
    """

    beta: float
    vocab_size: int

    def __post_init__(self):
        object.__setattr__(self, "beta", _chance(self.beta))
        _checks.integer(2, vocab_size=self.vocab_size)
        if self.vocab_size >= 2**31:
            raise ValueError(f"vocab_size is {self.vocab_size}; it must be below 2^31.")

    def atoms(self, num_edits: int) -> Atoms:
        """The law of the ratio for an attack that changes that many tokens."""
        from scipy import special

        check_edits(self, num_edits=num_edits)
        d, beta, others = num_edits, self.beta, self.vocab_size - 1
        keep = 1 - beta
        i, j = np.meshgrid(
            np.arange(d + 1), np.arange(d + 1), indexing="ij"
        )  # clean and attacked token
        i, j = i[i + j <= d], j[i + j <= d]
        ways = special.gammaln(d + 1) - special.gammaln(i + 1) - special.gammaln(j + 1)
        third = d - i - j  # tokens that became neither; beta / others may be too small for a number
        ways = ways - special.gammaln(third + 1) + special.xlogy(third, beta)
        ways = ways + special.xlogy(third, (others - 1) / others)
        clean = ways + special.xlogy(i, keep) + special.xlogy(j, beta) - j * np.log(others)
        attacked = ways + special.xlogy(j, keep) + special.xlogy(i, beta) - i * np.log(others)
        lost = float(np.exp(clean[np.isneginf(attacked)]).sum())
        common = ~np.isneginf(clean) & ~np.isneginf(attacked)
        clean, steps = clean[common], (j - i)[common]
        values, place = np.unique(steps, return_inverse=True)
        log_mass = np.full(len(values), -np.inf)
        np.logaddexp.at(log_mass, place, clean)
        unit = np.log(keep) - np.log(beta) + np.log(others) if 0 < beta < 1 else 0.0
        order = np.argsort(values * unit, kind="stable")
        return Atoms(log_mass[order], (values * unit)[order], min(lost, 1.0))


@dataclasses.dataclass(frozen=True)
class Categorical:
    """`Uniform` for columns with different numbers of values, as tables have them.

    Attributes:
        beta: In [0, 1], such that a value is likelier to be kept than to become any other.
        sizes: Number of values of each column, at least 2.

    The worst columns to change are those with the most values: with more values a replaced one tells
    more of what it was (the smaller column is a garbling of the larger one).

    >>> Categorical(0.4, (2, 3, 10)).atoms(1).log_mass.shape
    (3,)
    """

    beta: float
    sizes: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "beta", _chance(self.beta))
        if not isinstance(self.sizes, Sequence | np.ndarray):
            raise ValueError(
                f"sizes is {self.sizes!r}; it must hold the number of values of each column."
            )
        object.__setattr__(self, "sizes", tuple(self.sizes))
        for size in self.sizes:
            _checks.integer(2, sizes=size)
        if not self.sizes:
            raise ValueError("sizes is empty; it must hold the number of values of each column.")
        if 1 - self.beta <= self.beta / (min(self.sizes) - 1):
            raise ValueError(
                f"beta is {self.beta}; with {min(self.sizes)} values in a column it must be below "
                f"{1 - 1 / min(self.sizes):g}, where a value is kept as often as any other comes."
            )

    def atoms(self, num_edits: int) -> Atoms:
        """The law of the ratio for an attack that changes that many columns, the worst ones."""
        check_edits(self, num_edits=num_edits)
        worst = sorted(self.sizes, reverse=True)[:num_edits]
        mass, ratio, kept = np.zeros(1), np.zeros(1), 1.0
        for size in sorted(set(worst)):
            group = Uniform(self.beta, size).atoms(worst.count(size))
            mass = (mass[:, None] + group.log_mass).reshape(-1)
            ratio = (ratio[:, None] + group.log_ratio).reshape(-1)
            kept *= 1 - group.lost
        order = np.argsort(ratio, kind="stable")
        mass, ratio = mass[order], ratio[order]
        # Ratios that differ by rounding alone are one; the smaller stands for both: less is left.
        starts = np.flatnonzero(np.diff(ratio, prepend=-np.inf) > 1e-12 * (1 + np.abs(ratio)))
        joined = np.logaddexp.reduceat(mass, starts) if starts.size else mass
        return Atoms(joined, ratio[starts], 1 - kept)


@dataclasses.dataclass(frozen=True)
class Mask:
    """Replaces a token by a mask with probability `beta`.

    Attributes:
        beta: In [0, 1]. The mask is no token that an attack can write.

    >>> Mask(0.9).atoms(2).lost.round(4)
    np.float64(0.19)
    """

    beta: float

    def __post_init__(self):
        object.__setattr__(self, "beta", _chance(self.beta))

    def atoms(self, num_edits: int) -> Atoms:
        """The law of the ratio: 1 where every changed token is masked, else 0."""
        check_edits(self, num_edits=num_edits)
        return _all_or_nothing(self.beta**num_edits)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Keeps `keep` tokens of `length`, drawn without replacement, and masks the others.

    Reference: Levine, Feizi (2020), https://arxiv.org/abs/1911.09272; Zeng et al. (2023),
    https://arxiv.org/abs/2105.03743.

    >>> Ablation(5, 50).atoms(1).lost.round(4)
    np.float64(0.1)
    """

    keep: int
    length: int

    def __post_init__(self):
        _checks.integer(1, keep=self.keep, length=self.length)
        if self.keep > self.length:
            raise ValueError(f"keep is {self.keep}; it must be at most the length {self.length}.")

    def atoms(self, num_edits: int) -> Atoms:
        """The law of the ratio: 1 where no changed token is kept, else 0."""
        check_edits(self, num_edits=num_edits)
        fewer, more = sorted((num_edits, self.keep))
        taken = np.arange(fewer, dtype=np.float64)  # none of the fewer is among the more
        shares = np.maximum(self.length - more - taken, 0) / (self.length - taken)
        return _all_or_nothing(float(np.prod(shares)))


def check_edits(kernel, **named) -> None:
    """That it is a kernel, and that so many tokens can change, by the name of that argument."""
    if not hasattr(kernel, "atoms") or isinstance(kernel, type):
        raise ValueError(f"kernel is {kernel!r}; it must be one of lipjax.smoothing.kernels.")
    _checks.integer(0, **named)
    ((name, value),) = named.items()
    if isinstance(kernel, Categorical) and value > len(kernel.sizes):
        raise ValueError(f"{name} is {value}; it must be at most the {len(kernel.sizes)} columns.")
    if isinstance(kernel, Ablation) and value > kernel.length:
        raise ValueError(f"{name} is {value}; it must be at most the length {kernel.length}.")


def _chance(beta) -> float:
    """The chance in float64: powers of a narrower one would be rounded to its type."""
    if np.ndim(beta):
        raise ValueError(f"beta has shape {np.shape(beta)}; it must be one number, for all tokens.")
    _checks.within(0.0, 1.0, beta=beta)
    return float(beta)


def _all_or_nothing(unseen: float) -> Atoms:
    """Ratio 1 with that probability, else 0."""
    if unseen == 0:
        return Atoms(np.zeros(0), np.zeros(0), 1.0)
    return Atoms(np.log([unseen]), np.zeros(1), np.float64(1 - unseen))
