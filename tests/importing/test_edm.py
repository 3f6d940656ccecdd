"""SongUNet and DhariwalUNet are EDM's networks: equal outputs, names, sizes, preconditioning.

The other side is NVIDIA's PhysicsNeMo, which has both networks under a free licence. What it says
of the weights here is written down, so that the tests hold without it.
"""

import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but
from flax import nnx
from safetensors.numpy import load_file, save_file

from dgjax.checkpoints.arrays import to_named
from dgjax.checkpoints.checkpoint import load
from dgjax.importing import import_edm, import_model
from dgjax.networks import DhariwalUNet, SongUNet
from dgjax.networks.resampling import filter_down, filter_up

pytestmark = pytest.mark.usefixtures("float32")

SONG = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "model_type": "SongUNet",
}
CONFIGS = {
    "ddpmpp": SONG | {"label_dim": 5, "augment_dim": 9, "channel_mult": [2, 2], "num_blocks": 2},
    "ncsnpp": SONG
    | {
        "img_resolution": 16,
        "channel_mult": [1, 2, 2],
        "attn_resolutions": [16, 8],
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1],
        "channel_mult_noise": 2,
    },
    # Both sides along, and a filter of which a reversed copy would be noticed.
    "skip": SONG
    | {
        "img_channels": 1,
        "channel_mult": [1, 2, 1],
        "encoder_type": "skip",
        "decoder_type": "skip",
        "resample_filter": [1, 2, 4, 1],
        "channel_mult_emb": 2,
    },
    "adm": SONG | {"model_type": "DhariwalUNet", "model_channels": 64, "label_dim": 5},
    "adm_told": SONG
    | {
        "model_type": "DhariwalUNet",
        "model_channels": 64,
        "channel_mult": [2, 1],
        "channel_mult_emb": 2,
        "attn_resolutions": [8],
        "num_blocks": 2,
        "augment_dim": 9,
    },
}
KINDS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
RENAMED = {"img_resolution", "img_channels", "label_dim", "model_type", "augment_dim"}


def network(config):
    """Of a config of EDM's, with shapes instead of weights."""
    size, channels = config["img_resolution"], config["img_channels"]
    arguments = {k: v for k, v in config.items() if k not in RENAMED}
    arguments |= {"num_classes": config.get("label_dim"), "augment_dim": config.get("augment_dim")}
    make = KINDS[config["model_type"]]
    return nnx.eval_shape(lambda: make((size, size, channels), **arguments, rngs=nnx.Rngs(0)))


