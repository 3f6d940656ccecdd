"""Pipelines of Stable Diffusion: prompts, conditions and samples are those of diffusers.

The pipelines are tiny ones with random weights, which diffusers itself saves.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.checkpoints.checkpoint import load, load_autoencoder, load_prompt_encoder, save
from dgjax.importing import import_model
from dgjax.importing.tokenizer_folder import read_tokenizer

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("float32")

LENGTH = 12
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PROMPTS = ("a cat's Hat,  12 tea", "", "Ünïçode! 猫", f"cat {END} hat")


def vocabulary():
    """All bytes, alone and at the end of a word, some merges, and the two special tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = [("c", "a"), ("ca", "t</w>"), ("t", "e"), ("h", "a"), ("ha", "t</w>"), ("1", "2</w>")]
    tokens = [*letters, *(f"{a}</w>" for a in letters), *map("".join, merges), BEGIN, END]
    return {token: i for i, token in enumerate(tokens)}, merges


VOCABULARY, MERGES = vocabulary()


def tokenizer(pad=END):
    return transformers.CLIPTokenizer(
        vocab=VOCABULARY, merges=MERGES, pad_token=pad, model_max_length=LENGTH
    )


def noisy(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in module.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    return module.eval()


def text_encoder(projection=False, **changes):
    config = transformers.CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=10,
        bos_token_id=VOCABULARY[BEGIN],
        **{"eos_token_id": VOCABULARY[END], **changes},
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    torch.manual_seed(0)
    return noisy(kind(config))


def unet(**changes):
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return noisy(diffusers.UNet2DConditionModel(**(config | changes)))


def autoencoder():
    torch.manual_seed(0)
    return noisy(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=2 * ("DownEncoderBlock2D",),
            up_block_types=2 * ("UpDecoderBlock2D",),
            latent_channels=4,
            norm_num_groups=4,
        )
    )


def pipeline(prediction="epsilon"):
    """Stable Diffusion 1 or, with v prediction, 2."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = diffusers.DDIMScheduler(**betas, prediction_type=prediction, clip_sample=False)
    second = prediction != "epsilon"
    changes = {"hidden_act": "gelu"} if second else {"eos_token_id": 2}
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(**changes),
        tokenizer=tokenizer("!" if second else END),
        unet=unet(use_linear_projection=True, attention_head_dim=(2, 4)) if second else unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pipeline_xl():
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(projection=True, hidden_act="gelu"),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer("!"),
        unet=unet(
            use_linear_projection=True,
            cross_attention_dim=32,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=10 + 6 * 4,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**betas),
        add_watermarker=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    pipeline().save_pretrained(folder)
    return folder


def as_numpy(tensor):
    return tensor.detach().numpy()


def older_files(folder, pad=END):
    """Vocabulary and merges as older versions of transformers save them."""
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))


@pytest.mark.parametrize("pad", [END, "!"])
@pytest.mark.parametrize("older", [False, True])
def test_tokens_are_those_of_transformers(older, pad, tmp_path):
    if older:
        older_files(tmp_path / "tokenizer", pad)
        original = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    else:
        original = tokenizer(pad)
        original.save_pretrained(tmp_path / "tokenizer")
    found = read_tokenizer(tmp_path / "tokenizer", 77)
    for prompt in PROMPTS:
        wanted = original(prompt, padding="max_length", max_length=LENGTH).input_ids
        assert found(prompt).tolist() == wanted, prompt
    assert found("")[-1] == VOCABULARY[pad]


def test_a_prompt_that_is_too_long_is_refused(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    found = read_tokenizer(tmp_path, 8)
    assert len(found("cat hat " * 3)) == 8
    with pytest.raises(ValueError, match="has 7 tokens and this model reads 6.*begins with 'tea'"):
        found("cat hat " * 2 + "1 tea".replace("1 ", "cat cat "))
