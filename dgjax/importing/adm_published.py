"""OpenAI's published diffusion models: what their files do not tell."""

from typing import Any

__all__ = ["PUBLISHED"]

ADM = {"num_channels": 256, "num_res_blocks": 2, "noise_schedule": "linear"}
ADM_256 = {**ADM, "image_size": 256, "num_head_channels": 64}
IMPROVED = {
    "num_channels": 128,
    "num_res_blocks": 3,
    "num_heads": 4,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
}
LSUN = {**ADM, "image_size": 256, "num_channels": 128, "num_heads": 1}
# By the names of the files: settings as their authors state them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "64x64_diffusion": {
        "image_size": 64,
        "num_channels": 192,
        "num_res_blocks": 3,
        "num_head_channels": 64,
        "noise_schedule": "cosine",
        "use_new_attention_order": True,
    },
    "128x128_diffusion": {**ADM, "image_size": 128, "num_heads": 4},
    "256x256_diffusion": ADM_256,
    "256x256_diffusion_uncond": ADM_256,
    "512x512_diffusion": {**ADM_256, "image_size": 512},
    "lsun_bedroom": ADM_256,
    "lsun_cat": ADM_256,
    "lsun_horse": ADM_256,
    "lsun_horse_nodropout": ADM_256,
    "imagenet64_uncond_100M_1500K": {**IMPROVED, "image_size": 64},
    "cifar10_uncond_50M_500K": {**IMPROVED, "image_size": 32},
    "imagenet64_cond_270M_250K": {
        **IMPROVED,
        "image_size": 64,
        "num_channels": 192,
        "rescale_timesteps": False,
    },
    "lsun_uncond_100M_1200K_bs128": LSUN,
    "lsun_uncond_100M_2400K_bs64": LSUN,
}
