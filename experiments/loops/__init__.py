"""Whole training loops, made to be copied and changed."""
