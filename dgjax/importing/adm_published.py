"""OpenAI's published diffusion models: what their files do not tell."""

from typing import Any

__all__ = ["PUBLISHED"]

ADM_256 = {"image_size": 256, "num_head_channels": 64, "noise_schedule": "linear"}
LSUN = {"image_size": 256, "num_heads": 1, "noise_schedule": "linear"}
IMPROVED = {"num_heads": 4, "noise_schedule": "cosine", "diffusion_steps": 4000}
# By the names of the files: settings as their authors state them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "64x64_diffusion": {
        "image_size": 64,
        "num_head_channels": 64,
        "noise_schedule": "cosine",
        "use_new_attention_order": True,
    },
    "128x128_diffusion": {"image_size": 128, "num_heads": 4, "noise_schedule": "linear"},
    "256x256_diffusion": ADM_256,
    "256x256_diffusion_uncond": ADM_256,
    "512x512_diffusion": {**ADM_256, "image_size": 512},
    "lsun_bedroom": ADM_256,
    "lsun_cat": ADM_256,
    "lsun_horse": ADM_256,
    "lsun_horse_nodropout": ADM_256,
    "imagenet64_uncond_100M_1500K": {**IMPROVED, "image_size": 64, "rescale_timesteps": True},
    "cifar10_uncond_50M_500K": {**IMPROVED, "image_size": 32, "rescale_timesteps": True},
    "imagenet64_cond_270M_250K": {**IMPROVED, "image_size": 64, "rescale_timesteps": False},
    "lsun_uncond_100M_1200K_bs128": LSUN,
    "lsun_uncond_100M_2400K_bs64": LSUN,
}
