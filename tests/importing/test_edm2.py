"""EDM2: the network is equal to a PyTorch reference that is written from the paper's equations.

The reference takes weights as a pickle of EDM2 holds them, and normalizes them in every call.
"""

import json
import re
from itertools import pairwise
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import dgjax
from dgjax.checkpoints.checkpoint import load, save
from dgjax.importing import edm2_snapshots, import_edm2, import_model, is_edm, is_edm2
from dgjax.model.divergence import Untracked
from dgjax.model.local import evaluate
from dgjax.networks import EDM2UNet
from dgjax.networks.edm2 import pixel_norm
from dgjax.training import ema, import_edm2_average

pytestmark = pytest.mark.usefixtures("float32")

PLAIN = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 0,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 8,
}
LABELLED = PLAIN | {"label_dim": 5}
TINY = PLAIN | {"img_resolution": 4, "channel_mult": [1], "attn_resolutions": []}
# Each setting differs from its default, and the filter from its own mirror image.
ALL = LABELLED | {
    "channel_mult_noise": 2,
    "channel_mult_emb": 3,
    "num_blocks": 2,
    "attn_resolutions": [8],
    "resample_filter": [1, 2, 4, 1],
    "label_balance": 0.3,
    "concat_balance": 0.6,
    "res_balance": 0.4,
    "attn_balance": 0.2,
    "clip_act": 1.5,
    "sigma_data": 0.7,
}


def blocks(config):
    """Name, channels in and out, and attention of each block, in their order."""
    widths = [config["model_channels"] * m for m in config["channel_mult"]]
    sizes = [config["img_resolution"] >> i for i in range(len(widths))]
    attend = [n in config["attn_resolutions"] for n in sizes]
    made, last = [widths[0]], widths[0]
    for i, (n, width) in enumerate(zip(sizes, widths, strict=True)):
        if i > 0:
            yield f"enc.{n}x{n}_down", last, last, False
            made.append(last)
        for j in range(config["num_blocks"]):
            yield f"enc.{n}x{n}_block{j}", last, width, attend[i]
            made.append(width)
            last = width
    for i, (n, width) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
        if i == len(sizes) - 1:
            yield f"dec.{n}x{n}_in0", last, last, True
            yield f"dec.{n}x{n}_in1", last, last, False
        else:
            yield f"dec.{n}x{n}_up", last, last, False
        for j in range(config["num_blocks"] + 1):
            yield f"dec.{n}x{n}_block{j}", last + made.pop(), width, attend[i]
            last = width


def state_dict(config, seed=0):
    """Random weights by EDM2's names, of magnitudes other than 1."""
    rng = np.random.default_rng(seed)
    base, channels = config["model_channels"], config["img_channels"]
    noise = base * config.get("channel_mult_noise", config["channel_mult"][0])
    size = base * config.get("channel_mult_emb", max(config["channel_mult"]))
    shapes = {"emb_noise": (size, noise), "out_conv": (channels, base, 3, 3)}
    if config["label_dim"]:
        shapes["emb_label"] = (size, config["label_dim"])
    n = config["img_resolution"]
    shapes[f"enc.{n}x{n}_conv"] = (base, channels + 1, 3, 3)
    gains = ["out_gain"]
    for name, inputs, outputs, attention in blocks(config):
        gains.append(f"{name}.emb_gain")
        first = outputs if name.startswith("enc") else inputs
        shapes[f"{name}.conv_res0"] = (outputs, first, 3, 3)
        shapes[f"{name}.emb_linear"] = (outputs, size)
        shapes[f"{name}.conv_res1"] = (outputs, outputs, 3, 3)
        if inputs != outputs:
            shapes[f"{name}.conv_skip"] = (outputs, inputs, 1, 1)
        if attention:
            shapes[f"{name}.attn_qkv"] = (3 * outputs, outputs, 1, 1)
            shapes[f"{name}.attn_proj"] = (outputs, outputs, 1, 1)
    found = {f"{name}.weight": 2 * rng.standard_normal(s) for name, s in shapes.items()}
    found |= {name: np.asarray(0.5 + rng.random()) for name in gains}
    found["emb_fourier.freqs"] = 2 * np.pi * rng.standard_normal(noise)
    found["emb_fourier.phases"] = 2 * np.pi * rng.random(noise)
    found = {f"unet.{name}": np.asarray(value, np.float32) for name, value in found.items()}
    head = {"fourier.freqs": (4,), "fourier.phases": (4,), "linear.weight": (1, 4)}
    return found | {f"logvar_{k}": np.ones(shape, np.float32) for k, shape in head.items()}


