"""Marks of single cases of a test."""

import pytest


def slow(*values):
    """A case of the long form: another one of the same test runs always."""
    return pytest.param(*values, marks=pytest.mark.slow)
