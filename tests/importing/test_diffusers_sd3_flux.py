"""Pipelines of Stable Diffusion 3 and Flux: prompts, conditions and samples are diffusers' own.

The pipelines are tiny ones with random weights, which diffusers itself saves.
"""

import json
import shutil

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_diffusers_text import close, noisy, text_encoder, to_numpy, to_torch
from test_diffusers_text import tokenizer as clip_tokenizer

from dgjax.checkpoints.checkpoint import load, load_autoencoder, load_prompt_encoder, save
from dgjax.checkpoints.spec import build
from dgjax.guidance.classifier_free import classifier_free_guidance
from dgjax.importing import import_model
from dgjax.importing.tokenizer_folder import T5, read_tokenizer
from dgjax.model.divergence import Untracked
from dgjax.sampling.sample import sample

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("float32")

WIDTH, TOKENS = 40, 24  # of T5
PIECES = [
    *(("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -2.5), ("▁cat", -3.0), ("te", -4.0)),
    *((letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyzH',.12"),
]
PROMPTS = ("a cat's  Hat,  12 tea", "", "Ünïçode! 猫", "cat </s> hat <extra_id_0>")


def t5_tokenizer():
    return transformers.T5Tokenizer(vocab=PIECES, extra_ids=2, model_max_length=TOKENS)


def t5():
    torch.manual_seed(0)
    config = {"d_model": WIDTH, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config |= {"vocab_size": 48, "feed_forward_proj": "gated-gelu"}
    return noisy(transformers.T5EncoderModel(transformers.T5Config(**config)))


def autoencoder():
    torch.manual_seed(0)
    return noisy(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=2 * ("DownEncoderBlock2D",),
            up_block_types=2 * ("UpDecoderBlock2D",),
            latent_channels=16,
            norm_num_groups=4,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def sd3(with_t5=True):
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=8,
        qk_norm="rms_norm" if with_t5 else None,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=noisy(network),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=text_encoder(projection=True, hidden_act="gelu"),
        tokenizer_2=clip_tokenizer("!"),
        text_encoder_3=t5() if with_t5 else None,
        tokenizer_3=t5_tokenizer(),
    )


def flux(distilled=True):
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=16,
        guidance_embeds=distilled,
        axes_dims_rope=(2, 2, 4),
    )
    return diffusers.FluxPipeline(
        transformer=noisy(network),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            **({"shift": 3.0, "use_dynamic_shifting": True} if distilled else {})
        ),
        vae=autoencoder(),
        text_encoder=text_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


PIPELINES = {
    "sd3": sd3,
    "sd3 without T5": lambda: sd3(False),
    "flux": flux,
    "flux schnell": lambda: flux(False),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each pipeline of diffusers, and its folder."""
    made = {name: (make(), tmp_path_factory.mktemp("pipeline")) for name, make in PIPELINES.items()}
    for one, folder in made.values():
        one.save_pretrained(folder)
    return made


def test_tokens_are_those_of_transformers(tmp_path):
    original = t5_tokenizer()
    original.save_pretrained(tmp_path)
    found = read_tokenizer(tmp_path, 512, T5)
    for prompt in PROMPTS:
        wanted = original(prompt, padding="max_length", max_length=TOKENS).input_ids
        assert found(prompt).tolist() == wanted, prompt
    shorter = read_tokenizer(tmp_path, 8, T5)
    with pytest.raises(ValueError, match=r"reads 7.*what does not fit begins with 'tea'$"):
        shorter(7 * "cat " + "tea")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"spiece\.model is not read: make it with transformers"):
        read_tokenizer(tmp_path, 8, T5)
