"""Files that may be missing, damaged or altered: every message names the file and its origin."""

import gzip
import hashlib
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

VARIABLE = "LIPJAX_DATA"
"""The environment variable that names the data directory where no argument does."""


class Origin(NamedTuple):
    """Where a data set comes from and where its files lie below the data directory.

    Attributes:
        title: What people call it.
        folder: Its folder below the data directory; empty for files that are read by their path.
        source: What to get and where, in words.
    """

    title: str
    folder: str
    source: str

    def advice(self) -> str:
        """The last sentences of every error: the origin and the two ways to name a directory."""
        origin = f"{self.title} comes from {self.source}."
        if not self.folder:  # read by its path
            return origin
        return f"{origin} Set data_dir or {VARIABLE} to the directory that contains {self.folder}/."


def folder(data_dir, origin: Origin) -> Path:
    """The folder of a data set below `data_dir`, or below what `LIPJAX_DATA` names."""
    named = data_dir if data_dir is not None else os.environ.get(VARIABLE)
    if not named:
        raise ValueError(
            f"data_dir is {data_dir!r} and {VARIABLE} is not set, so the files of {origin.title} "
            f"cannot be found. {origin.advice()}"
        )
    return Path(named).expanduser() / origin.folder


def find(paths, expected: str, origin: Origin) -> Path:
    """The first of `paths` that is a file; `expected` says in words what it should hold."""
    for path in paths:
        if path.is_file():
            return path
    names = " or ".join(str(path) for path in paths)
    raise FileNotFoundError(
        f"{names} is missing; expected a file with {expected}. {origin.advice()}"
    )


def read(path: Path, expected: str, origin: Origin) -> bytes:
    """The content of a file, decompressed if it is gzip (by its first bytes, not its name)."""
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(path, expected, f"a gzip stream that breaks off ({error})", origin) from error


def damaged(path: Path, expected: str, found: str, origin: Origin) -> ValueError:
    """The error for a file that is not what it should be."""
    return ValueError(f"{path} is damaged: expected {expected}, found {found}. {origin.advice()}")


def check_labels(path: Path, labels, num_classes: int, origin: Origin) -> None:
    """Every label is a class."""
    wrong = np.flatnonzero(labels >= num_classes)
    if wrong.size:
        found = f"the label {labels[wrong[0]]} at position {wrong[0]}"
        raise damaged(path, f"labels in [0, {num_classes})", found, origin)


def check_balanced(path: Path, labels, num_classes: int, origin: Origin) -> None:
    """Every class has the same number of examples."""
    counts = np.bincount(labels, minlength=num_classes)
    if np.any(counts * num_classes != len(labels)):
        expected = f"{len(labels) / num_classes:g} examples of each of {num_classes} classes"
        raise damaged(path, expected, f"between {counts.min()} and {counts.max()}", origin)


def md5(content: bytes) -> str:
    """The md5 sum, as the data sets' own pages give it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def compare(found: Mapping[str, str], original: Mapping[str, str] | None, origin: Origin):
    """Notes on the sums that differ from the original's, each given as a warning as well."""
    if original is None:
        return ()
    differing = [
        f"{name} (md5 {total}, original {original.get(name, 'unknown')})"
        for name, total in found.items()
        if total != original.get(name)
    ]
    if not differing:
        return ()
    note = (
        f"{origin.title}: {len(differing)} of {len(found)} files have the right structure and "
        f"counts, but a checksum that differs from the original's: {', '.join(differing)}. "
        "Pixel-exactness is not verified; say so where a result on this copy is published."
    )
    warnings.warn(note, stacklevel=2)
    return (note,)