def draw(name, shape):
    """The same for a name everywhere; none is nought, and variances stay near one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan = np.prod(shape[1:]) if len(shape) > 1 else 4.0
    value = rng.standard_normal(shape) / np.sqrt(fan)
    return np.float32(value + 1 if re.search(r"norm\d?\.weight$", name) else value)


def state_dict(config):
    """What EDM would save, by its names: weights by `draw`, and the filters."""
    size, found = config["img_resolution"], {}
    for name, leaf in to_named(network(config)).items():
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(leaf.shape), (0,))
        name = re.sub(
            r"trunk\.(enc|dec)\.(\d+)\.(?:blocks\.(\d+))?",
            lambda m: (
                f"{m[1]}.{size >> int(m[2])}x{size >> int(m[2])}_"
                + ("" if m[3] is None else f"block{m[3]}")
            ),
            name,
        )
        if config["model_type"] == "DhariwalUNet":
            name = re.sub(r"dec\.\d+x\d+_aux_", "out_", name)
        name = re.sub(r"(kernel|scale)$", "weight", name)
        found[name] = draw(name, tuple(leaf.shape[axis] for axis in axes))
    row = np.array(config.get("resample_filter", [1, 1]), np.float32)
    filtered = np.outer(row, row)[None, None] / row.sum() ** 2
    places = {m[1] for name in found if (m := re.match(r"(.*_(up|down)\.)conv0", name))}
    for place in places:
        found[place + "conv0.resample_filter"] = filtered
        found[place + "skip.resample_filter"] = filtered
    for name in list(found):
        if m := re.match(r"(enc\.\d+x\d+_)aux_(skip|residual)\.weight", name):
            found[
                m[1] + {"skip": "aux_down", "residual": "aux_residual"}[m[2]] + ".resample_filter"
            ] = filtered
        if config.get("decoder_type") == "skip" and (
            m := re.match(r"(dec\.\d+x\d+_)up\.conv0\.w", name)
        ):
            found[m[1] + "aux_up.resample_filter"] = filtered
    return found


def write(folder, config, **more):
    folder.mkdir()
    weights = {f"model.{name}": value for name, value in state_dict(config).items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"precond": "EDMPrecond"} | config | more))
    return folder


def given(config):
    """Two images, a logarithm of the noise level, labels and augmentations."""
    size, channels = config["img_resolution"], config["img_channels"]
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((2, size, size, channels)))
    labels = np.array([3, 0]) if config.get("label_dim") else None
    told = None
    if config.get("augment_dim"):
        told = np.float32(rng.standard_normal((2, config["augment_dim"])))
    return x, np.float32([-0.7, 0.4]), labels, told


def outputs(network, config):
    x, t, labels, told = given(config)
    run = jax.jit(jax.vmap(lambda x, t, label, told: network(x, t, label, augmentation=told)))
    return np.asarray(run(x, t, labels, told))


def original(config):
    """PhysicsNeMo's outputs for the same weights."""
    torch = pytest.importorskip("torch")
    unets = pytest.importorskip("physicsnemo.models.diffusion_unets")
    arguments = {k: v for k, v in config.items() if k not in ("img_channels", "model_type")}
    channels = config["img_channels"]
    arguments |= {"in_channels": channels, "out_channels": channels, "dropout": 0.0}
    # As in training: for inference PhysicsNeMo (2.2) takes another variance in its normalisation,
    # with n - 1 for n. EDM does not, nor does PhysicsNeMo in training.
    network = getattr(unets, config["model_type"])(**arguments).train()
    weights = {}
    for name, value in state_dict(config).items():
        name = re.sub(r"\.norm2\.", ".attn.norm.", name)
        weights[re.sub(r"\.(qkv|proj)\.", r".attn.\1.", name)] = torch.from_numpy(value)
    buffers = dict(network.named_buffers())  # it keeps the frequencies, too
    if config.get("embedding_type") != "fourier":
        weights["map_noise.freqs"] = buffers["map_noise.freqs"]
    network.load_state_dict(weights, strict=True)
    x, t, labels, told = given(config)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    hot = None if labels is None else torch.eye(config["label_dim"])[labels]
    more = {} if told is None else {"augment_labels": torch.from_numpy(told)}
    with torch.no_grad():
        out = network(images, torch.from_numpy(t), hot, **more)
    return out.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("row", [(1, 1), (1, 3, 3, 1), (1, 2, 4, 1), (1.0, 2, 3, 4, 5, 7)])
def test_resampling_is_a_convolution(row):
    h = jax.random.normal(jax.random.key(0), (1, 6, 8, 2))
    half = len(row) // 2

    def convolved(row, gain, padding, **options):
        kernel = jnp.outer(jnp.array(row), jnp.array(row))[..., None, None] * gain / sum(row) ** 2
        return jax.lax.conv_general_dilated(
            h,
            jnp.tile(kernel.astype(h.dtype), (1, 1, 1, 2)),
            padding=2 * [(padding, padding)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
            **options,
        )

    right = convolved(row, 1, half - 1, window_strides=(2, 2))
    np.testing.assert_allclose(filter_down(h, row), right, atol=1e-6)
    right = convolved(row, 1, half, window_strides=(2, 2))
    np.testing.assert_allclose(filter_down(h, row, half), right, atol=1e-6)
    right = convolved(row[::-1], 4, half, window_strides=(1, 1), lhs_dilation=(2, 2))
    np.testing.assert_allclose(filter_up(h, row), right, atol=1e-6)


# PhysicsNeMo 2.2.2 (PyTorch 2.13): two values of its outputs, and their standard deviation.
RECORDED = {
    "ddpmpp": (-0.11990163, -0.8699509, 0.55287206),
    "ncsnpp": (0.76408416, 1.4984188, 0.7901892),
    "skip": (1.4315917, 0.60290766, 0.8442807),
    "adm": (1.6175823, 1.2195299, 1.4617178),
    "adm_told": (0.3017165, 0.95253074, 1.162396),
}


def recorded(out):
    return out[0, 3, 2, 0], out[1, 5, 7, -1], out.std()


def on_device(model):
    return jax.tree.map(jnp.asarray, model)


@pytest.mark.parametrize("name", slow_but(CONFIGS, "ncsnpp"))
def test_outputs_are_those_that_were_recorded(name, tmp_path):
    model = on_device(import_edm(write(tmp_path / "source", CONFIGS[name])).model)
    mine = outputs(model.network, CONFIGS[name])
    np.testing.assert_allclose(recorded(mine), RECORDED[name], rtol=0, atol=1e-4 * mine.std())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_equal(name, tmp_path):
    right = original(CONFIGS[name])
    np.testing.assert_allclose(recorded(right), RECORDED[name], rtol=0, atol=1e-4 * right.std())
    model = on_device(import_edm(write(tmp_path / "source", CONFIGS[name])).model)
    mine = outputs(model.network, CONFIGS[name])
    assert np.abs(mine - right).max() < 1e-4 * np.abs(right).max()


def test_a_model_is_found_from_its_file_of_weights(tmp_path):
    folder = write(tmp_path / "source", CONFIGS["adm"])
    found = import_model(folder / "model.safetensors")
    assert (found.architecture, found.scheduler) == ("DhariwalUNet", "EDMPrecond")
    with pytest.raises(ValueError, match="read by import_edm, which takes no scheduler"):
        import_model(folder, scheduler=tmp_path)


@pytest.mark.slow
def test_published_networks_have_the_published_numbers_of_parameters():
    """In millions (Karras et al. 2022, table 7), with CIFAR-10's augmentation."""
    cifar = {"model_type": "SongUNet", "img_resolution": 32, "img_channels": 3, "augment_dim": 9}
    ncsnpp = {
        "channel_mult_noise": 2,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1],
    }
    imagenet = {"model_type": "DhariwalUNet", "img_resolution": 64, "img_channels": 3}
    for config, millions in (
        (cifar | {"channel_mult": [2, 2, 2]}, 55.7),
        (cifar | {"channel_mult": [2, 2, 2]} | ncsnpp, 56.4),
        (cifar | {"img_resolution": 64}, 61.8),
        (imagenet | {"label_dim": 1000}, 295.9),
    ):
        count = sum(leaf.size for leaf in jax.tree.leaves(network(config)))
        assert round(count / 1e6, 1) == millions


