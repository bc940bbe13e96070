"""Runs train on one device; those of devices_test.py take all eight."""

import pytest

from experiments import setup


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Eight emulated devices on a few cores compile longer programs, and run them no faster."""
    monkeypatch.setattr(setup, "mesh", lambda config: None)
