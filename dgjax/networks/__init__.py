"""Networks `net(x, t, cond) -> out` on one sample, as Flax NNX modules: pytrees of weights."""

from dgjax.networks.mlp import MLP
from dgjax.networks.unet import UNet

__all__ = ["MLP", "UNet"]
