"""The version of the three packages: one distribution holds them."""

__version__ = "0.1.0"
