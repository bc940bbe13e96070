import gzip

import numpy as np
import pytest

from lipjax.data import idx

READERS = {"MNIST": idx.read_mnist, "FashionMNIST": idx.read_fashion_mnist}
TINY = {"num_train": 20, "num_test": 10}


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("title", READERS)
def test_what_was_written_is_read(title, compress, write_idx, tmp_path):
    arrays = write_idx(title, compress)
    dataset = READERS[title](tmp_path, **TINY, md5=None)
    found = (*dataset.train, *dataset.test)
    assert [array.shape for array in found] == [(20, 28, 28, 1), (20,), (10, 28, 28, 1), (10,)]
    assert [array.dtype for array in found] == [np.uint8, np.int32] * 2
    for array, written in zip(found, arrays.values()):
        np.testing.assert_array_equal(array.reshape(written.shape), written)
    assert (dataset.num_classes, dataset.max_value, dataset.notes) == (10, 255, ())
    assert len(dataset.class_names) == 10


def test_gzip_is_known_by_its_content_not_its_name(write_idx, tmp_path):
    write_idx("MNIST", compress=False)
    for path in (tmp_path / "MNIST/raw").iterdir():
        path.rename(f"{path}.gz")
    assert len(idx.read_mnist(tmp_path, **TINY, md5=None).train.labels) == 20


def test_a_differing_checksum_is_a_warning_and_a_note(write_idx, tmp_path):
    write_idx("MNIST")
    with pytest.warns(UserWarning, match="4 of 4 files.*differs from the original's") as warned:
        dataset = idx.read_mnist(tmp_path, **TINY)
    assert dataset.notes == (str(warned[0].message),)
    assert idx.MNIST_MD5["t10k-labels-idx1-ubyte"] in dataset.notes[0]


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_matching_checksums_leave_no_note(compress, write_idx, idx_bytes, tmp_path, recwarn):
    import hashlib

    arrays = write_idx("MNIST", compress)
    sums = {name: hashlib.md5(idx_bytes(array)).hexdigest() for name, array in arrays.items()}
    assert idx.read_mnist(tmp_path, **TINY, md5=sums).notes == ()
    assert not recwarn
    sums["train-labels-idx1-ubyte"] = "0" * 32
    with pytest.warns(UserWarning, match="1 of 4 files.*train-labels-idx1-ubyte"):
        assert len(idx.read_mnist(tmp_path, **TINY, md5=sums).notes) == 1


def _replace(tmp_path, title, name, content):
    path = tmp_path / title / "raw" / f"{name}.gz"
    path.write_bytes(content)
    return path


DAMAGE = {
    "truncated gzip": (lambda content: gzip.compress(content)[:-20], "gzip stream that breaks off"),
    "bytes flipped": (
        lambda content: gzip.compress(content)[:40] + b"\xff" * 40 + gzip.compress(content)[80:],
        "gzip stream that breaks off",
    ),
    "empty": (lambda content: b"", "IDX header"),
    "wrong magic": (lambda content: b"\x01" + content[1:], "IDX header"),
    "another type": (lambda content: content[:2] + b"\x0d" + content[3:], "IDX header"),
    "no shape": (lambda content: content[:7], "a header of 16 bytes, found 7 bytes"),
    "fewer values": (lambda content: content[:-1], "15696 bytes.*found 15695"),
    "more values": (lambda content: content + b"\x00", "15696 bytes.*found 15697"),
    "another shape": (
        lambda content: content[:4] + (10).to_bytes(4, "big") + content[8:],
        r"the shape \(20, 28, 28\), found \(10, 28, 28\)",
    ),
}


@pytest.mark.every
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(damage, write_idx, idx_bytes, tmp_path):
    content = idx_bytes(write_idx("MNIST")["train-images-idx3-ubyte"])
    change, message = DAMAGE[damage]
    path = _replace(tmp_path, "MNIST", "train-images-idx3-ubyte", change(content))
    with pytest.raises(ValueError, match=message) as error:
        idx.read_mnist(tmp_path, **TINY, md5=None)
    for part in (str(path), "is damaged", "http://yann.lecun.com/exdb/mnist/", "LIPJAX_DATA"):
        assert part in str(error.value)


@pytest.mark.parametrize("counts", [{"num_train": 60_000, "num_test": 10}, {"num_train": 20}])
def test_wrong_counts_are_refused(counts, write_idx, tmp_path):
    write_idx("MNIST")
    with pytest.raises(ValueError, match=r"the shape \((60000|10000), 28, 28\)"):
        idx.read_mnist(tmp_path, **counts, md5=None)


def test_a_label_that_is_no_class_is_refused(write_idx, idx_bytes, tmp_path):
    labels = write_idx("MNIST")["train-labels-idx1-ubyte"].copy()
    labels[7] = 10
    _replace(tmp_path, "MNIST", "train-labels-idx1-ubyte", idx_bytes(labels))
    with pytest.raises(ValueError, match=r"labels in \[0, 10\), found the label 10 at position 7"):
        idx.read_mnist(tmp_path, **TINY, md5=None)


def test_only_fashion_mnist_must_be_balanced(write_idx, idx_bytes, tmp_path):
    for title in READERS:
        labels = write_idx(title)["train-labels-idx1-ubyte"].copy()
        labels[0] = 1
        _replace(tmp_path, title, "train-labels-idx1-ubyte", idx_bytes(labels))
    assert idx.read_mnist(tmp_path, **TINY, md5=None).train.labels[0] == 1
    with pytest.raises(ValueError, match="2 examples of each of 10 classes, found between 1 and 3"):
        idx.read_fashion_mnist(tmp_path, **TINY, md5=None)


def test_one_missing_file_is_named_in_both_forms(write_idx, tmp_path):
    write_idx("MNIST")
    missing = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    missing.with_name(missing.name + ".gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"shape \(10,\)") as error:
        idx.read_mnist(tmp_path, **TINY, md5=None)
    assert f"{missing}.gz or {missing} is missing" in str(error.value)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (1, 2, 3, 4)])
def test_read_idx_takes_any_rank(shape, idx_bytes, tmp_path):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / "some-ubyte"
    path.write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(idx.read_idx(path, shape=shape), array)
    with pytest.raises(ValueError, match="the shape"):
        idx.read_idx(path, shape=(*shape, 1))


def test_read_idx_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        idx.read_idx(tmp_path / "nowhere")


def test_what_is_read_can_be_written_to(write_idx, tmp_path):
    write_idx("MNIST")
    images = idx.read_mnist(tmp_path, **TINY, md5=None).train.images
    images[0] = 0
    assert images[0].max() == 0


@pytest.mark.parametrize("shape", [(1,) * 65, (0, 2**32 - 1, 2**32 - 1)])
def test_impossible_shapes_name_the_file(tmp_path, shape):
    file = tmp_path / "odd-ubyte"
    header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    file.write_bytes(header + bytes(0 if 0 in shape else 1))
    with pytest.raises(ValueError, match="odd-ubyte"):
        idx.read_idx(file)
