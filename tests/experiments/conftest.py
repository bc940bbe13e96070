"""Runs train on one device; those of devices_test.py take all eight."""

import pytest

from experiments import setup


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Eight emulated devices on a few cores compile longer programs, and run them no faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "mesh", lambda config: None)
        yield
