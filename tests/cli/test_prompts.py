"""Files of prompts, other resolutions, and conditions from files, on a tiny network like XL's."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.checkpoints.autoencoder_spec import build_autoencoder
from dgjax.checkpoints.checkpoint import load_prompt_encoder, save, weight_bytes
from dgjax.checkpoints.conditions import Negative, encode_prompts, find_condition
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.opened import open_model
from dgjax.checkpoints.prompts import PromptEncoder, build_text_encoder
from dgjax.checkpoints.resolution import resize
from dgjax.checkpoints.spec import ModelSpec, build, build_network
from dgjax.checkpoints.tokenizer import Tokenizer
from dgjax.checkpoints.weights_file import read_weights, write_weights
from dgjax.cli.class_guidance import check_guidance_window, class_guides
from dgjax.cli.options import choose_condition
from dgjax.cli.prompt_file import encode_all, prompt_folders, read_prompts

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("float32")

SIZE, POOLED, TOKENS = 6, 5, 6
WORDS = {word: i for i, word in enumerate(("begin", "end", "cat", "hat", "tea", "a"))}
NETWORK = {
    "kind": "unet2d_condition",
    "block_out_channels": [4, 4],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": SIZE,
    "heads": [1, 1],
    "layers_per_block": [1, 1],
    "transformer_layers": [1, 1],
    "norm_num_groups": 2,
    "added_size": 2,
    "added_inputs": POOLED + 6 * 2,
}
AUTOENCODER = {"kind": "autoencoder_kl", "channels": [4, 4], "layers": 1, "groups": 2}
AUTOENCODER |= {"attention": False, "scaling_factor": 1.0}
TEXT = {
    "condition": {"kind": "stable_diffusion_xl", "size": [8, 8]},
    "encoders": [
        {
            "kind": "clip_text",
            "vocabulary": len(WORDS),
            "length": TOKENS,
            "size": SIZE,
            "inner": 8,
            "layers": 1,
            "heads": 1,
            "activation": "gelu",
            "eps": 1e-5,
            "end": 1,
            "projection": POOLED,
        }
    ],
    "tokenizers": [{"length": TOKENS, "begin": 0, "end": 1, "pad": 1}],
    "zero_negative": True,
}


def drawn(make):
    """A module with normal weights, drawn without JAX."""
    rng, like = np.random.default_rng(0), nnx.eval_shape(make)
    named = {k: 0.3 * rng.normal(size=v.shape) for k, v in to_named(like).items()}
    return from_named(like, named, "the test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    spec = ModelSpec(
        shape=(4, 4, 4),
        network=NETWORK,
        path={"kind": "edm"},
        parametrization={"kind": "preconditioned", "sigma_data": 0.5},
        t_min=0.1,
        t_max=20.0,
    )
    content = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="a"))
    content.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    prompts = PromptEncoder(
        TEXT["condition"],
        (Tokenizer(content.to_str(), **TEXT["tokenizers"][0]),),
        (drawn(lambda: build_text_encoder(TEXT["encoders"][0])),),
        zero_negative=True,
    )
    meta = Meta(spec, "none", (-1.0, 1.0), "none", 0, autoencoder=AUTOENCODER, text=TEXT)
    model = build(spec, drawn(lambda: build_network(spec)))
    decoder = drawn(lambda: build_autoencoder(AUTOENCODER, spec.shape))
    found = tmp_path_factory.mktemp("prompts") / "model"
    save(found, model, meta, autoencoder=decoder, prompts=prompts, dtype=None)
    return found


@pytest.fixture(scope="module")
def chosen(folder):
    jax.config.update("jax_enable_x64", False)
    yield open_model(str(folder))
    jax.config.update("jax_enable_x64", True)


def arrays(file):
    with np.load(file) as found:
        return dict(found)


@pytest.mark.slow
def test_a_file_of_prompts_is_each_prompt_alone_and_loses_none(folder, tmp_path, run):
    (tmp_path / "prompts.txt").write_text("a cat\n\n  hat, tea! \n")
    options = ("--steps", 3, "--probes", 1, "--q", 0.4, "--q", 0.6, "--height", 12)
    options = ("sample", "--model", folder, *options, "--guidance", 3, "--guidance-window", "-3,3")
    many = (*options, "--prompts", tmp_path / "prompts.txt", "--num", 2, "--out", tmp_path / "m")
    status, printed, complaint = run(*many, "--json")
    assert status == 0, complaint
    summary = json.loads(printed)
    assert [p["prompt"] for p in summary["prompts"]] == ["a cat", "hat, tea!"]
    assert summary["guidance_window"] == [-3, 3]
    names = [p["folder"] for p in summary["prompts"]]
    assert names == ["00000-a-cat", "00001-hat-tea"]
    first, second = (tmp_path / "m" / name / "shards" / "00000.npz" for name in names)
    before = arrays(second)
    assert before["x"].shape == (2, 2, 6, 4, 4)
    assert before["pixels"].shape == (2, 2, 12, 8, 3)
    assert np.abs(before["x"] - arrays(first)["x"]).max() > 1e-3
    # What is done is kept, and the rest is drawn again as it was.
    written = first.stat().st_mtime_ns
    second.unlink()
    status, _, complaint = run(*many)
    assert status == 0
    assert "2 of 2 latents are there already" in complaint
    assert first.stat().st_mtime_ns == written
    np.testing.assert_array_equal(arrays(second)["x"], before["x"])
    one = (*options, "--prompt", "hat, tea!", "--start", 1, "--num", 1, "--out", tmp_path / "o")
    assert run(*one)[0] == 0
    alone = arrays(tmp_path / "o" / "samples.npz")
    np.testing.assert_allclose(alone["x"][:, 0], before["x"][:, 1], atol=1e-3)
    status, _, complaint = run(*many, "--negative", "tea")
    assert status == 1
    assert "negative was None and is tea" in complaint


def test_prompts_are_lines_and_name_their_folders(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffÉtude: a/b\r\n\n猫\n".encode())
    prompts = read_prompts(file)
    assert prompts == ["Étude: a/b", "猫"]
    assert prompt_folders([*prompts, 50 * "long "]) == [
        "00000-etude-a-b",
        "00001",
        "00002-long-long-long-long-long-long-long-long",
    ]
    for content, message in ((b" \n", "has no prompts"), (b"\xff\xfe", "no text in UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_prompts(file)
    with pytest.raises(ValueError, match="No such file"):
        read_prompts(tmp_path / "none.txt")


def test_a_prompt_that_is_too_long_is_told_by_its_number(folder, chosen):
    options = {"negative": Negative(), "distilled": None}
    with pytest.raises(ValueError, match="prompt 2 of 3: the prompt has 5 tokens"):
        encode_all(chosen, ["a cat", "a cat hat tea a", "a"], **options)
    found = encode_all(chosen, ["a cat", "hat"], **options)
    wanted = load_prompt_encoder(folder)("hat")
    jax.tree.map(np.testing.assert_array_equal, found[1].cond, wanted)


@pytest.mark.slow
def test_another_resolution_has_the_same_weights_and_tells_the_network(folder, chosen):
    plain, large = chosen, open_model(str(folder), height=12, width=16)
    assert (large.meta.shape, large.image_shape, large.size) == ((6, 8, 4), (12, 16, 3), 192)
    assert large.field.shape == (6, 8, 4)
    for one, other in ((plain.field, large.field), (plain.autoencoder, large.autoencoder)):
        leaves = map(jax.tree.leaves, (one, other))
        jax.tree.map(np.testing.assert_array_equal, *leaves)
    (cond,) = (c.cond for c in encode_prompts(large, ["a cat"]))
    assert cond["added_cond_kwargs"]["time_ids"].tolist() == [12, 16, 0, 0, 12, 16]
    x = jnp.zeros((6, 8, 4))
    eps = jax.eval_shape(lambda x: large.field.pair(large.field.t_max, x, cond).eps, x)
    assert eps.shape == x.shape
    assert jax.eval_shape(large.autoencoder.decode, x).shape == (12, 16, 3)


def test_the_condition_of_stable_diffusion_3_has_no_size_of_a_picture():
    network = {"kind": "sd3_transformer", "num_layers": 1, "num_attention_heads": 1}
    network |= {"attention_head_dim": 4, "joint_attention_dim": SIZE, "pooled_projection_dim": 2}
    noise = {"kind": "noise"}
    spec = ModelSpec((4, 4, 4), network, {"kind": "edm"}, noise, t_min=0.1, t_max=20.0)
    text = {"condition": {"kind": "stable_diffusion_3", "size": SIZE, "tokens": TOKENS}}
    meta = Meta(spec, "none", (-1.0, 1.0), "none", 0, autoencoder=AUTOENCODER, text=text)
    decoder = nnx.eval_shape(lambda: build_autoencoder(AUTOENCODER, spec.shape))
    model = build(spec, drawn(lambda: build_network(spec)))
    _, large, _ = resize(model, meta, decoder, 12, 16)
    assert (large.shape, large.text) == ((6, 8, 4), text)
    # Places keep their distance, though the specification leaves it to the height.
    found = (build(one, model.network).network.pos_embed.base for one in (spec, large.model))
    assert list(found) == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            {"height": 9},
            "9 x 8 pixels .* multiples of 2 pixels; .* is 12 x 8, a multiple of 4 as all",
        ),
        ({"width": 10}, r"H and W multiples of 2, .* next larger size is 8 x 12"),
    ],
)
def test_a_size_that_does_not_divide_is_one_line(size, message, folder):
    with pytest.raises(ValueError, match=message) as caught:
        open_model(str(folder), **size)
    assert "\n" not in str(caught.value)


def test_weights_of_one_resolution_are_refused(small_model, tmp_path):
    folder = small_model(tmp_path / "mlp", (4, 4, 1), spread=0.5)
    with pytest.raises(ValueError, match="weights belong to one resolution"):
        open_model(str(folder), height=8)
    small_model(tmp_path / "vector", (3,), spread=0.5)
    with pytest.raises(ValueError, match="are no pictures"):
        open_model(str(tmp_path / "vector"), height=8)


@pytest.mark.slow
def test_weights_of_half_the_size(folder, chosen):
    half = open_model(str(folder), dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.field.network)} == {"bfloat16"}
    assert 2 * weight_bytes(folder, half.dtype) == weight_bytes(folder)
    assert half.facts() == {**chosen.facts(), "dtype": "bfloat16"}
    (found,) = encode_prompts(half, ["a cat"])
    encode = load_prompt_encoder(folder)
    rounded = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
    wanted = replace(encode, encoders=jax.tree.map(rounded, encode.encoders))("a cat")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found.cond))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.cond, wanted)


def test_weights_too_large_for_float16_are_refused(tmp_path):
    write_weights(tmp_path / "it", {"a": np.float32([1e5])})
    like = {"a": jax.ShapeDtypeStruct((1,), np.float16)}
    with pytest.raises(ValueError, match=r"weight a .* not finite as float16: take bfloat16"):
        read_weights(tmp_path / "it", like, "it", None)


def flat(cond, prefix=""):
    added = cond["added_cond_kwargs"]
    values = {"encoder_hidden_states": cond["encoder_hidden_states"]}
    values |= {f"added_cond_kwargs.{name}": value for name, value in added.items()}
    return {f"{prefix}{name}": np.asarray(value) for name, value in values.items()}


def test_a_file_of_embeddings_is_the_prompt(folder, chosen, tmp_path):
    file = tmp_path / "cat.npz"
    encode = load_prompt_encoder(folder)
    np.savez(file, **flat(encode("a cat")), **flat(encode.negative(), "negative."))
    wanted = find_condition(chosen, None, "a cat", negative=Negative())
    found = choose_condition(chosen, None, None, file=file, negative=Negative())
    for name in ("cond", "null"):
        a, b = getattr(found, name), getattr(wanted, name)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (found.file, found.prompt) == ("cat.npz", None)
    with pytest.raises(ValueError, match="on a file: give one"):
        choose_condition(chosen, None, "a cat", file=file)


def test_a_file_of_embeddings_may_leave_the_distilled_guidance_to_the_option(chosen, tmp_path):
    network = {"kind": "flux_transformer", "num_layers": 1, "num_single_layers": 0}
    network |= {"num_attention_heads": 1, "attention_head_dim": 6, "axes_dims_rope": [2, 2, 2]}
    network |= {"joint_attention_dim": SIZE, "pooled_projection_dim": 2, "guidance_embeds": True}
    spec = replace(chosen.meta.model, network=network)
    field = build(spec, drawn(lambda: build_network(spec)))
    flux = chosen._replace(field=field, meta=replace(chosen.meta, model=spec, text={}))
    arrays = {"encoder_hidden_states": np.zeros((3, SIZE)), "pooled_projections": np.zeros(2)}
    arrays |= {f"negative.{name}": array for name, array in arrays.items()}
    np.savez(tmp_path / "without.npz", **arrays)
    np.savez(tmp_path / "with.npz", guidance=np.float32(2.5), **arrays)
    for name, given, wanted in (("without", None, 3.5), ("without", 2, 2), ("with", None, 2.5)):
        options = {"file": tmp_path / f"{name}.npz", "distilled": given, "negative": Negative()}
        found = find_condition(flux, None, None, **options)
        weights = [found.distilled, *(float(c["guidance"]) for c in (found.cond, found.null))]
        assert weights == 3 * [wanted]
    for model, name, given, message in (
        (flux, "with", 2.0, "holds one as guidance, too"),
        (flux, "without", float("inf"), "must be finite"),
        (chosen, "with", 2.0, "takes no guidance weight as an input"),
    ):
        with pytest.raises(ValueError, match=message):
            find_condition(model, None, None, file=tmp_path / f"{name}.npz", distilled=given)


GOOD = {"encoder_hidden_states": np.zeros((TOKENS, SIZE))}
GOOD |= {"added_cond_kwargs.text_embeds": np.zeros(POOLED)}
GOOD |= {"added_cond_kwargs.time_ids": np.zeros(6)}


@pytest.mark.parametrize(
    ("changes", "negative", "message"),
    [
        ({"encoder_hidden_states": np.zeros((1, TOKENS, SIZE))}, None, r"shape \(1, 6, 6\)"),
        ({"encoder_hidden_states": np.full((TOKENS, SIZE), np.nan)}, None, "NaN or infinite"),
        ({"encoder_hidden_states": np.array("a cat")}, None, "must hold numbers"),
        ({"pooled": np.zeros(3)}, None, "which this network does not take"),
        ({"added_cond_kwargs": np.zeros(3)}, None, "arrays inside added_cond_kwargs"),
        ({}, Negative(), "nothing to guide away from: add arrays .* negative.enc"),
        ({"negative.cond": np.zeros((TOKENS, SIZE))}, Negative(), "not take the negative arrays"),
        (None, None, "cannot be read as an npz file"),
    ],
)
def test_what_a_file_of_a_condition_lacks_is_one_line(changes, negative, message, chosen, tmp_path):
    file = tmp_path / "cond.npz"
    if changes is None:
        Path(file).write_text("no archive")
    else:
        np.savez(file, **(changes | GOOD if "added_cond_kwargs" in changes else GOOD | changes))
    with pytest.raises(ValueError, match=message) as caught:
        find_condition(chosen, None, None, file=file, negative=negative)
    assert re.search("\n", str(caught.value)) is None


def test_the_window_of_guidance_is_in_log_snr(chosen):
    given = find_condition(chosen, None, "a cat", negative=Negative())
    (guide,) = class_guides(chosen, None, given, 3.0, (-3.0, 2.0))
    assert [float(guide.interval(jnp.float32(x))) for x in (-4.0, -3.0, 1.0, 2.0)] == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="needs a --guidance other than 1"):
        check_guidance_window((-3.0, 2.0), 1.0)
