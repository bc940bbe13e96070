"""CIFAR-10 and CIFAR-100, read from the binary version of their files.

A record is one label byte (CIFAR-100: the coarse label, then the fine one) and 3072 pixel bytes,
a red, a green and a blue plane of 32 rows; the readers return NHWC. The pickled Python version is
never read.

The page of the data sets publishes a checksum of each archive only:
c32a1d4ab5d03f1284b67883e8d87530 for cifar-10-binary.tar.gz and 03b5dce01913d631647c71ecec9e9cb8
for cifar-100-binary.tar.gz. The sums of the extracted CIFAR-10 files are those that independent
projects check together with the archive's. For the CIFAR-100 files no such agreement was found:
there the structure and the counts are verified, the pixels are not, and `Dataset.notes` says so.

Reference: Krizhevsky (2009), https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lipjax import _checks
from lipjax.data import _files
from lipjax.data.dataset import Dataset, Split

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR10 = _files.Origin(
    "CIFAR-10",
    "cifar-10-batches-bin",
    f"cifar-10-binary.tar.gz at {_PAGE} (the binary version; the pickled one is never read)",
)
CIFAR100 = _files.Origin(
    "CIFAR-100",
    "cifar-100-binary",
    f"cifar-100-binary.tar.gz at {_PAGE} (the binary version; the pickled one is never read)",
)
CIFAR10_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)
CIFAR100_NOTE = (
    "CIFAR-100: structure and counts are verified, pixel-exactness is not: the published md5 "
    "03b5dce01913d631647c71ecec9e9cb8 is that of cifar-100-binary.tar.gz and cannot be compared "
    "with extracted files."
)


def read_cifar10(
    data_dir=None,
    *,
    num_train: int = 50_000,
    num_test: int = 10_000,
    md5: Mapping[str, str] | None = CIFAR10_MD5,
) -> Dataset:
    """CIFAR-10 from `data_dir/cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin`.

    Args:
        data_dir: The data directory; the environment variable LIPJAX_DATA when None.
        num_train: Number of images the five training files must hold together.
        num_test: Number of images the test file must hold.
        md5: The md5 sum of each file; None compares nothing.

    Returns:
        `Dataset` with images `uint8[n, 32, 32, 3]`. A sum that differs from the original's is a
        Python warning and an entry in `notes`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: No directory is named, `num_train` is not a multiple of 5, or a file is
            damaged: a wrong size, a label out of range, a class with too many or too few images.
    """
    _checks.integer(1, num_train=num_train, num_test=num_test)
    if num_train % 5:
        raise ValueError(f"num_train is {num_train}; it must be a multiple of 5, one part a file.")
    folder = _files.folder(data_dir, CIFAR10)
    parts, sums = [], {}
    for file in CIFAR10_MD5:
        count = num_test if file == "test_batch.bin" else num_train // 5
        labels, images, sums[file] = _records(folder / file, count, (10,), CIFAR10)
        parts.append((images, labels[0]))
    images, labels = (np.concatenate(each) for each in zip(*parts[:-1]))
    _files.check_balanced(folder / "data_batch_[1-5].bin", labels, 10, CIFAR10)
    _files.check_balanced(folder / "test_batch.bin", parts[-1][1], 10, CIFAR10)
    return Dataset(
        name="cifar10",
        train=Split(images, labels),
        test=Split(*parts[-1]),
        num_classes=10,
        max_value=255,
        class_names=CIFAR10_CLASSES,
        notes=_files.compare(sums, md5, CIFAR10),
    )


def read_cifar100(
    data_dir=None,
    *,
    num_train: int = 50_000,
    num_test: int = 10_000,
    md5: Mapping[str, str] | None = None,
) -> Dataset:
    """CIFAR-100 with its fine labels, from `data_dir/cifar-100-binary/{train,test}.bin`.

    Arguments, result and errors as in `read_cifar10`, with 100 classes. Without `md5`, `notes`
    says that the pixels were not verified.
    """
    _checks.integer(1, num_train=num_train, num_test=num_test)
    folder = _files.folder(data_dir, CIFAR100)
    splits, sums = [], {}
    for file, count in (("train.bin", num_train), ("test.bin", num_test)):
        labels, images, sums[file] = _records(folder / file, count, (20, 100), CIFAR100)
        _files.check_balanced(folder / file, labels[1], 100, CIFAR100)
        splits.append(Split(images, labels[1]))
    return Dataset(
        name="cifar100",
        train=splits[0],
        test=splits[1],
        num_classes=100,
        max_value=255,
        class_names=CIFAR100_CLASSES,
        notes=(CIFAR100_NOTE,) if md5 is None else _files.compare(sums, md5, CIFAR100),
    )


def _records(path: Path, count: int, label_ranges: tuple[int, ...], origin):
    """The label columns, the NHWC images and the md5 sum of one file."""
    width = len(label_ranges) + 3072
    expected = f"{count} records of {width} bytes ({count * width} bytes)"
    content = _files.read(_files.find([path], expected, origin), expected, origin)
    if len(content) != count * width:
        raise _files.damaged(path, expected, f"{len(content)} bytes", origin)
    records = np.frombuffer(content, np.uint8).reshape(count, width)
    labels = [records[:, i].astype(np.int32) for i in range(len(label_ranges))]
    for column, num_classes in zip(labels, label_ranges):
        _files.check_labels(path, column, num_classes, origin)
    planes = records[:, len(label_ranges) :].reshape(count, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return labels, images, _files.md5(content)
