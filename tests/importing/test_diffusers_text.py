"""Pipelines of Stable Diffusion: prompts, conditions and samples are those of diffusers.

The pipelines are tiny ones with random weights, which diffusers itself saves.
"""

import json
import shutil
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.checkpoints.checkpoint import load, load_autoencoder, load_prompt_encoder, save
from dgjax.checkpoints.opened import open_model
from dgjax.checkpoints.spec import build
from dgjax.cli.class_guidance import check_negative
from dgjax.cli.options import choose_condition
from dgjax.guidance.classifier_free import classifier_free_guidance
from dgjax.importing import import_model
from dgjax.importing.tokenizer_folder import CLIP, read_tokenizer
from dgjax.model.divergence import Untracked
from dgjax.model.paths import edm
from dgjax.model.repath import repath
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import SOLVERS, default_divergence

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("float32")

LENGTH = 16
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


PIPELINES = {"1.5": pipeline, "2.1": lambda: pipeline("v_prediction"), "xl": pipeline_xl}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each pipeline of diffusers, and its folder."""
    made = {name: (make(), tmp_path_factory.mktemp("pipeline")) for name, make in PIPELINES.items()}
    for one, folder in made.values():
        one.save_pretrained(folder)
    return made


def to_torch(x):
    return torch.from_numpy(np.array(x, np.float32)).movedim(-1, 0)[None]


def to_numpy(images):
    return images[0].movedim(0, -1).detach().numpy()


def conditions(original, prompt, negative=None):
    """The conditions with and without the prompt that a pipeline itself makes."""
    size = (16, 16)
    with torch.no_grad():
        made = original.encode_prompt(
            prompt=prompt,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative,
        )
    if len(made) == 2:
        return [{"encoder_hidden_states": one} for one in made]
    ids = original._get_add_time_ids(size, (0, 0), size, torch.float32, 10)
    return [
        {
            "encoder_hidden_states": made[i],
            "added_cond_kwargs": {"text_embeds": made[i + 2], "time_ids": ids},
        }
        for i in (0, 1)
    ]


def close(found, wanted, rtol=1e-4):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        b = np.asarray(b)[0]
        assert np.abs(np.asarray(a) - b).max() <= rtol * np.abs(b).max()


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
    found = read_tokenizer(tmp_path / "tokenizer", 77, CLIP)
    for prompt in PROMPTS:
        wanted = original(prompt, padding="max_length", max_length=LENGTH).input_ids
        assert found(prompt).tolist() == wanted, prompt
    assert found("")[-1] == VOCABULARY[pad]


def test_a_prompt_that_is_too_long_is_refused(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    found = read_tokenizer(tmp_path, 8, CLIP)
    assert len(found("cat hat " * 3)) == 8
    rest = r"has 8 tokens and this model reads 6.*what does not fit begins with 'tea'$"
    with pytest.raises(ValueError, match=rest):
        found("cat hat cat cat cat cat tea")


def test_other_tokenizers_are_refused(tmp_path):
    folder = tmp_path / "tokenizer"
    with pytest.raises(ValueError, match="there is no folder"):
        read_tokenizer(folder, 8, CLIP)
    older_files(folder, "<pad>")
    with pytest.raises(ValueError, match=r"has no token '<pad>' \(pad_token\)"):
        read_tokenizer(folder, 8, CLIP)
    (folder / "merges.txt").write_text("c a\nx yy\n")
    with pytest.raises(ValueError, match=r"cannot be read: .*Token `yy` out"):
        read_tokenizer(folder, 8, CLIP)
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"neither tokenizer.json nor merges.txt"):
        read_tokenizer(folder, 8, CLIP)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5TokenizerFast"}')
    with pytest.raises(ValueError, match=r"tokenizer T5Tokenizer in .* is not supported"):
        read_tokenizer(folder, 8, CLIP)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1.5", "2.1", "xl"])
def test_a_checkpoint_of_a_pipeline_is_the_pipeline(name, folders, tmp_path):
    """Prompts, predictions and pictures are equal; each part is loaded alone."""
    original, folder = folders[name]
    found = import_model(str(folder))
    save(
        tmp_path / "it",
        found.model,
        found.meta,
        autoencoder=found.autoencoder,
        prompts=found.prompts,
        dtype=None,
    )
    encode = load_prompt_encoder(tmp_path / "it")
    for prompt, negative in (("a cat's Hat", "tea"), ("12 tea", None)):
        with_prompt, without = conditions(original, prompt, negative)
        close(encode(prompt), with_prompt)
        close(encode.negative(negative), without)
    model, meta = load(tmp_path / "it")
    assert meta.shape == (8, 8, 4)
    assert meta.model.parametrization["kind"] == ("v" if name == "2.1" else "noise")
    x, t = np.random.default_rng(0).standard_normal((8, 8, 4)).astype(np.float32), 300.0
    with torch.no_grad():
        wanted = to_numpy(original.unet(to_torch(x), t, **with_prompt).sample)
        scale = original.vae.config.scaling_factor
        picture = to_numpy(original.vae.decode(to_torch(x) / scale).sample)
    out = model.network(jnp.asarray(x), jnp.float32(t), encode(prompt))
    assert np.abs(out - wanted).max() < 1e-4 * np.abs(wanted).max()
    decoded = load_autoencoder(tmp_path / "it").decode(jnp.asarray(x))
    assert np.abs(decoded - picture).max() < 1e-4 * np.abs(picture).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2.1", "xl"])
def test_guided_samples_are_those_of_diffusers_own_ddim(name, folders):
    """From the same noise; DDIM is Euler's method for x/alpha in the clock sigma/alpha."""
    original, folder = folders[name]
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    kind = original.scheduler.config.prediction_type
    sampler = diffusers.DDIMScheduler(
        **betas, prediction_type=kind, clip_sample=False, set_alpha_to_one=False
    )
    sampler.set_timesteps(10)
    x = np.random.default_rng(2).standard_normal((8, 8, 4)).astype(np.float32)
    latents, weight = to_torch(x), 3.0
    prompt, negative = "a cat", "tea"
    given, null = conditions(original, prompt, negative)
    with torch.no_grad():
        for t in sampler.timesteps:
            plain = original.unet(latents, t, **null).sample
            guided = plain + weight * (original.unet(latents, t, **given).sample - plain)
            latents = sampler.step(guided, t, latents).prev_sample
    wanted = to_numpy(latents)

    found = import_model(str(folder))
    spec = replace(found.meta.model, t_max=900.0)  # where this sampler starts
    model = build(spec, jax.tree.map(jnp.asarray, found.model.network))
    moved, path = repath(model, edm()), model.path
    grid = jnp.stack([path.sigma(t) / path.alpha(t) for t in jnp.arange(900.0, -1, -100)])
    grid = grid.at[0].set(moved.t_max).at[-1].set(moved.t_min)
    cond, null = found.prompts(prompt), found.prompts.negative(negative)

    @jax.jit
    def draw(model, x, cond, null):
        guide = classifier_free_guidance(weight, model, null=null)
        options = {"key": jax.random.key(0), "solver": diffrax.Euler(), "guides": guide}
        return sample(model, x, grid, cond=cond, divergence=Untracked(), **options).x

    start = x / path.alpha(model.t_max)
    drawn = draw(moved, start, cond, null) * path.alpha(model.t_min)
    assert np.abs(drawn - wanted).max() < 1e-3 * np.abs(wanted).max()
    unguided = draw(moved, start, cond, cond) * path.alpha(model.t_min)
    assert np.abs(unguided - wanted).max() > 1e-2 * np.abs(wanted).max()


