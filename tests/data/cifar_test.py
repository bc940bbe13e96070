import hashlib

import numpy as np
import pytest

from lipjax.data import cifar

TRAIN_FILES = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
TEST_FILE = "cifar-10-batches-bin/test_batch.bin"
SMALL = {"num_train": 50, "num_test": 20}
SMALL100 = {"num_train": 200, "num_test": 100}


@pytest.fixture
def write_cifar10(write_records):
    def write():
        train = [
            write_records(file, np.roll(np.arange(10), i)) for i, file in enumerate(TRAIN_FILES)
        ]
        return np.concatenate(train), write_records(TEST_FILE, np.arange(20) % 10)

    return write


@pytest.fixture
def write_cifar100(write_records):
    def write():
        fine = np.arange(200) % 100
        train = write_records("cifar-100-binary/train.bin", fine // 5, fine)
        return train, write_records("cifar-100-binary/test.bin", fine[:100] // 5, fine[:100])

    return write


def test_cifar10_is_read_in_order_as_nhwc(write_cifar10, tmp_path):
    train, test = write_cifar10()
    dataset = cifar.read_cifar10(tmp_path, **SMALL, md5=None)
    np.testing.assert_array_equal(dataset.train.images, train)
    np.testing.assert_array_equal(dataset.test.images, test)
    expected = np.concatenate([np.roll(np.arange(10), i) for i in range(5)])
    np.testing.assert_array_equal(dataset.train.labels, expected)
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 10)
    assert dataset.train.labels.dtype == np.int32 and dataset.train.images.flags["C_CONTIGUOUS"]
    assert (dataset.num_classes, dataset.max_value) == (10, 255)
    assert dataset.class_names[3] == "cat" and len(dataset.class_names) == 10


def test_cifar100_has_its_fine_labels(write_cifar100, tmp_path):
    train, test = write_cifar100()
    dataset = cifar.read_cifar100(tmp_path, **SMALL100)
    np.testing.assert_array_equal(dataset.train.images, train)
    np.testing.assert_array_equal(dataset.test.images, test)
    np.testing.assert_array_equal(dataset.train.labels, np.arange(200) % 100)
    assert dataset.num_classes == 100
    assert list(dataset.class_names) == sorted(set(dataset.class_names))
    assert len(dataset.class_names) == 100


def test_cifar100_says_that_its_pixels_are_not_verified(write_cifar100, tmp_path, recwarn):
    write_cifar100()
    [note] = cifar.read_cifar100(tmp_path, **SMALL100).notes
    assert "pixel-exactness is not" in note
    sums = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest()
        for path in (tmp_path / "cifar-100-binary").iterdir()
    }
    assert cifar.read_cifar100(tmp_path, **SMALL100, md5=sums).notes == ()
    assert not recwarn


def test_a_differing_checksum_is_a_warning_and_a_note(write_cifar10, tmp_path, recwarn):
    write_cifar10()
    sums = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest()
        for path in (tmp_path / "cifar-10-batches-bin").iterdir()
    }
    assert cifar.read_cifar10(tmp_path, **SMALL, md5=sums).notes == ()
    assert not recwarn
    changed = tmp_path / TRAIN_FILES[2]
    content = bytearray(changed.read_bytes())
    content[100] ^= 1  # one bit of one pixel
    changed.write_bytes(content)
    with pytest.warns(UserWarning, match=r"1 of 6 files.*data_batch_3\.bin") as warned:
        dataset = cifar.read_cifar10(tmp_path, **SMALL, md5=sums)
    assert dataset.notes == (str(warned[0].message),)
    assert "Pixel-exactness is not verified" in dataset.notes[0]


@pytest.mark.every
@pytest.mark.parametrize("change", [-1, 1, -3073, 3073], ids="{:+d} bytes".format)
@pytest.mark.parametrize("file", [TRAIN_FILES[0], TRAIN_FILES[4], TEST_FILE])
def test_wrong_sizes_are_refused(file, change, write_cifar10, tmp_path):
    write_cifar10()
    path = tmp_path / file
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(
        ValueError, match=f"records of 3073 bytes.*{len(content) + change}"
    ) as error:
        cifar.read_cifar10(tmp_path, **SMALL, md5=None)
    for part in (str(path), "is damaged", "www.cs.toronto.edu", "cifar-10-batches-bin/"):
        assert part in str(error.value)


@pytest.mark.every
@pytest.mark.parametrize("file", [*TRAIN_FILES, TEST_FILE])
def test_each_missing_file_is_named(file, write_cifar10, tmp_path):
    write_cifar10()
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match="records of 3073 bytes") as error:
        cifar.read_cifar10(tmp_path, **SMALL, md5=None)
    assert str(tmp_path / file) in str(error.value)


@pytest.mark.parametrize("counts", [{}, {"num_train": 100, "num_test": 20}, {"num_train": 50}])
def test_the_counts_are_checked(counts, write_cifar10, tmp_path):
    write_cifar10()
    with pytest.raises(ValueError, match="is damaged: expected"):
        cifar.read_cifar10(tmp_path, **counts, md5=None)


def test_five_files_share_the_training_images_evenly(tmp_path):
    with pytest.raises(ValueError, match=r"num_train is 52.*multiple of 5"):
        cifar.read_cifar10(tmp_path, num_train=52)


def test_a_label_that_is_no_class_is_refused(write_cifar10, write_records, tmp_path):
    write_cifar10()
    write_records(TRAIN_FILES[1], np.array([0, 1, 2, 10, 4, 5, 6, 7, 8, 9]))
    with pytest.raises(ValueError, match=r"data_batch_2.bin is damaged.*label 10 at position 3"):
        cifar.read_cifar10(tmp_path, **SMALL, md5=None)


@pytest.mark.parametrize(("coarse", "fine", "wrong"), [(20, 0, 20), (0, 100, 100)])
def test_both_labels_of_cifar100_are_checked(
    coarse, fine, wrong, write_cifar100, write_records, tmp_path
):
    write_cifar100()
    labels = np.arange(200) % 100
    write_records("cifar-100-binary/train.bin", [coarse, *labels[1:] // 5], [fine, *labels[1:]])
    with pytest.raises(ValueError, match=f"train.bin is damaged.*label {wrong} at position 0"):
        cifar.read_cifar100(tmp_path, **SMALL100)


def test_classes_must_be_balanced(write_cifar10, write_records, tmp_path):
    write_cifar10()
    write_records(TEST_FILE, np.array([1, *range(1, 10), *range(10)]))
    with pytest.raises(ValueError, match="2 examples of each of 10 classes, found between 1 and 3"):
        cifar.read_cifar10(tmp_path, **SMALL, md5=None)


def test_cifar100_classes_must_be_balanced(write_cifar100, write_records, tmp_path):
    write_cifar100()
    labels = np.arange(200) % 100
    labels[0] = 1
    write_records("cifar-100-binary/train.bin", labels // 5, labels)
    with pytest.raises(ValueError, match="2 examples of each of 100 classes"):
        cifar.read_cifar100(tmp_path, **SMALL100)
