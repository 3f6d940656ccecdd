"""dgjax: sample diffusion and flow models at a log-density you choose, and measure it."""

__version__ = "0.1.0"
