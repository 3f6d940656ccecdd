"""Pipelines of Stable Diffusion 3 and Flux: prompts, conditions and samples are diffusers' own.

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
from PIL import Image
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


def conditions(original, prompt, negative=None):
    """The conditions with and without the prompt that a pipeline itself makes."""
    options = {"device": "cpu"}
    if original.text_encoder_2.config.model_type == "t5":
        options |= {"prompt_2": None, "max_sequence_length": TOKENS}
        with torch.no_grad():
            made = [
                original.encode_prompt(text, **options)[:2] for text in (prompt, negative or "")
            ]
    else:
        options |= {"prompt_2": None, "prompt_3": None, "negative_prompt": negative}
        if original.text_encoder_3 is not None:
            options |= {"max_sequence_length": TOKENS}
        with torch.no_grad():
            vectors, others, pooled, other = original.encode_prompt(prompt, **options)
        made = [(vectors, pooled), (others, other)]
    guidance = {}
    if original.transformer.config.get("guidance_embeds"):
        guidance = {"guidance": torch.full([1], 3.5)}
    return [
        {"encoder_hidden_states": vectors, "pooled_projections": pooled, **guidance}
        for vectors, pooled in made
    ]


def predict(original, x, t, cond):
    """The prediction of a network of diffusers."""
    if "axes_dims_rope" not in original.transformer.config:
        return original.transformer(to_torch(x), timestep=torch.full([1], t), **cond).sample
    return unpack(
        original,
        original.transformer(
            pack(original, x),
            timestep=torch.full([1], t / 1000),
            txt_ids=torch.zeros(cond["encoder_hidden_states"].shape[1], 3),
            img_ids=original._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
            **cond,
        ).sample,
    )


def pack(original, x):
    return original._pack_latents(to_torch(x), 1, 16, 8, 8)


def unpack(original, latents):
    return original._unpack_latents(latents, 16, 16, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_a_checkpoint_of_a_pipeline_is_the_pipeline(name, folders, tmp_path):
    """Prompts, predictions and pictures are equal; each part is loaded alone."""
    original, folder = folders[name]
    found = import_model(str(folder), **({"shape": (8, 8)} if "flux" in name else {}))
    save(
        tmp_path / "it",
        found.model,
        found.meta,
        autoencoder=found.autoencoder,
        prompts=found.prompts,
        dtype=None,
    )
    encode = load_prompt_encoder(tmp_path / "it")
    # The long one is cut for CLIP, which reads 14 tokens, and not for T5.
    long = "12 tea" if name == "sd3 without T5" else 15 * "cat " + "12 tea"
    rest = "" if long == "12 tea" else "cat 12 tea"
    assert (encode.unread(long), encode.unread("a cat")) == (rest, "")
    for prompt, negative in (("a cat's Hat", "tea"), (long, None)):
        with_prompt, without = conditions(original, prompt, negative)
        close(encode(prompt), with_prompt)
        close(encode.negative(negative), without)
    model, meta = load(tmp_path / "it")
    assert meta.shape == (8, 8, 16)
    x, t = np.random.default_rng(0).standard_normal((8, 8, 16)).astype(np.float32), 300.0
    with torch.no_grad():
        wanted = to_numpy(predict(original, x, t, with_prompt))
        config = original.vae.config
        latents = to_torch(x) / config.scaling_factor + config.shift_factor
        picture = to_numpy(original.vae.decode(latents).sample)
    with pytest.raises(ValueError, match="does not fit"):
        encode(24 * "cat ")
    out = model.network(jnp.asarray(x), jnp.float32(t), encode(prompt))
    assert np.abs(out - wanted).max() < 1e-4 * np.abs(wanted).max()
    decoded = load_autoencoder(tmp_path / "it").decode(jnp.asarray(x))
    assert np.abs(decoded - picture).max() < 1e-4 * np.abs(picture).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_guided_samples_are_those_of_the_pipeline(name, folders):
    """From the same noise, on the pipeline's own shifted grid, by its Euler steps."""
    original, folder = folders[name]
    found = import_model(str(folder), **({"shape": (8, 8)} if name == "flux" else {}))
    model = build(found.meta.model, jax.tree.map(jnp.asarray, found.model.network))
    x = np.random.default_rng(2).standard_normal((8, 8, 16)).astype(np.float32)
    seen = []

    def note(pipeline, i, t, state):
        seen.append((float(pipeline.scheduler.sigmas[i + 1]), state["latents"]))
        return state

    options = {"num_inference_steps": 8, "height": 16, "width": 16, "output_type": "latent"}
    options |= {"callback_on_step_end": note, "max_sequence_length": TOKENS}
    original.set_progress_bar_config(disable=True)
    if name == "flux":
        options |= {"latents": pack(original, x), "true_cfg_scale": 3.0, "guidance_scale": 2.0}
    else:
        options |= {"latents": to_torch(x), "guidance_scale": 3.0}
    original("a cat", negative_prompt="tea", **options)
    (first, start), (last, end) = seen[0], seen[-2]  # the first step is from sigma 1
    if name == "flux":
        start, end = unpack(original, start), unpack(original, end)
    start, wanted = to_numpy(start), to_numpy(end)

    encode = found.prompts if name == "sd3" else found.prompts.with_distilled_guidance(2.0)
    cond, null = encode("a cat"), encode.negative("tea")
    grid = jnp.asarray([sigma for sigma, _ in seen[:-1]])
    part = build(replace(found.meta.model, t_max=first, t_min=last), model.network)

    @jax.jit
    def draw(model, x, grid, cond, null):
        guide = classifier_free_guidance(3.0, model, null=null)
        options = {"key": jax.random.key(0), "solver": diffrax.Euler(), "guides": guide}
        return sample(model, x, grid, cond=cond, divergence=Untracked(), **options).x

    drawn = draw(part, jnp.asarray(start), grid, cond, null)
    assert np.abs(drawn - wanted).max() < 1e-3 * np.abs(wanted).max()
    unguided = draw(part, jnp.asarray(start), grid, cond, cond)
    assert np.abs(unguided - wanted).max() > 1e-2 * np.abs(wanted).max()


