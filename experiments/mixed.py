"""Data of two kinds at once, tokens and a continuous part, for `experiments.hybrid`.

    reviews   a film review (Maas et al. 2011, the short ones) and an emoji (Noto, 32 x 32): is it
              praise, and does the picture show a living being? Four classes; each half of the answer is
              in one part. The emoji of the test split are not those of the training split, but many
              come in variants (skin, hair, gender), which may lie on both sides.
    energy    heating load of buildings (Tsanas, Xifara 2012): low, middle or high, with as many training
              buildings in each; height, orientation, glazing area and its distribution are columns of
              categories, compactness and three areas are continuous. The first of the standard splits.

Continuous parts are integers, for `lipjax.smoothing.noise.IntegerGaussian`: bytes of 16 x 16 pixels, and
columns in 1024ths of their standard deviation.
"""

import collections
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

LENGTH = 128
"""Words of a review that are read."""
WORDS = 8000
"""The most frequent ones of the training reviews have a token of their own."""
PAD, UNKNOWN = 0, 1
LEVELS = 1024
"""Of a standard deviation of a continuous column."""


class Examples(NamedTuple):
    """Of one split.

    Attributes:
        tokens: `int32[n, length]`.
        values: `int32[n, m]`, times `levels`.
        labels: `int32[n]`.
    """

    tokens: np.ndarray
    values: np.ndarray
    labels: np.ndarray


class Mixed(NamedTuple):
    """Both splits and what a network must know.

    Attributes:
        train: To train on.
        test: To certify.
        classes: Their names.
        levels: What makes a value of the continuous part one.
        sizes: Values of each column, or how many tokens there are (the mask is the next one).
        silent: Tokens that say nothing: the padding and the mask.
        unit: Of the radius.
    """

    train: Examples
    test: Examples
    classes: tuple[str, ...]
    levels: int
    sizes: int | tuple[int, ...]
    silent: tuple[int, ...]
    unit: str


def load(name: str, data_dir, *, hold_out: float = 0.0) -> Mixed:
    """One of the two data sets, from `text_cls` and `emoji`, or from `uci/UCI_Datasets/energy/data`.

    Args:
        name: `"reviews"` or `"energy"`.
        data_dir: The directory with those folders.
        hold_out: Part of the training split that takes the place of the test split.

    Raises:
        ValueError: for an unknown name, or no directory.
        FileNotFoundError: a file is missing.
    """
    if data_dir is None:
        raise ValueError(
            "no data directory is named; pass --data-dir or set the environment variable LIPJAX_DATA."
        )
    data = {"reviews": _reviews, "energy": _energy}[name](Path(data_dir))
    if not hold_out:
        return data
    order = np.random.default_rng(0).permutation(len(data.train.labels))
    cut = round(len(order) * hold_out)
    parts = [Examples(*(a[i] for a in data.train)) for i in (order[cut:], order[:cut])]
    return data._replace(train=parts[0], test=parts[1])


def _reviews(folder: Path) -> Mixed:
    rng = np.random.default_rng(0)
    splits = [
        _sentences(_found(folder / "text_cls" / f"imdb_short_{part}.tsv"))
        for part in ("train", "test")
    ]
    counts = collections.Counter(word for words, _ in splits[0] for word in words)
    known = {word: i + 2 for i, (word, _) in enumerate(counts.most_common(WORDS))}
    with np.load(_found(folder / "emoji" / "noto32_rgba.npz"), allow_pickle=False) as stored:
        images, groups = stored["X"].astype(np.float64), stored["y"]
    images, groups = images[groups < 8], groups[groups < 8]
    opaque = images[..., 3:] / 255
    images = images[..., :3] * opaque + 255 * (1 - opaque)  # on white
    images = images.reshape(len(images), 16, 2, 16, 2, 3).mean((2, 4)).round().astype(np.int32)
    alive = (groups <= 2).astype(np.int32)  # smileys, people, animals and nature
    order = rng.permutation(len(images))
    pools = order[len(order) // 4 :], order[: len(order) // 4]

    def build(split, pool):
        tokens = np.full((len(split), LENGTH), PAD, np.int32)
        for row, (words, _) in zip(tokens, split):
            ids = [known.get(word, UNKNOWN) for word in words[:LENGTH]]
            row[: len(ids)] = ids
        praise = np.array([label for _, label in split], np.int32)
        picked = pool[rng.integers(len(pool), size=len(split))]
        values = images[picked].reshape(len(split), -1)
        return Examples(tokens, values, 2 * praise + alive[picked])

    size = len(known) + 2
    classes = ("complaint, thing", "complaint, being", "praise, thing", "praise, being")
    train, test = (build(split, pool) for split, pool in zip(splits, pools))
    unit = "l2 of the picture, pixels in [0, 1]"
    return Mixed(train, test, classes, 255, size, (PAD, size), unit)


def _sentences(path: Path):
    found = []
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        label, _, _, text = line.split("\t")  # praise, stars, number, review
        words = re.findall(r"[a-z']+|[0-9]+|[!?]", text.lower().replace("<br />", " "))
        found.append((words, int(label)))
    return found


def _energy(folder: Path) -> Mixed:
    folder = folder / "uci" / "UCI_Datasets" / "energy" / "data"
    table = np.loadtxt(_found(folder / "data.txt"))
    rows = [np.loadtxt(_found(folder / f"index_{p}_0.txt")).astype(int) for p in ("train", "test")]
    columns = [np.unique(table[:, j], return_inverse=True) for j in (4, 5, 6, 7)]
    tokens = np.stack([place for _, place in columns], -1).astype(np.int32)
    values, load = table[:, :4], table[:, 8]
    mean, spread = values[rows[0]].mean(0), values[rows[0]].std(0)
    values = np.round((values - mean) / spread * LEVELS).astype(np.int32)
    labels = np.searchsorted(np.quantile(load[rows[0]], [1 / 3, 2 / 3]), load).astype(np.int32)
    train, test = (Examples(tokens[r], values[r], labels[r]) for r in rows)
    sizes = tuple(len(kinds) for kinds, _ in columns)
    unit = "l2 of the continuous columns, in standard deviations"
    return Mixed(train, test, ("low", "middle", "high"), LEVELS, sizes, (), unit)


def _found(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; --data-dir must name the directory above it.")
    return path