def write(folder, config, weights=None, file="model.safetensors", **more):
    folder.mkdir(exist_ok=True)
    weights = state_dict(config) if weights is None else weights
    save_file({name: np.asarray(value) for name, value in weights.items()}, folder / file)
    (folder / "config.json").write_text(json.dumps(config | more))
    return folder


def on_device(model):
    return jax.tree.map(jnp.asarray, model)


class Reference:
    """EDM2's network in PyTorch: `reference(x, t, label)` for images (n, channels, H, W)."""

    def __init__(self, weights, config):
        self.torch = pytest.importorskip("torch")
        self.weights = {k.removeprefix("unet."): self.torch.tensor(v) for k, v in weights.items()}
        self.config = config

    def layer(self, name, h):
        """Eq. 47 and 66: a weight of unit magnitude, over the root of the number of inputs."""
        w = self.weights[f"{name}.weight"]
        rms = w.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (w.ndim - 1))
        w = w / (rms + 1e-4) / sqrt(w[0].numel())
        if w.ndim == 2:
            return h @ w.T
        return self.torch.nn.functional.conv2d(h, w, padding="same")

    def silu(self, h):
        return h * h.sigmoid() / 0.596

    def sum(self, a, b, t):
        return ((1 - t) * a + t * b) / sqrt((1 - t) ** 2 + t**2)

    def norm(self, h, axis=1):
        return h / (h.square().mean(axis, keepdim=True).sqrt() + 1e-4)

    def resample(self, h, up):
        """Convolve each channel with the filter; zeros between the pixels on the way up."""
        row = self.torch.tensor(self.config.get("resample_filter", [1, 1]), dtype=h.dtype)
        row = row / row.sum()
        kernel = (row[:, None] * row).tile(h.shape[1], 1, 1, 1)
        settings = {"stride": 2, "padding": len(row) // 2 - 1, "groups": h.shape[1]}
        if up:
            return self.torch.nn.functional.conv_transpose2d(h, 4 * kernel, **settings)
        return self.torch.nn.functional.conv2d(h, kernel, **settings)

    def block(self, name, h, embedding, attention):
        if name.endswith(("_down", "_up")):
            h = self.resample(h, name.endswith("_up"))
        encoder, projected = name.startswith("enc"), f"{name}.conv_skip.weight" in self.weights
        if encoder:
            h = self.norm(self.layer(f"{name}.conv_skip", h) if projected else h)
        out = self.layer(f"{name}.conv_res0", self.silu(h))
        gain = 1 + self.weights[f"{name}.emb_gain"] * self.layer(f"{name}.emb_linear", embedding)
        out = self.layer(f"{name}.conv_res1", self.silu(out * gain[..., None, None]))
        if projected and not encoder:
            h = self.layer(f"{name}.conv_skip", h)
        h = self.sum(h, out, self.config.get("res_balance", 0.3))
        if attention:
            n, c, height, width = h.shape
            head = self.config["channels_per_head"]
            qkv = self.layer(f"{name}.attn_qkv", h).reshape(n, c // head, head, 3, height * width)
            q, k, v = (self.norm(part, 2).transpose(2, 3) for part in qkv.unbind(3))
            share = (q @ k.transpose(2, 3) / sqrt(head)).softmax(-1)
            out = self.layer(f"{name}.attn_proj", (share @ v).transpose(2, 3).reshape(h.shape))
            h = self.sum(h, out, self.config.get("attn_balance", 0.3))
        limit = self.config.get("clip_act", 256)
        return h.clamp(-limit, limit)

    def __call__(self, x, t, label):
        w, config = self.weights, self.config
        embedding = (t[:, None] * w["emb_fourier.freqs"] + w["emb_fourier.phases"]).cos() * sqrt(2)
        embedding = self.layer("emb_noise", embedding)
        if classes := config["label_dim"]:
            hot = self.torch.zeros(len(x), classes)
            if label is not None:
                hot[range(len(x)), label] = sqrt(classes)
            told = self.layer("emb_label", hot)
            embedding = self.sum(embedding, told, config.get("label_balance", 0.5))
        embedding = self.silu(embedding)
        n = config["img_resolution"]
        h = self.layer(f"enc.{n}x{n}_conv", self.torch.cat([x, self.torch.ones_like(x[:, :1])], 1))
        skips, share = [h], config.get("concat_balance", 0.5)
        for name, _, _, attention in blocks(config):
            if name.startswith("dec") and "block" in name:  # eq. 103
                skip = skips.pop()
                a, b = h.shape[1], skip.shape[1]
                scale = sqrt((a + b) / ((1 - share) ** 2 + share**2))
                parts = [h * scale * (1 - share) / sqrt(a), skip * scale * share / sqrt(b)]
                h = self.torch.cat(parts, 1)
            h = self.block(name, h, embedding, attention)
            skips += [h] if name.startswith("enc") else []
        return self.layer("out_conv", h) * w["out_gain"]


@pytest.mark.parametrize(
    ("config", "half"),
    [(ALL, False), pytest.param(PLAIN, True, marks=pytest.mark.slow)],
    ids=["all settings", "defaults, in half precision"],
)
def test_the_network_is_that_of_the_paper(config, half, tmp_path):
    weights = state_dict(config)
    if half:
        weights = {name: value.astype(np.float16) for name, value in weights.items()}
    found = import_edm2(write(tmp_path / "source", config, weights))
    network = on_device(found.model.network)
    rng = np.random.default_rng(1)
    n = config["img_resolution"]
    x, t = np.float32(rng.standard_normal((2, n, n, 3))), np.float32([-0.9, 0.4])
    labels = np.array([3, 0]) if config["label_dim"] else None
    torch = pytest.importorskip("torch")
    reference = Reference({k: np.float32(v) for k, v in weights.items()}, config)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    run = jax.jit(jax.vmap(lambda x, t, label: network(x, t, label)))
    for given in [labels] if labels is None else [labels, None]:
        right = reference(images, torch.from_numpy(t), given).numpy().transpose(0, 2, 3, 1)
        # The label after the last is what EDM2 takes for no label.
        none = None if labels is None else np.full(2, config["label_dim"])
        mine = run(x, t, none if given is None else given)
        np.testing.assert_allclose(mine, right, rtol=0, atol=2e-5 * right.std())
    if labels is not None:
        with pytest.raises(ValueError, match="pass a class label as cond"):
            network(x[0], t[0])
    assert found.model.parametrization.sigma_data == np.float32(config.get("sigma_data", 0.5))


def test_gradients_are_finite_where_features_vanish():
    slope = jax.grad(lambda h: pixel_norm(h).sum())(jnp.zeros((1, 4)))
    assert jnp.isfinite(slope).all()


@pytest.mark.slow
def test_arrays_of_products_for_a_batch_have_few_axes():
    """XLA 0.10.2 crashes on CPUs in sums over one of 8 axes; two of these are of `vmap`."""
    net = EDM2UNet(
        (8, 8, 3),
        None,
        8,
        (1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        channels_per_head=8,
        rngs=nnx.Rngs(0),
    )
    model = dgjax.field(net, dgjax.edm(), dgjax.preconditioned(0.5), t_min=0.02, t_max=80.0)
    options = {"divergence": dgjax.Coloured(2), "key": jax.random.key(0)}
    batch = jax.vmap(lambda x: evaluate(model, 1.0, x, **options).divergences)

    def axes(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name.startswith("reduce"):
                yield from (v.aval.ndim for v in equation.invars)
            for inner in jax.tree.leaves(list(equation.params.values())):
                if hasattr(inner, "jaxpr"):
                    yield from axes(inner.jaxpr)

    found = [*axes(jax.make_jaxpr(batch)(jnp.ones((4, 8, 8, 3))).jaxpr)]
    assert len(found) > 10
    assert max(found) < 7  # one more is for a vmap of the caller


def test_the_uncertainty_head_is_left_out_and_weights_are_plain(tmp_path):
    folder = write(tmp_path / "source", LABELLED, use_fp16=True, dropout=0.1, precond="Precond")
    assert is_edm2(folder)
    assert is_edm2(folder / "model.safetensors")
    assert not is_edm(folder)
    found = import_model(folder)
    assert "states no encoder" in found.notes[0]
    assert "uncertainty head (logvar)" in found.notes[1]
    assert (found.model.t_min, found.meta.data_range) == (np.float32(0.002), (-1.0, 1.0))
    # Weights are plain: the inputs of each channel have norm 1.
    kernel = found.model.network.dec[0].conv_res0.kernel[...]
    np.testing.assert_allclose(np.square(kernel).sum((0, 1, 2)), 1, rtol=2e-4)


def without(key):
    return {name: value for name, value in LABELLED.items() if name != key}


BAD_CONFIGS = {
    "a size missing": (without("img_resolution"), "img_resolution .* got None: .* init_kwargs"),
    "an unknown setting": (LABELLED | {"res_balanc": 0.3}, "did you mean 'res_balance'"),
    "another width": (LABELLED | {"model_channels": 16}, "has shape .* is expected"),
    "other attention": (LABELLED | {"attn_resolutions": []}, "attn_.* has no place"),
    "other labels": (LABELLED | {"label_dim": 4}, "emb_label.weight' has shape"),
    "another type": (LABELLED | {"num_blocks": 1.5}, "num_blocks must be a whole number"),
    "another encoder": (LABELLED | {"encoder": {"class_name": "VQ"}}, "encoder of EDM2 'VQ'"),
    "no table": (LABELLED | {"encoder": "rgb"}, "must be a table"),
    "a baseline": (LABELLED | {"precond": "VPPrecond"}, "states precond 'VPPrecond', and"),
    "heads": (LABELLED | {"channels_per_head": 5}, "do not split into 3 attention heads"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_what_does_not_fit_is_one_line(name, tmp_path):
    config, message = BAD_CONFIGS[name]
    folder = write(tmp_path / "source", LABELLED)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as raised:
        import_edm2(folder)
    assert "\n" not in str(raised.value)


def test_a_folder_without_weights_of_edm2_is_not_one(tmp_path):
    assert not is_edm2(tmp_path)
    assert not is_edm2(tmp_path / "missing")
    (tmp_path / "edm2-img512-xs-2147483-0.135.pkl").write_bytes(b"\x80\x04.")
    assert not is_edm2(tmp_path)
    save_file({"unet.conv_in.weight": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    assert not is_edm2(tmp_path)


def test_autoguidance_between_two_imports(tmp_path):
    models = {}
    for name, config in (("big", TINY | {"label_dim": 5, "sigma_data": 0.7}), ("small", TINY)):
        model = import_edm2(write(tmp_path / name, config)).model
        models[name] = dgjax.repath(on_device(model), dgjax.edm(7.0))
    big, small = models["big"], models["small"]
    x, label = jax.random.normal(jax.random.key(0), (4, 4, 3)), jnp.asarray(3)
    t = big.path.time(jnp.float32(1.0))

    @jax.jit
    def drifts(big, small, x, label):
        here = evaluate(big, t, x, cond=label, divergence=Untracked(), key=jax.random.key(0))
        guide = dgjax.autoguidance(2.5, small)
        other = -small.pair(t, x).eps / here.sigma
        return guide(here.velocity, here), here.velocity, here.g2, here.score, other

    guided, velocity, g2, score, other = drifts(big, small, x, label)
    right = velocity - 0.5 * g2 * 1.5 * (score - other)
    np.testing.assert_allclose(guided, right, rtol=0, atol=1e-4 * np.abs(right).max())
    assert np.abs(score - other).max() > 0.1 * np.abs(score).max()


@pytest.mark.slow
def test_a_checkpoint_is_sampled_with_a_class_a_weaker_model_and_a_dial(tmp_path, run):
    for name, config in (("big", TINY | {"label_dim": 5}), ("small", TINY)):
        weights = state_dict(config)
        weights["unet.out_gain"] *= 0.1  # nearly Gaussian data, whose density 4 steps can follow
        found = import_edm2(write(tmp_path / f"{name}-source", config, weights))
        save(tmp_path / name, found.model, found.meta, dtype=None)
    reloaded, meta = load(tmp_path / "big")
    source = import_edm2(tmp_path / "big-source").model.network
    jax.tree.map(np.testing.assert_array_equal, reloaded.network, source)
    assert meta.model.network["num_classes"] == 5
    options = ["--model", tmp_path / "big", "--class", 3, "--num", 1, "--steps", 4]
    options += ["--probes", 1, "--q", 0.4, "--q", 0.6, "--out", tmp_path / "out"]
    options += ["--guidance-model", tmp_path / "small", "--guidance", 2]
    code, _, complaint = run("sample", *options)
    assert code == 0, complaint
    with np.load(tmp_path / "out" / "samples.npz") as found:
        assert found["log_density"][1, 0] > found["log_density"][0, 0]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["class"], summary["guidance_model"]) == (3, str(tmp_path / "small"))


SIZES = {"xs": 124.7, "s": 280.2, "m": 497.8, "l": 777.5, "xl": 1119.3, "xxl": 1523.2}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    """Millions of parameters, as published for ImageNet at 512x512 pixels."""
    width = 128 + 64 * list(SIZES).index(name)
    make = lambda: EDM2UNet((64, 64, 4), 1000, width, rngs=nnx.Rngs(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.eval_shape(make)))
    assert round(count / 1e6, 1) == SIZES[name]


RUN = [(step, width) for step in range(200, 2001, 200) for width in (0.05, 0.1)]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """A run in which weights move on a straight line: at time tau they are 1 + tau/1000 times."""
    folder, weights = tmp_path_factory.mktemp("run"), state_dict(PLAIN)
    for step, width in RUN:
        gamma = ema.exponent(width)
        factor = 1 + step / 1000 * (gamma + 1) / (gamma + 2)  # the mean of the profile
        now = {
            name: value if name.endswith(("freqs", "phases")) else np.float32(factor * value)
            for name, value in weights.items()
        }
        write(folder, PLAIN, now, f"edm2-tiny-{step:07d}-{width:.3f}.safetensors")
    return folder


def test_post_hoc_ema_of_a_run(snapshots):
    assert [(s.step, s.width) for s in edm2_snapshots(snapshots)] == RUN
    assert is_edm2(snapshots)
    plain = state_dict(PLAIN)["unet.out_gain"]
    for width, step in ((0.07, 2000), (0.08, 1200)):
        found = import_edm2_average(snapshots, width, step=step)
        gamma = ema.exponent(width)
        right = plain * (1 + step / 1000 * (gamma + 1) / (gamma + 2))
        np.testing.assert_allclose(found.model.network.out_gain[...], right, rtol=4e-3)
        assert re.match(f"moving average of width {width} at {step} thousand", found.notes[0])
    one = import_edm2(edm2_snapshots(snapshots)[-1].file).model.network
    # Normalization takes the factor away again.
    for a, b in pairwise([one.in_conv.kernel[...], found.model.network.in_conv.kernel[...]]):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_an_average_is_imported_by_command(snapshots, tmp_path, run):
    code, printed, complaint = run("import", snapshots, tmp_path / "out", "--ema-width", 0.07)
    assert code == 0, complaint
    assert "moving average of width 0.07 at 2000 thousand images" in complaint
    assert f"next: dgjax sample --model {tmp_path / 'out'}" in printed
    right = import_edm2_average(snapshots, 0.07).model.network
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "out")[0].network, right)


def test_snapshots_that_do_not_serve_are_refused(snapshots, tmp_path):
    with pytest.raises(ValueError, match="20 snapshots of one training, such as edm2-tiny-0002000"):
        import_edm2(snapshots)
    with pytest.raises(ValueError, match=r"cannot be reconstructed .* would be"):
        import_edm2_average(snapshots, 0.01)
    with pytest.raises(ValueError, match="has no snapshots"):
        import_edm2_average(tmp_path, 0.1)
    for seed, step in ((0, 400), (1, 800)):
        file = f"x-{step}-0.050.safetensors"
        write(tmp_path, PLAIN, state_dict(PLAIN, seed), file)
    with pytest.raises(ValueError, match=r"two training runs: they differ in unet\.emb_fourier"):
        import_edm2_average(tmp_path, 0.05)
    write(tmp_path, PLAIN, state_dict(LABELLED), "x-800-0.050.safetensors")
    with pytest.raises(ValueError, match="are not of one network"):
        import_edm2_average(tmp_path, 0.05)
