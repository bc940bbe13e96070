"""Names of radii in tables, and files that are whole or not there."""

import signal

import pytest

from experiments import output


@pytest.mark.every
@pytest.mark.parametrize(
    "radius,name",
    [
        (0.0, "0 (clean)"),
        (36 / 255, "36/255"),
        (108 / 255, "108/255"),
        (0.2, "0.2"),
        (0.5, "0.5"),
        (1.0, "1"),
        (2.0, "2"),
        (1.58, "1.58"),
        (1e-30, "1e-30"),
        (1e30, "1e+30"),
    ],
)
def test_names_of_radii(radius, name):
    assert output._name(radius) == name


def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "report.json"
    output.write(path, b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        with pytest.raises(OSError, match="report.json'"):
            output.write(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
