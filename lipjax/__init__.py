"""Neural networks whose stability is proved."""
__version__ = "0.1.0"
