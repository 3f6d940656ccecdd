"""The published configurations of score_sde (arXiv 2011.13456): what weights do not tell."""

from typing import Any

__all__ = ["PUBLISHED"]

VP = {"sde": "vpsde", "image_size": 32, "continuous": True}
SUB_VP = {**VP, "sde": "subvpsde"}
# Sigma is per unit of data in [0, 1].
VE = {"sde": "vesde", "image_size": 32, "continuous": True, "fir": True, "sigma_max": 50.0}
LARGE = {**VE, "image_size": 256, "sigma_max": 348.0}
LSUN = {**VE, "image_size": 256, "num_scales": 2000}
FACES = {**VE, "image_size": 1024, "sigma_max": 1348.0, "num_scales": 2000}
# By the names of the files of configurations, with their folders.
PUBLISHED: dict[str, dict[str, Any]] = {
    "vp/cifar10_ddpmpp": {**VP, "fir": False, "continuous": False},
    "vp/cifar10_ddpmpp_continuous": {**VP, "fir": False},
    "vp/cifar10_ddpmpp_deep_continuous": {**VP, "fir": False},
    "vp/cifar10_ncsnpp": {**VP, "fir": True, "continuous": False},
    "vp/cifar10_ncsnpp_continuous": {**VP, "fir": True},
    "vp/cifar10_ncsnpp_deep_continuous": {**VP, "fir": True},
    "subvp/cifar10_ddpmpp_continuous": {**SUB_VP, "fir": False},
    "subvp/cifar10_ddpmpp_deep_continuous": {**SUB_VP, "fir": False},
    "subvp/cifar10_ncsnpp_continuous": {**SUB_VP, "fir": True},
    "subvp/cifar10_ncsnpp_deep_continuous": {**SUB_VP, "fir": True},
    "ve/cifar10_ncsnpp": {**VE, "continuous": False},
    "ve/cifar10_ncsnpp_continuous": VE,
    "ve/cifar10_ncsnpp_deep_continuous": VE,
    "ve/celeba_ncsnpp": {**VE, "image_size": 64, "sigma_max": 90.0, "continuous": False},
    "ve/celebahq_256_ncsnpp_continuous": LARGE,
    "ve/ffhq_256_ncsnpp_continuous": LARGE,
    "ve/bedroom_ncsnpp_continuous": {**LSUN, "sigma_max": 378.0},
    "ve/church_ncsnpp_continuous": {**LSUN, "sigma_max": 380.0},
    "ve/celebahq_ncsnpp_continuous": FACES,
    "ve/ffhq_ncsnpp_continuous": FACES,
}
