"""Networks `net(x, t, cond) -> out` on one sample, as Flax NNX modules: pytrees of weights."""

from dgjax.networks.autoencoder import AutoencoderKL
from dgjax.networks.dit import DiT
from dgjax.networks.edm_dhariwal import DhariwalUNet
from dgjax.networks.edm_song import SongUNet
from dgjax.networks.identity_autoencoder import Pixels, pixels
from dgjax.networks.mlp import MLP
from dgjax.networks.unet import UNet
from dgjax.networks.unet2d import UNet2D

__all__ = [
    "MLP",
    "AutoencoderKL",
    "DhariwalUNet",
    "DiT",
    "Pixels",
    "SongUNet",
    "UNet",
    "UNet2D",
    "pixels",
]
