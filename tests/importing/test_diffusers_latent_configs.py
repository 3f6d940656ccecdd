"""Pipelines of latents without PyTorch: what is read of their configs, and what is refused."""

import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dgjax.checkpoints.arrays import to_named
from dgjax.checkpoints.autoencoder_spec import build_autoencoder
from dgjax.checkpoints.checkpoint import load, load_autoencoder
from dgjax.checkpoints.configuration import construct
from dgjax.checkpoints.opened import find_label, open_model
from dgjax.checkpoints.spec import NETWORKS as KINDS
from dgjax.importing import import_diffusers
from dgjax.importing.diffusers_autoencoder import read_autoencoder
from dgjax.importing.diffusers_dit import read_dit, stored_positions
from dgjax.importing.diffusers_schedulers import read_scheduler

DIT = {
    "_class_name": "DiTTransformer2DModel",
    "_diffusers_version": "0.36.0",
    "num_attention_heads": 1,
    "attention_head_dim": 4,
    "in_channels": 2,
    "out_channels": 4,
    "num_layers": 1,
    "sample_size": 4,
    "num_embeds_ada_norm": 3,
    "norm_num_groups": 32,
}
KL = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [4, 4],
    "norm_num_groups": 2,
    "latent_channels": 2,
    "scaling_factor": 0.3,
    "sample_size": 8,
}
INDEX = {
    "_class_name": "DiTPipeline",
    "id2label": {"0": "cat, house cat", "1": "Dog", "2": "owl"},
    "scheduler": ["diffusers", "DDIMScheduler"],
    "transformer": ["diffusers", "DiTTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "base_shift": 0.5}
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


def weights(make, dtype=np.float32):
    """Random ones under PyTorch's names and in its layouts."""
    rng, found = np.random.default_rng(0), {}
    for name, leaf in to_named(nnx.eval_shape(make)).items():
        value = 0.1 * rng.standard_normal(leaf.shape)
        *owner, last = name.split(".")
        if last == "kernel":
            value = value.transpose(AXES[leaf.ndim])
        last = "weight" if last in ("kernel", "scale", "embedding") else last
        found[".".join([*owner, last])] = np.ascontiguousarray(value, dtype)
    return found


@pytest.fixture
def folder(tmp_path):
    """A pipeline in whose configs `edit` puts other values."""

    def write(part, config, arrays):
        place = tmp_path / part
        place.mkdir()
        name = "scheduler_config" if part == "scheduler" else "config"
        (place / f"{name}.json").write_text(json.dumps(config))
        if arrays is not None:
            save_file(arrays, place / "diffusion_pytorch_model.safetensors")

    shape, network, _ = read_dit(DIT)
    table = np.asarray(next(iter(stored_positions(shape, network).values())))

    def make_dit():
        return construct("the test", KINDS, network, shape=shape, rngs=nnx.Rngs(0))

    # Older files store the table of positions.
    arrays = weights(make_dit) | {"pos_embed.pos_embed": table}
    write("transformer", DIT, arrays)
    spec, _ = read_autoencoder(KL)
    write("vae", KL, weights(lambda: build_autoencoder(spec, shape), np.float16))
    write("scheduler", {"_class_name": "DDIMScheduler"}, None)
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    return tmp_path


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.slow
def test_a_pipeline_becomes_one_checkpoint(folder, run):
    code, printed, complaint = run("import", folder, folder / "out", "--licence", "MIT")
    assert code == 0, complaint
    assert "latents 4 x 4 x 2" in printed
    _, meta = load(folder / "out")
    assert (meta.shape, meta.licence, meta.data_range) == ((4, 4, 2), "MIT", (-1.0, 1.0))
    assert meta.model.network["num_classes"] == 3
    assert meta.autoencoder["scaling_factor"] == 0.3
    assert load_autoencoder(folder / "out").image_shape == (8, 8, 3)
    # Each part in its own precision.
    found = import_diffusers(folder)
    assert {leaf.dtype for leaf in to_named(found.model.network).values()} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in to_named(found.autoencoder).values()} == {np.dtype("float16")}


def test_a_class_is_drawn_by_number_or_name(folder, run):
    run("import", folder, folder / "out")
    chosen = open_model(str(folder / "out"))
    assert chosen.meta.labels == ("cat, house cat", "Dog", "owl")
    names = ("2", "house cat", "cat", "dog", "OWL", None)
    assert [find_label(chosen, name) for name in names] == [2, 0, 0, 1, 2, None]
    with pytest.raises(ValueError, match="no class called 'dgo'; did you mean 'dog'"):
        find_label(chosen, "dgo")
    with pytest.raises(ValueError, match="class 3 is out of range"):
        find_label(chosen, "3")


def test_the_older_name_of_the_network_is_read(folder):
    old = {"_class_name": "Transformer2DModel", "cross_attention_dim": None}
    edit(folder / "transformer" / "config.json", **old, double_self_attention=False)
    assert import_diffusers(folder).meta.model.network["kind"] == "dit"


BAD = {
    "a text encoder": (
        "model_index.json",
        {"text_encoder": ["transformers", "CLIPTextModel"]},
        r"has a part 'text_encoder' \(CLIPTextModel\)",
    ),
    "another kind of autoencoder": (
        "vae/config.json",
        {"_class_name": "AutoencoderTiny"},
        "the autoencoder AutoencoderTiny is not supported; supported: AutoencoderKL, VQModel",
    ),
    "another norm of a quantised autoencoder": (
        "vae/config.json",
        {"_class_name": "VQModel", "norm_type": "spatial"},
        "norm_type 'spatial' of VQModel is not supported",
    ),
    "another autoencoder": (
        "vae/config.json",
        {"latent_channels": 4},
        "latents of 4 channels and the network takes 2",
    ),
    "other blocks": (
        "vae/config.json",
        {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]},
        "up_block_types .* is not supported",
    ),
    "standardised latents": ("vae/config.json", {"latents_mean": [0.0, 1.0]}, "latents_mean"),
    "an unknown setting": (
        "vae/config.json",
        {"spectral": True},
        "setting 'spectral' of AutoencoderKL is unknown",
    ),
    "other widths": (
        "vae/config.json",
        {"block_out_channels": [4, 8]},
        "the autoencoder in .* does not fit its config",
    ),
    "attention to text": (
        "transformer/config.json",
        {"_class_name": "UNet3DConditionModel", "cross_attention_dim": 768},
        "UNet3DConditionModel attends to a text",
    ),
    "another norm": (
        "transformer/config.json",
        {"norm_type": "ada_norm_single"},
        "norm_type 'ada_norm_single' is not a DiT",
    ),
    "an unknown setting of the network": (
        "transformer/config.json",
        {"rope": True},
        "setting 'rope' of DiTTransformer2DModel is unknown",
    ),
    "another activation": (
        "transformer/config.json",
        {"activation_fn": "geglu"},
        "activation must be one of",
    ),
    "other patches": (
        "transformer/config.json",
        {"patch_size": 4},
        "'pos_embed.pos_embed' is not what this network computes",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_a_pipeline_that_is_not_read_is_refused_in_one_line(case, folder, run):
    file, changes, message = BAD[case]
    edit(folder / file, **changes)
    with pytest.raises(ValueError, match=message):
        import_diffusers(folder)
    code, _, complaint = run("import", folder, folder / "out")
    assert code == 1
    assert len(complaint.splitlines()) == 1
    assert not (folder / "out").exists()


def test_a_pipeline_without_its_autoencoder_is_refused(folder):
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json in .*vae"):
        import_diffusers(folder)


def test_flow_matching_is_rectified_flow_told_a_thousand_sigma():
    process = read_scheduler(FLOW)
    assert process.path == {"kind": "rectified_flow"}
    assert process.parametrization == {"kind": "velocity", "rate": 1000.0}
    # The last but one of the sampler's own sigmas, 1/1000 shifted: 3 s/(1 + 2 s).
    assert process.t_min == pytest.approx(3e-3 / 1.002)
    assert process.t_max == pytest.approx(0.999)
    assert "t_max is 0.999" in process.notes[0]
    dynamic = read_scheduler({**FLOW, "use_dynamic_shifting": True})
    assert dynamic.t_min == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"invert_sigmas": True}, "from noise to data"),
        ({"shift": "3"}, "shift of FlowMatchEulerDiscreteScheduler must be a number"),
        ({"num_train_timesteps": 1}, "must be above 1"),
        ({"betas": [0.1]}, "the setting 'betas'"),
    ],
)
def test_other_flows_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_scheduler({**FLOW, **changes})
