"""Tiny files in the published layouts, and the real ones where LIPJAX_DATA names them."""

import gzip
import os
import pathlib
import struct

import numpy as np
import pytest


@pytest.fixture
def real_data():
    """`real_data(folder)`: the data directory, if it contains that folder; otherwise a skip."""
    named = os.environ.get("LIPJAX_DATA")

    def directory(folder):
        if not named:
            pytest.skip("LIPJAX_DATA is not set")
        if not (pathlib.Path(named) / folder).is_dir():
            pytest.skip(f"LIPJAX_DATA has no folder {folder}")
        return named

    return directory


@pytest.fixture
def idx_bytes():
    """`idx_bytes(array)`: the array as the content of an IDX file."""

    def encode(array):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        return header + array.tobytes()

    return encode


@pytest.fixture
def write_idx(tmp_path, idx_bytes):
    """`write_idx("MNIST", compress=True)`: 20 training and 10 test images; returns the arrays."""

    def write(title, compress=True):
        folder = tmp_path / title / "raw"
        folder.mkdir(parents=True)
        generator = np.random.default_rng(0)
        arrays = {
            "train-images-idx3-ubyte": generator.integers(0, 256, (20, 28, 28), np.uint8),
            "train-labels-idx1-ubyte": np.tile(np.arange(10, dtype=np.uint8), 2),
            "t10k-images-idx3-ubyte": generator.integers(0, 256, (10, 28, 28), np.uint8),
            "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8)[::-1],
        }
        for name, array in arrays.items():
            content = idx_bytes(array)
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
        return arrays

    return write


@pytest.fixture
def write_records(tmp_path):
    """`write_records(file, labels)`: random pixels behind the label columns; returns NHWC."""

    def write(file, *labels):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        images = np.random.default_rng(0).integers(0, 256, (len(labels[0]), 32, 32, 3), np.uint8)
        with path.open("wb") as stream:
            for i, image in enumerate(images):
                stream.write(bytes(column[i] for column in labels))
                for channel in range(3):
                    stream.write(image[:, :, channel].tobytes())
        return images

    return write