@pytest.mark.slow
def test_preconditionings_are_those_of_edm(tmp_path):
    """Denoised images by the formulas of table 1, from the network alone."""
    config = CONFIGS["ddpmpp"]
    y, label = given(config)[0][0], 2
    model = on_device(import_edm(write(tmp_path / "edm", config, sigma_data=0.4)).model)
    for sigma in (0.01, 1.0, 60.0):
        total = np.sqrt(sigma**2 + 0.4**2)
        out = model.network(jnp.float32(y / total), jnp.float32(np.log(sigma) / 4), label)
        right = (0.4 / total) ** 2 * y + sigma * 0.4 / total * out
        x0 = model.pair(jnp.float32(sigma), y, label).x0
        np.testing.assert_allclose(x0, right, atol=1e-5 * np.abs(right).max())
    assert (float(model.t_min), float(model.t_max)) == (np.float32(0.002), 80.0)

    model = on_device(import_edm(write(tmp_path / "vp", config, precond="VPPrecond")).model)
    for t in (1e-4, 0.3, 1.0):
        sigma = np.sqrt(np.expm1(0.5 * 19.9 * t**2 + 0.1 * t))
        alpha = 1 / np.sqrt(1 + sigma**2)
        right = y - sigma * model.network(jnp.float32(y * alpha), jnp.float32(999 * t), label)
        x0 = model.pair(jnp.float32(999 * t), jnp.float32(y * alpha), label).x0
        np.testing.assert_allclose(x0, right, atol=1e-3 * np.abs(right).max())
    assert float(model.t_max) == 999

    model = on_device(import_edm(write(tmp_path / "ve", config, precond="VEPrecond")).model)
    for sigma in (0.03, 1.0, 60.0):
        right = y + sigma * model.network(y, jnp.float32(np.log(sigma / 2)), label)
        x0, eps = model.pair(jnp.float32(sigma), y, label)
        np.testing.assert_allclose(x0, right, atol=1e-5 * np.abs(right).max())
        np.testing.assert_allclose(x0 + sigma * eps, y, atol=1e-5 * np.abs(right).max())
    assert (float(model.t_min), float(model.t_max)) == (np.float32(0.02), 100.0)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_iddpm_predicts_at_its_steps_and_its_variance_is_left_out(name, tmp_path):
    """The noise levels by the recurrence of table 1, from the least noise, whose step is 0."""
    config = CONFIGS[name]
    folder = write(tmp_path / "iddpm", config, precond="iDDPMPrecond")
    plain = on_device(import_edm(folder).model)
    assert import_edm(folder).notes == ()

    def double(weights):
        for key in [k for k in weights if re.search(r"(out|_aux)_conv\.(weight|bias)$", k)]:
            weights[key] = np.concatenate([weights[key], 7 + weights[key]])

    change_weights(double)(folder)
    found = import_edm(folder)
    assert "learned variance" in found.notes[0]
    model = on_device(found.model)
    y, label = given(config)[0][0], 2 if config.get("label_dim") else None
    sigma, levels = 0.0, []
    bar = lambda j: np.sin(0.5 * np.pi * j / 1000 / 1.008) ** 2
    for j in range(1000, 0, -1):
        sigma = np.sqrt((sigma**2 + 1) / max(bar(j - 1) / bar(j), 0.001) - 1)
        levels.append(sigma)
    for step in (0, 400, 999):
        scale = 1 / np.sqrt(1 + levels[step] ** 2)
        out = plain.network(jnp.float32(y * scale), jnp.float32(step), label)
        right = y - levels[step] * out
        x0 = model.pair(jnp.float32(step), jnp.float32(y * scale), label).x0
        np.testing.assert_allclose(x0, right, atol=2e-3 * np.abs(right).max())
    assert (float(model.t_min), float(model.t_max)) == (0.0, 999.0)


