"""The rounded normal law in whole numbers, to 2^-64: its table, and the cells that draw from it.

Walker's alias method: Walker (1977), https://doi.org/10.1145/355744.355749.
"""

import decimal
import functools

import numpy as np


@functools.lru_cache(maxsize=8)
def alias(sigma: float, levels: int):
    """Cells of equal chance, in each of which a threshold parts two integers, exactly.

    Returns `uint32[2^bits, 3]`, thresholds of 64 - bits bits in two words and the places, in the table,
    of the integers below and above it; and bits.
    """
    ends = [0, *table(sigma, levels), 2**64]
    mass = [b - a for a, b in zip(ends, ends[1:])]
    bits = max(1, (len(mass) - 1).bit_length())
    mass += [0] * (2**bits - len(mass))
    whole = 2 ** (64 - bits)
    threshold, above = [0] * len(mass), list(range(len(mass)))
    small = [i for i, m in enumerate(mass) if m < whole]
    large = [i for i, m in enumerate(mass) if m > whole]
    while small:  # an integer with less than a cell shares it with one that has more
        i, j = small.pop(), large[-1]
        threshold[i], above[i] = mass[i], j
        mass[j] -= whole - mass[i]
        if mass[j] <= whole:
            large.pop()
        if mass[j] < whole:
            small.append(j)
    rows = [
        (t >> 32, t & 0xFFFFFFFF, i << 16 | j) for i, (t, j) in enumerate(zip(threshold, above))
    ]
    return np.array(rows, np.uint64).astype(np.uint32), bits


@functools.lru_cache(maxsize=8)
def table(sigma: float, levels: int):
    """`2^64 P(N <= i)` for i from -R to R - 1 as integers, N the rounded normal number."""
    with decimal.localcontext() as context:
        context.prec = 60
        scale = decimal.Decimal(sigma) * levels
        positive = []
        i = 0
        while True:  # P(N <= i) for i = 0, 1, ...: at (i + 1/2) / scale
            tail = _upper_tail((2 * i + 1) / (2 * scale))
            positive.append(int((1 - tail) * 2**64))
            if tail * 2**65 < 1:
                break
            i += 1
    values = [2**64 - v for v in reversed(positive)] + positive
    return tuple(min(v, 2**64 - 1) for v in values)


def _upper_tail(x: decimal.Decimal) -> decimal.Decimal:
    """`P(Z > x)` for x at least 0, to 30 digits: a series of positive terms about zero."""
    term = total = x
    k = 1
    square = x * x
    while term > total * decimal.Decimal("1e-55"):
        term = term * square / (2 * k + 1)
        total += term
        k += 1
    pi = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    return decimal.Decimal("0.5") - total * (-square / 2).exp() / (2 * pi).sqrt()