@pytest.mark.slow
def test_log_density_is_that_of_the_network_in_pytorch(folders):
    """The same condition serves the bridge to PyTorch, so the same solve runs on both networks."""
    original, folder = folders["xl"]
    found = import_model(str(folder))
    model = jax.tree.map(jnp.asarray, found.model)
    bridged = replace(model, network=dgjax.torch_network(original.unet))
    grid = dgjax.grid_logsnr(model, 4)
    x = dgjax.prior_sample(model, jax.random.key(0), (8, 8, 4))
    cond = found.prompts("a cat")
    options = {"key": jax.random.key(1), "cond": cond, "guides": dgjax.density_guidance(0.3)}
    ours, theirs = (dgjax.sample(one, x, grid, **options) for one in (model, bridged))
    np.testing.assert_allclose(ours.log_density, theirs.log_density, rtol=1e-4)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_sample_takes_a_prompt(folders, tmp_path, run):
    original, folder = folders["1.5"]
    status, out, _ = run("import", folder, tmp_path / "sd")
    assert status == 0
    assert '--prompt "..."' in out
    options = ("--num", 1, "--steps", 3, "--q", 0.3, "--q", 0.7, "--seed", 3)
    options = ("sample", "--model", tmp_path / "sd", "--out", tmp_path / "out", *options)
    status, out, _ = run(*options, "--prompt", "a cat", "--negative", "tea", "--guidance", 4)
    assert status == 0
    assert "log p(x | 'a cat') of the latent" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["prompt"], summary["negative"], summary["guidance"]) == ("a cat", "tea", 4)
    drawn = np.load(tmp_path / "out" / "samples.npz")["log_density"]
    given, null = (
        {"encoder_hidden_states": c["encoder_hidden_states"][0].numpy()}
        for c in conditions(original, "a cat", "tea")
    )
    chosen = open_model(str(tmp_path / "sd"))
    keys = jax.random.split(jax.random.key(3), 3)
    wanted = [
        sample(
            chosen.field,
            dgjax.prior_sample(chosen.field, jax.random.fold_in(keys[0], 0), (8, 8, 4)),
            dgjax.grid_logsnr(chosen.field, 3),
            key=jax.random.fold_in(keys[1], 0),
            cond=given,
            guides=(
                classifier_free_guidance(4.0, chosen.field, null=null),
                dgjax.density_guidance(q),
            ),
            divergence=default_divergence(2, SOLVERS["multistep"](), 256),
            solver=SOLVERS["multistep"](),
        ).log_density
        for q in (0.3, 0.7)
    ]
    np.testing.assert_allclose(drawn[:, 0], wanted, rtol=1e-4)


