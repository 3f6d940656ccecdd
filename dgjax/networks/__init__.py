"""Neural networks, as Flax NNX modules whose arrays are the leaves of a pytree.

A network acts on one sample: `net(x, t, cond) -> out`, where `out` has the shape of `x`. Batch it
with `jax.vmap`. The parametrization decides what `t` is (a time, a time step, log(sigma)/4) and
what `out` predicts; `dgjax.field` combines the three into a model:

    net = dgjax.networks.UNet((28, 28, 1), rngs=nnx.Rngs(0))
    model = dgjax.field(net, dgjax.edm(), dgjax.preconditioned(0.5), t_min=0.002, t_max=80.0)

`MLP` and `UNet` are this library's own, and `EnergyMLP` and `EnergyUNet` make energies of them.
`UNet2D`, `UNet2DCondition` (Stable Diffusion), `SD3Transformer`, `FluxTransformer`, `DiT`,
`AutoencoderKL` and `VQModel` take the weights of diffusers, `CLIPText` and `T5Text` those of
transformers, `SongUNet`, `DhariwalUNet` and `EDM2UNet` those of EDM and EDM2; `dgjax.importing`
reads them. `torch_network` makes a network of any PyTorch module. `convolve` is a convolution for
layers of your own, whose gradients through a solve are fast on processors.
"""

from dgjax.networks.autoencoder import AutoencoderKL
from dgjax.networks.clip_text import CLIPText
from dgjax.networks.convolution import convolve
from dgjax.networks.dit import DiT
from dgjax.networks.edm2 import EDM2UNet
from dgjax.networks.edm_dhariwal import DhariwalUNet
from dgjax.networks.edm_song import SongUNet
from dgjax.networks.energy import EnergyMLP, EnergyUNet
from dgjax.networks.flux_transformer import FluxTransformer
from dgjax.networks.identity_autoencoder import IdentityAutoencoder, identity_autoencoder
from dgjax.networks.mlp import MLP
from dgjax.networks.sd3_transformer import SD3Transformer
from dgjax.networks.t5_text import T5Text
from dgjax.networks.torch_network import TorchNetwork, torch_network
from dgjax.networks.unet import UNet
from dgjax.networks.unet2d import UNet2D
from dgjax.networks.unet2d_condition import UNet2DCondition
from dgjax.networks.vq_autoencoder import VQModel

__all__ = [
    "MLP",
    "AutoencoderKL",
    "CLIPText",
    "DhariwalUNet",
    "DiT",
    "EDM2UNet",
    "EnergyMLP",
    "EnergyUNet",
    "FluxTransformer",
    "IdentityAutoencoder",
    "SD3Transformer",
    "SongUNet",
    "T5Text",
    "TorchNetwork",
    "UNet",
    "UNet2D",
    "UNet2DCondition",
    "VQModel",
    "convolve",
    "identity_autoencoder",
    "torch_network",
]