@pytest.mark.slow
def test_commands_take_prompts_and_distilled_guidance(folders, tmp_path, run):
    status, out, complaint = run("import", folders["flux"][1], tmp_path / "it", "--shape", 8, 8)
    assert status == 0, complaint
    assert '--prompt "..."' in out
    given = ("--model", tmp_path / "it", "--prompt", "a cat", "--steps", 2)
    options = ("--num", 1, "--q", 0.5, "--negative", "tea", "--guidance", 2, "--out")
    drawn = {}
    for weight in (3.5, 2.0):
        distilled = () if weight == 3.5 else ("--distilled-guidance", weight)
        status, _, complaint = run("sample", *given, *distilled, *options, tmp_path / str(weight))
        assert status == 0, complaint
        assert ("--distilled-guidance 2.0" in complaint) == (weight == 2.0)  # the next command
        summary = json.loads((tmp_path / str(weight) / "summary.json").read_text())
        assert summary["distilled_guidance"] == weight
        drawn[weight] = np.load(tmp_path / str(weight) / "samples.npz")["log_density"].item()
    assert drawn[3.5] != drawn[2.0]
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(picture)
    options = (*given, "--distilled-guidance", 2, "--json")
    status, out, complaint = run("likelihood", picture, *options)
    assert status == 0, complaint
    assert json.loads(out)["distilled_guidance"] == 2


def changed(folder, copy, file, changes):
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(content | changes))
    return str(copy)


def test_t5_may_be_left_out(folders, tmp_path):
    nothing = {"text_encoder_2": [None, None], "tokenizer_2": [None, None]}
    folder = changed(folders["flux"][1], tmp_path / "it", "model_index.json", nothing)
    found = import_model(folder, shape=(8, 8))
    assert found.prompts is None
    note = "left out: text_encoder, as there is no text_encoder_2"
    assert note in found.notes
    assert any("pass the embeddings of prompts as cond" in note for note in found.notes)


CHANGES = {
    "another T5": (
        "sd3",
        "text_encoder_3/config.json",
        {"d_model": 32},
        "give vectors of length 32 and the network takes 40",
    ),
    "another CLIP": (
        "flux",
        "text_encoder/config.json",
        {"hidden_size": 20},
        "give a pooled vector of length 20 and the network takes 16",
    ),
    "no projection": (
        "sd3",
        "text_encoder_2/config.json",
        {"architectures": ["CLIPTextModel"]},
        "CLIP has no projection",
    ),
    "another tokenizer": (
        "flux",
        "tokenizer_2/tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer"},
        "the tokenizer CLIPTokenizer in .* is not supported; supported: T5Tokenizer",
    ),
    "no tokenizer": (
        "sd3",
        "model_index.json",
        {"tokenizer_3": [None, None]},
        "a part 'text_encoder_3' and no 'tokenizer_3'",
    ),
    "another encoder": (
        "flux",
        "text_encoder_2/config.json",
        {"architectures": ["LlamaModel"]},
        "the text encoder LlamaModel is not supported here; supported: T5EncoderModel",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_does_not_fit_is_refused(case, folders, tmp_path):
    name, file, changes, message = CHANGES[case]
    folder = changed(folders[name][1], tmp_path / "it", file, changes)
    with pytest.raises(ValueError, match=message):
        import_model(folder, **({"shape": (8, 8)} if name == "flux" else {}))


def test_only_distilled_models_take_their_guidance(folders):
    prompts = import_model(str(folders["flux schnell"][1]), shape=(8, 8)).prompts
    assert prompts.distilled_guidance is None
    with pytest.raises(ValueError, match="takes no guidance weight as an input"):
        prompts.with_distilled_guidance(2.0)
    prompts = replace(prompts, condition={"kind": "flux", "guidance": 3.5})
    with pytest.raises(ValueError, match="must be finite"):
        prompts.with_distilled_guidance(float("nan"))
