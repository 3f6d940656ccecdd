"""`dgjax import`: a folder of diffusers' becomes a checkpoint that every command takes."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from dgjax.checkpoints.arrays import to_named
from dgjax.checkpoints.checkpoint import load
from dgjax.checkpoints.opened import open_model
from dgjax.checkpoints.spec import ModelSpec, build_network
from dgjax.importing import import_diffusers, import_model
from dgjax.importing.diffusers_unet2d import read_unet2d

CONFIG = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.30.0",
    "sample_size": 4,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["AttnDownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "mid_block_type": None,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 50, "beta_end": 0.2}
SCHEDULER |= {"clip_sample": True}
FILE = "diffusion_pytorch_model.safetensors"


def source_names(config):
    """Names and shapes of the weights as PyTorch has them."""
    shape, network, _ = read_unet2d(config)
    noise, path = {"kind": "noise"}, {"kind": "vp"}
    spec = ModelSpec(shape, network, path, noise, 0.1, 0.9)
    named = {}
    for name, leaf in to_named(nnx.eval_shape(lambda: build_network(spec))).items():
        owner, _, last = name.rpartition(".")
        sides = leaf.shape
        if last == "kernel":
            sides = sides[::-1] if len(sides) == 2 else (*sides[:1:-1], *sides[:2])
        last = "weight" if last in ("kernel", "scale", "embedding") else last
        named[f"{owner}.{last}"] = sides
    return named


def write(folder, *, weights=None, licence="apache-2.0", **changes):
    """A pipeline's folder; `weights` changes the arrays before they are written."""
    config = CONFIG | changes
    rng = np.random.default_rng(0)
    arrays = {
        name: (0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in source_names(config).items()
    }
    arrays = arrays if weights is None else weights(arrays)
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True)
    save_file(arrays, folder / "unet" / FILE)
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text(f"---\ntags: [x]\nlicense: {licence}\n---\n# Card\n")
    return folder


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source")


def output(model, cond=None):
    x = jax.random.normal(jax.random.key(0), (4, 4, 1), jnp.float32)
    return np.asarray(jax.jit(model.pair)(jnp.float32(20.0), x, cond).x0)


def test_a_pipeline_becomes_a_checkpoint_that_says_what_it_is(source, tmp_path, run):
    status, printed, complaint = run("import", source, tmp_path / "out")
    assert status == 0, complaint
    for fact in ("UNet2DModel", "4 x 4 x 1", "discrete_time", "apache-2.0", "float32"):
        assert fact in printed
    assert f"next: dgjax sample --model {tmp_path / 'out'}" in printed
    assert "clip_sample" in complaint
    model, meta = load(tmp_path / "out")
    assert (meta.licence, meta.source, meta.data_range) == ("apache-2.0", str(source), (-1, 1))
    assert open_model(str(tmp_path / "out")).facts()["source"] == str(source)
    assert (float(model.t_min), float(model.t_max)) == (0, 49)
    np.testing.assert_array_equal(output(model), output(import_diffusers(source).model))
    level = float(model.path.sigma(model.t_max) / model.path.alpha(model.t_max))
    assert f"to {level:.4g}" in printed


@pytest.mark.slow
def test_every_command_takes_it(tmp_path, run):
    source = write(tmp_path / "source", down_block_types=["DownBlock2D"])
    assert run("import", source, tmp_path / "out")[0] == 0
    model = ("--model", tmp_path / "out", "--steps", 4)
    Image.fromarray(np.full((4, 4), 90, np.uint8)).save(tmp_path / "grey.png")
    made = ("--out", tmp_path / "made")
    for arguments in (
        ("sample", *model, "--num", 2, "--q", 0.4, *made),
        ("likelihood", tmp_path / "grey.png", *model),
        ("edit", tmp_path / "grey.png", *model, "--q", 0.4, *made),
        ("align", *model, "--num", 2),
    ):
        status, _, complaint = run(*arguments)
        assert status == 0, (arguments, complaint)
    with np.load(tmp_path / "made" / "samples.npz") as found:
        assert np.isfinite(found["x"]).all()
        assert np.isfinite(found["log_density"]).all()


def test_precision_and_old_names_are_read_and_the_oldest_layout_too(tmp_path, run):
    new = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]

    def old(arrays):
        for now, before in new:
            arrays = {name.replace(now, before): array for name, array in arrays.items()}
        return {name: array.astype(np.float16) for name, array in arrays.items()}

    folder = write(tmp_path / "source", weights=old, licence='"mit"')
    for file in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
        file.rename(folder / file.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    found = import_diffusers(folder)
    assert found.meta.licence == "mit"
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(found.model.network)} == {
        np.dtype(np.float16)
    }
    assert run("import", folder, tmp_path / "out", "--licence", "CC0-1.0")[0] == 0
    model, meta = load(tmp_path / "out")
    assert meta.licence == "CC0-1.0"
    right = write(tmp_path / "new")
    np.testing.assert_allclose(output(model), output(import_diffusers(right).model), atol=0.02)


