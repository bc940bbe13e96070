"""MNIST and Fashion-MNIST, read from IDX files (gzip or plain).

An IDX file is a big-endian header, two zero bytes, the type (8 is uint8), the number of axes and
one int32 length an axis, followed by the values in row-major order.

The checksums are those of the uncompressed content, so a file that was unpacked or compressed
anew is still known to be the original. They were computed from the published gz files, whose md5
sums are, in the order of `FILES`, for MNIST f68b3c2dcbeaaa9fbdd348bbdeb94873,
d53e105ee54ea40749a09fcbcd1e9432, 9fb629c4189551a2d022fa330f9573f3,
ec29112dd5afa0611ce80d1b7f02629c, and for Fashion-MNIST 8d4fb7e6c68d591d4c3dfef9ec88bf0d,
25c81989df183df01b3e8a0aad5dffbe, bef4ecab320f06d8554ea6380940ec79,
bb300cfdad3c16e7a12a480ee83cd310.

References: LeCun, Cortes and Burges (1998), http://yann.lecun.com/exdb/mnist/; Xiao, Rasul and
Vollgraf (2017), https://arxiv.org/abs/1708.07747.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lipjax import _checks
from lipjax.data import _files
from lipjax.data.dataset import Dataset, Split

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST = _files.Origin(
    "MNIST",
    "MNIST/raw",
    "http://yann.lecun.com/exdb/mnist/ (mirror: https://ossci-datasets.s3.amazonaws.com/mnist/)",
)
FASHION_MNIST = _files.Origin(
    "Fashion-MNIST", "FashionMNIST/raw", "https://github.com/zalandoresearch/fashion-mnist"
)
_IDX_FILE = _files.Origin("an IDX file", "", "http://yann.lecun.com/exdb/mnist/")
MNIST_MD5 = dict(
    zip(
        FILES,
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    )
)
FASHION_MNIST_MD5 = dict(
    zip(
        FILES,
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    )
)
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_mnist(
    data_dir=None,
    *,
    num_train: int = 60_000,
    num_test: int = 10_000,
    md5: Mapping[str, str] | None = MNIST_MD5,
) -> Dataset:
    """MNIST from `data_dir/MNIST/raw/*-ubyte[.gz]`.

    Args:
        data_dir: The data directory; the environment variable LIPJAX_DATA when None.
        num_train: Number of training images the files must hold.
        num_test: Number of test images the files must hold.
        md5: The md5 sum of the uncompressed content of each of `FILES`; None compares nothing.

    Returns:
        `Dataset` with images `uint8[n, 28, 28, 1]`. A sum that differs from the original's is a
        Python warning and an entry in `notes`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: No directory is named, or a file is damaged: not gzip to its end, a wrong
            magic number, size or count, a label out of range.
    """
    return _read("mnist", MNIST, data_dir, num_train, num_test, md5)


def read_fashion_mnist(
    data_dir=None,
    *,
    num_train: int = 60_000,
    num_test: int = 10_000,
    md5: Mapping[str, str] | None = FASHION_MNIST_MD5,
) -> Dataset:
    """Fashion-MNIST from `data_dir/FashionMNIST/raw/*-ubyte[.gz]`.

    Arguments, result and errors as in `read_mnist`; besides, each class must have a tenth of
    each split.
    """
    return _read("fashion_mnist", FASHION_MNIST, data_dir, num_train, num_test, md5)


def read_idx(path, *, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The array in an IDX file of unsigned bytes.

    Args:
        path: The file, gzip or plain.
        shape: The shape it must have; any when None.

    Returns:
        `uint8[shape]`.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is damaged, holds another type, or has another shape.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "tiny-idx1-ubyte"
    ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     read_idx(file)
    array([7, 8, 9], dtype=uint8)
    """
    expected = "an IDX array of unsigned bytes"
    path = _files.find([Path(path)], expected, _IDX_FILE)
    return _parse(path, _files.read(path, expected, _IDX_FILE), shape, _IDX_FILE)


def _read(name, origin, data_dir, num_train, num_test, md5) -> Dataset:
    _checks.integer(1, num_train=num_train, num_test=num_test)
    folder = _files.folder(data_dir, origin)
    shapes = ((num_train, 28, 28), (num_train,), (num_test, 28, 28), (num_test,))
    arrays, sums = [], {}
    for file, shape in zip(FILES, shapes):
        expected = f"an IDX array of unsigned bytes of shape {shape}"
        path = _files.find([folder / f"{file}.gz", folder / file], expected, origin)
        content = _files.read(path, expected, origin)
        array = _parse(path, content, shape, origin)
        if array.ndim == 1:
            _files.check_labels(path, array, 10, origin)
            if origin is FASHION_MNIST:
                _files.check_balanced(path, array, 10, origin)
        arrays.append(array)
        sums[file] = _files.md5(content)
    images, labels, test_images, test_labels = arrays
    return Dataset(
        name=name,
        train=Split(images[..., None], labels.astype(np.int32)),
        test=Split(test_images[..., None], test_labels.astype(np.int32)),
        num_classes=10,
        max_value=255,
        class_names=FASHION_MNIST_CLASSES if origin is FASHION_MNIST else tuple("0123456789"),
        notes=_files.compare(sums, md5, origin),
    )


def _parse(path: Path, content: bytes, shape, origin) -> np.ndarray:
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        expected = "an IDX header (the bytes 0, 0, 8 and the number of axes)"
        found = f"the bytes {list(content[:4])}"
        raise _files.damaged(path, expected, found, origin)
    start = 4 + 4 * content[3]
    if len(content) < start:
        found = f"{len(content)} bytes"
        raise _files.damaged(path, f"a header of {start} bytes", found, origin)
    found_shape = struct.unpack(f">{content[3]}I", content[4:start])
    if shape is not None and found_shape != shape:
        raise _files.damaged(path, f"the shape {shape}", f"{found_shape} in its header", origin)
    size = start + math.prod(found_shape)
    if len(content) != size:
        expected = f"{size} bytes for the shape {found_shape}"
        raise _files.damaged(path, expected, f"{len(content)}", origin)
    try:
        return np.frombuffer(content, np.uint8, offset=start).reshape(found_shape).copy()
    except ValueError as error:  # more axes than NumPy has, or lengths beside a zero
        raise _files.damaged(path, "a shape that fits", f"{found_shape}", origin) from error
