"""The version of dgjax, in the one place that the build reads too."""

__version__ = "0.2.0"

__all__ = ["__version__"]
