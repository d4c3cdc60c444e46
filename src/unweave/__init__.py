"""Take a trained network apart into parts a person can read, and check what is said of them."""

from unweave._version import __version__

__all__ = ["__version__"]
