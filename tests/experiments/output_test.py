"""Names of radii in tables."""

import pytest

from experiments import output


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
