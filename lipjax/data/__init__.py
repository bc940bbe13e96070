"""Data sets, the order in which they are seen, and augmentation.

NumPy on the host, device arrays from `to_unit` on. Nothing is ever unpickled or downloaded.

>>> digits = load("digits")
>>> rest, held = hold_out(digits.train, fraction=0.2, seed=0)
>>> len(rest.labels), len(held.labels), len(digits.test.labels)
(1150, 287, 360)
"""

from lipjax import _checks
from lipjax.data import augment as augment
from lipjax.data import color as color
from lipjax.data.batches import batch_indices as batch_indices
from lipjax.data.batches import eval_batches as eval_batches
from lipjax.data.batches import hold_out as hold_out
from lipjax.data.batches import num_steps as num_steps
from lipjax.data.cifar import read_cifar10, read_cifar100
from lipjax.data.dataset import Dataset as Dataset
from lipjax.data.dataset import Split as Split
from lipjax.data.dataset import to_unit as to_unit
from lipjax.data.digits import read_digits
from lipjax.data.idx import read_fashion_mnist, read_mnist

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
"""What `load` reads."""

_FROM_FILES = {
    "mnist": read_mnist,
    "fashion_mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
}


def load(name: str, *, data_dir=None) -> Dataset:
    """One of the data sets in `NAMES`, verified.

    Args:
        name: `"digits"` comes with scikit-learn; the others are read from files in their
            published formats: `MNIST/raw/`, `FashionMNIST/raw/`, `cifar-10-batches-bin/` and
            `cifar-100-binary/`.
        data_dir: The directory that contains those folders; the environment variable LIPJAX_DATA
            when None. Not used for the digits.

    Returns:
        `Dataset`. Structure and counts have been checked; a checksum that differs from the
        original's is a Python warning and an entry in `notes`.

    Raises:
        ValueError: The name is unknown, no directory is named, or a file is damaged.
        FileNotFoundError: A file is missing.
        ImportError: The digits are asked for and scikit-learn is not installed.

    >>> load("digits").max_value
    16
    """
    _checks.one_of(NAMES, name=name)
    return read_digits() if name == "digits" else _FROM_FILES[name](data_dir)
