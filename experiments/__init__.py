"""Experiments: short programs over the library, made to be read and copied."""