@pytest.mark.slow
def test_a_folder_becomes_a_checkpoint(tmp_path, run):
    config = CONFIGS["ddpmpp"]
    source = write(tmp_path / "source", config, use_fp16=False, dropout=0.13)
    (source / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    status, printed, complaint = run("import", source, tmp_path / "out")
    assert (status, complaint) == (0, "")
    assert "SongUNet" in printed
    model, meta = load(tmp_path / "out")
    assert (meta.licence, meta.source, meta.shape) == ("cc0-1.0", str(source), (8, 8, 3))
    np.testing.assert_allclose(recorded(outputs(model.network, config)), RECORDED["ddpmpp"], 1e-3)
    x, t = jnp.zeros(meta.shape), jnp.float32(0.1)
    np.testing.assert_array_equal(model.network(x, t), model.network(x, t, 5))
    assert np.abs(model.network(x, t) - model.network(x, t, 4)).max() > 1e-3
    with pytest.raises(ValueError, match="label 6 is out of range: this network takes 0 to 4, or"):
        model.network(x, t, 6)
    with pytest.raises(ValueError, match="x has shape"):
        model.network(x[:4], t)


def change_config(**changes):
    def spoil(folder):
        file = folder / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return spoil


def change_weights(change):
    def spoil(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return spoil


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "model.pkl")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickled, "is a pickle"),
        (
            change_config(precond=None),
            'add "precond", the name of the class',
        ),
        (change_config(precond="EDM2Precond"), "preconditioning 'EDM2Precond' is unknown"),
        (change_config(sigma_data="half"), "sigma_data in config.json must be a number"),
        (change_config(label_dim=7), "label_dim = 7, they have 5"),
        (change_config(model_type="DhariwalUNet"), "model_type = 'DhariwalUNet', they have 'Song"),
        (change_config(attn_resolutions=[8]), r"attn_resolutions = \[8\], they have \[4\]"),
        (change_config(resample_filter=[1, 3, 3, 1]), "resample_filter"),
        (change_config(depth=3), "setting of EDM's networks 'depth' is unknown"),
        (change_weights(lambda w: w.pop("model.enc.8x8_conv.weight")), "no enc.8x8_conv.weight"),
        (change_weights(lambda w: w.pop("model.dec.4x4_in1.conv0.bias")), "in1.conv0.bias' is mis"),
        (change_weights(lambda w: w.update(u=np.zeros(3, np.float32))), "'u' has no place"),
        (
            change_weights(
                lambda w: w.update(
                    {"model.enc.4x4_down.skip.resample_filter": np.ones((1, 1, 2, 2), np.float32)}
                )
            ),
            "the constant .*resample_filter' is not what",
        ),
        (
            change_weights(lambda w: [w.pop(n) for n in list(w) if "enc" in n]),
            "is neither SongUNet nor",
        ),
    ],
)
def test_trouble_is_one_line_and_nothing_is_written(spoil, message, tmp_path, run):
    source = write(tmp_path / "source", CONFIGS["ddpmpp"])
    spoil(source)
    status, printed, complaint = run("import", source, tmp_path / "out")
    assert (status, printed) == (1, "")
    assert re.search(message, complaint.splitlines()[0]), complaint
    assert len(complaint.splitlines()) == (4 if spoil is pickled else 1)  # code that converts it
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_type": "both"}, "encoder_type 'both' is unknown"),
        ({"embedding_type": "none"}, "embedding_type 'none' is unknown"),
        ({"resample_filter": (1, 2, 1)}, "must be of even length"),
        ({"model_channels": 14}, "14 channels do not split into groups"),
        ({"channel_mult": (1,) * 5}, "multiples of 16"),
        ({"num_blocks": 0}, "needs levels and blocks"),
    ],
)
def test_networks_refuse_what_does_not_fit(arguments, message):
    small = {"model_channels": 8, "channel_mult": (1,), **arguments}
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: SongUNet((8, 8, 3), **small, rngs=nnx.Rngs(0)))


def test_heads_take_their_channels():
    with pytest.raises(ValueError, match="32 channels does not split into heads of 64"):
        network(CONFIGS["adm"] | {"model_channels": 32, "channel_mult": [1]})
