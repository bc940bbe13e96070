import sys

import numpy as np
import pytest

from lipjax.data.digits import read_digits


def test_the_split_is_the_one_that_is_published():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    expected = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    digits = read_digits()
    found = (digits.train.images, digits.test.images, digits.train.labels, digits.test.labels)
    for array, reference in zip(found, expected):
        np.testing.assert_array_equal(array.reshape(reference.shape), reference)


def test_types_and_ranges():
    digits = read_digits()
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert digits.test.images.shape == (360, 8, 8, 1)
    for split in (digits.train, digits.test):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert (split.images.min(), split.images.max()) == (0, digits.max_value) == (0, 16)
        assert set(split.labels) == set(range(digits.num_classes))
    assert digits.notes == ()


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "sklearn":
                raise ModuleNotFoundError(f"No module named {name!r}", name="sklearn")

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"pip install 'lipjax\[data\]'"):
        read_digits()
