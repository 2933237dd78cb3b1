"""The version of the three packages, which are one distribution."""

__version__ = "0.1.0"
