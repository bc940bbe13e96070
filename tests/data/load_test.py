import pickle
import subprocess
import sys

import numpy as np
import pytest

from lipjax import data

FILES = ["mnist", "fashion_mnist", "cifar10", "cifar100"]


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"name is 'imagenet'.*digits.*cifar100"):
        data.load("imagenet")


def test_names_are_all_there_is():
    assert set(data.NAMES) == {"digits", *FILES}


@pytest.mark.every
@pytest.mark.parametrize("name", FILES)
def test_without_a_directory_the_error_says_how_to_name_one(name, monkeypatch):
    monkeypatch.delenv("LIPJAX_DATA", raising=False)
    with pytest.raises(ValueError, match=r"data_dir is None.*https?://.*Set data_dir or LIPJAX_"):
        data.load(name)


@pytest.mark.every
@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named_with_their_origin(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is missing; expected.*https?://") as error:
        data.load(name, data_dir=tmp_path)
    assert str(tmp_path) in str(error.value) and "LIPJAX_DATA" in str(error.value)


def test_the_environment_names_the_directory_and_an_argument_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("LIPJAX_DATA", str(tmp_path / "from-environment"))
    with pytest.raises(FileNotFoundError, match="from-environment"):
        data.load("mnist")
    with pytest.raises(FileNotFoundError, match="from-argument"):
        data.load("mnist", data_dir=tmp_path / "from-argument")


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_unpickled(name, tmp_path):
    """A pickle in the place of every file is refused as damaged, and its payload never runs."""
    witness = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    content = pickle.dumps(Payload())
    pickle.loads(content).close()
    assert witness.exists()  # the payload is a live one
    witness.unlink()
    for file in (
        "MNIST/raw/train-images-idx3-ubyte",
        "FashionMNIST/raw/train-images-idx3-ubyte",
        "cifar-10-batches-bin/data_batch_1.bin",
        "cifar-100-binary/train.bin",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        data.load(name, data_dir=tmp_path)
    assert not witness.exists()


def test_importing_lipjax_data_does_not_import_scikit_learn():
    code = "import sys, lipjax.data; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folder", "shape", "mean", "std"),
    [
        ("mnist", "MNIST/raw", (28, 28, 1), [0.1307], [0.3081]),
        ("fashion_mnist", "FashionMNIST/raw", (28, 28, 1), [0.2860], [0.3530]),
        (
            "cifar10",
            "cifar-10-batches-bin",
            (32, 32, 3),
            [0.4914, 0.4822, 0.4465],
            [0.2470, 0.2435, 0.2616],
        ),
        (
            "cifar100",
            "cifar-100-binary",
            (32, 32, 3),
            [0.5071, 0.4865, 0.4409],
            [0.2673, 0.2564, 0.2762],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Pixel-exactness is not verified")
def test_the_real_data_have_their_published_statistics(name, folder, shape, mean, std, real_data):
    dataset = data.load(name, data_dir=real_data(folder))
    for split, count in (
        (dataset.train, 50_000 if "cifar" in name else 60_000),
        (dataset.test, 10_000),
    ):
        assert split.images.shape == (count, *shape) and split.images.dtype == np.uint8
        assert split.labels.shape == (count,) and split.labels.dtype == np.int32
        counts = np.bincount(split.labels, minlength=dataset.num_classes)
        if name != "mnist":
            np.testing.assert_array_equal(counts, count // dataset.num_classes)
    if name == "mnist":
        assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    histograms = [
        np.bincount(dataset.train.images[..., c].ravel(), minlength=256) for c in range(shape[2])
    ]
    levels = np.arange(256) / dataset.max_value
    means = np.array([h @ levels / h.sum() for h in histograms])
    deviations = np.array(
        [np.sqrt(h @ levels**2 / h.sum() - m**2) for h, m in zip(histograms, means)]
    )
    np.testing.assert_allclose(means, mean, atol=1e-4)
    np.testing.assert_allclose(deviations, std, atol=1e-4)


@pytest.mark.data
def test_what_is_noted_about_cifar10_was_warned_about(real_data, recwarn):
    notes = data.load("cifar10", data_dir=real_data("cifar-10-batches-bin")).notes
    assert [str(warning.message) for warning in recwarn] == list(notes)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")]
)
def test_the_original_files_leave_no_note(name, folder, real_data, recwarn):
    assert data.load(name, data_dir=real_data(folder)).notes == ()
    assert not recwarn