def test_a_network_alone_takes_a_scheduler(source, tmp_path, run):
    arguments = ("import", source / "unet", tmp_path / "out")
    status, _, complaint = run(*arguments)
    assert status == 1
    assert "give the scheduler's config, by the option scheduler" in complaint
    for scheduler in (source / "scheduler", source / "scheduler" / "scheduler_config.json"):
        assert run(*arguments, "--scheduler", scheduler)[0] == 0
        assert load(tmp_path / "out")[1].model.t_max == 49


@pytest.mark.slow
def test_a_network_with_classes_takes_one_and_needs_one(tmp_path, run):
    folder = write(tmp_path / "source", num_class_embeds=3)
    assert run("import", folder, tmp_path / "out")[0] == 0
    model, _ = load(tmp_path / "out")
    assert np.abs(output(model, 0) - output(model, 2)).max() > 1e-3
    with pytest.raises(ValueError, match="out of range: this network takes 0 to 2"):
        model.pair(jnp.float32(3.0), jnp.zeros((4, 4, 1)), 3)
    status, _, complaint = run("sample", "--model", tmp_path / "out", "--out", tmp_path / "o")
    assert status == 1
    assert re.search("with a class for every image: add --class, a number from 0 to 2", complaint)
    with pytest.raises(ValueError, match="pass a class label as cond"):
        model.pair(jnp.float32(3.0), jnp.zeros((4, 4, 1)))
    plain, _ = load(write_plain(tmp_path, run))
    with pytest.raises(ValueError, match="takes no condition"):
        plain.pair(jnp.float32(3.0), jnp.zeros((4, 4, 1)), 1)


def test_a_network_of_a_pipeline_has_its_scheduler_there(source):
    with pytest.raises(ValueError, match=f"import {source}, to which it belongs"):
        import_model(source / "unet")
    whole, alone = import_model(source), import_model(source / "unet", scheduler=source)
    assert whole.scheduler == alone.scheduler
    assert whole.meta.model == alone.meta.model


def write_plain(tmp_path, run):
    run("import", write(tmp_path / "plain"), tmp_path / "plain-out")
    return tmp_path / "plain-out"


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def spoil_weights(change):
    def spoil(folder):
        arrays = load_file(folder / "unet" / FILE)
        change(arrays)
        save_file(arrays, folder / "unet" / FILE)

    return spoil


def spoil_unet(**changes):
    return lambda folder: change_json(folder / "unet" / "config.json", **changes)


def spoil_scheduler(**changes):
    return lambda folder: change_json(folder / "scheduler" / "scheduler_config.json", **changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "unet" / FILE).unlink(), "has no weights"),
        (lambda f: (f / "unet" / FILE).write_bytes(b"12345678{}"), "damaged or not safetensors"),
        (lambda f: (f / "unet" / "config.json").unlink(), r"no config\.json in"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "unet" / "config.json").write_text("[]"), "holds no JSON object"),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "X", "vae": []}'),
            "the pipeline X has 0 networks",
        ),
        (spoil_unet(_class_name="UNet3DModel"), "did you mean 'UNet2DModel'"),
        (spoil_unet(down_block_types=["KDownBlock2D"]), "K blocks go with K blocks only"),
        (spoil_unet(up_block_types=["UpBlock2D"] * 2), "takes as many down_block_types and"),
        (spoil_unet(block_out_channels="wide"), "block_out_channels"),
        (spoil_unet(time_embedding_type="learned"), "time_embedding_type 'learned'"),
        (spoil_unet(resnet_time_scale_shift="spatial"), "resnet_time_scale_shift 'spatial'"),
        (spoil_unet(act_fn="tanh"), "act_fn 'tanh' is unknown"),
        (spoil_unet(out_channels=3), "out_channels must be 1, or 2"),
        (spoil_unet(sample_size=None), "give the size of the images, by the option shape"),
        (spoil_unet(layers=3), "setting 'layers' of UNet2DModel is unknown"),
        (spoil_unet(block_out_channels=[16]), "is expected"),
        (spoil_unet(layers_per_block=2), "is missing"),
        (spoil_unet(norm_num_groups=3), "groups"),
        (spoil_unet(time_embedding_type="fourier"), "do not belong together"),
        (spoil_scheduler(_class_name="ScoreSdeVeScheduler"), "setting 'beta_end'"),
        (spoil_scheduler(_class_name="CMStochasticIterativeScheduler"), "scheduler '.*unknown"),
        (spoil_weights(lambda w: w.update(extra=np.zeros(2, np.float32))), "'extra' has no place"),
        (spoil_weights(lambda w: w.pop("conv_in.bias")), "'conv_in.bias' is missing"),
        (
            spoil_weights(lambda w: w.update({"conv_in.bias": np.full(8, np.nan, np.float32)})),
            "conv_in.bias is not finite",
        ),
    ],
)
def test_trouble_is_one_line_and_nothing_is_half_written(spoil, message, source, tmp_path, run):
    spoil(source)
    status, printed, complaint = run("import", source, tmp_path / "out")
    assert (status, printed) == (1, "")
    assert re.search(message, complaint)
    assert len(complaint.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