def test_prompts_that_cannot_be_taken_are_refused_in_one_line(folders, tmp_path):
    found = import_model(str(folders["1.5"][1]))
    facts = {"autoencoder": found.autoencoder, "dtype": None}
    with pytest.raises(ValueError, match="saved with its text encoders: pass prompts"):
        save(tmp_path / "sd", found.model, found.meta, **facts)
    save(tmp_path / "sd", found.model, found.meta, prompts=found.prompts, **facts)
    sd = open_model(str(tmp_path / "sd"))
    blind = sd._replace(meta=replace(sd.meta, text={}))
    for chosen, options, message in (
        (sd, (None, None), "add --prompt"),
        (sd, (None, "cat " * 15), "has 15 tokens and this model reads 14"),
        (sd, ("1", "cat"), "on a class, on a prompt or on a file"),
        (sd, ("1", None), "takes a prompt, not a class"),
        (blind, (None, "cat"), "takes no prompts: it has no text encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_condition(chosen, *options)
    with pytest.raises(ValueError, match="--negative is what --guidance leads"):
        check_negative("tea", "cat", 1.0, None)
    (tmp_path / "sd" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not as it was written"):
        load_prompt_encoder(tmp_path / "sd")
    with pytest.raises(ValueError, match="the tokenizer of this model cannot be read"):
        load_prompt_encoder(tmp_path / "sd", verify=False)("cat")
    (tmp_path / "sd" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"lost its file tokenizer\.json"):
        load_prompt_encoder(tmp_path / "sd")


CHANGES = {
    "a tokenizer that is missing": (
        "model_index.json",
        {"tokenizer": [None, None]},
        "a part 'text_encoder' and no 'tokenizer'",
    ),
    "an encoder of another size": (
        "unet/config.json",
        {"cross_attention_dim": 32},
        "give vectors of length 16 and the network takes 32",
    ),
    "another encoder": (
        "text_encoder/config.json",
        {"architectures": ["T5EncoderModel"]},
        "the text encoder T5EncoderModel is not supported",
    ),
    "a picture beside the noise": (
        "unet/config.json",
        {"in_channels": 9},
        "takes 9 channels and returns 4.*inpainting",
    ),
    "guidance as an input": (
        "unet/config.json",
        {"time_cond_proj_dim": 256},
        "time_cond_proj_dim 256 of UNet2DConditionModel is not supported",
    ),
    "a refiner": (
        "model_index.json",
        {"requires_aesthetics_score": True},
        "refiner of Stable Diffusion XL",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_not_read_is_refused(case, folders, tmp_path):
    file, changes, message = CHANGES[case]
    shutil.copytree(folders["xl" if case == "a refiner" else "1.5"][1], tmp_path / "it")
    changed = tmp_path / "it" / file
    changed.write_text(json.dumps(json.loads(changed.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        import_model(str(tmp_path / "it"))


def test_text_encoders_may_be_left_out(folders, tmp_path):
    """Then embeddings of prompts are conditions, as for the network in PyTorch."""
    _, folder = folders["1.5"]
    shutil.copytree(folder, tmp_path / "it")
    index = tmp_path / "it" / "model_index.json"
    nothing = {part: [None, None] for part in ("text_encoder", "tokenizer")}
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | nothing | checker))
    found = import_model(str(tmp_path / "it"))
    assert found.prompts is None
    assert found.meta.text == {}
    assert "text" not in found.meta.to_dict()
    assert any("there is no text encoder" in note for note in found.notes)
    assert any("left out, as no part of the model: safety_checker" in n for n in found.notes)
    with pytest.raises(ValueError, match="trained with a prompt for every image: pass cond"):
        found.model.pair(3.0, jnp.zeros((8, 8, 4)))
