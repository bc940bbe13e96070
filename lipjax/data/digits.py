"""scikit-learn's 8 x 8 handwritten digits: the data set that needs no download.

1797 images with values 0 to 16, the test part of the Optical Recognition of Handwritten Digits
set, split 80/20 once and for all: `train_test_split(test_size=0.2, stratify=labels,
random_state=0)`, 1437 training and 360 test images.

Reference: Alpaydin and Kaynak (1998), https://doi.org/10.24432/C50P49.
"""

import numpy as np

from lipjax.data.dataset import Dataset, Split


def read_digits() -> Dataset:
    """The digits as a `Dataset` with images `uint8[n, 8, 8, 1]` and `max_value` 16.

    Raises:
        ImportError: scikit-learn is not installed; the message names the extra that brings it.

    >>> digits = read_digits()
    >>> digits.train.images.shape, digits.test.images.shape
    ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise ImportError(
            "The digits ship with scikit-learn, which is not installed: pip install 'lipjax[data]'."
        ) from error
    values, labels = load_digits(return_X_y=True)
    images = values.astype(np.uint8).reshape(-1, 8, 8, 1)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset(
        name="digits",
        train=Split(train_images, train_labels),
        test=Split(test_images, test_labels),
        num_classes=10,
        max_value=16,
        class_names=tuple("0123456789"),
    )
