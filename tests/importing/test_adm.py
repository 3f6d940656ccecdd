"""OpenAI's U-Net: outputs of PyTorch, processes of its programs, and one line where it is refused.

The reference is a function of PyTorch that makes a random array whenever it asks for a new name: so
it writes the file of weights, too.
"""

import argparse
import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but

import dgjax
from dgjax.checkpoints import load, save
from dgjax.checkpoints.spec import build
from dgjax.importing import import_model
from dgjax.importing.adm import import_adm, is_adm
from dgjax.importing.adm_published import PUBLISHED

torch = pytest.importorskip("torch")
nn = torch.nn.functional

SIZE, FEATURES = 8, 32  # its normalizations have 32 groups, and so at least 32 channels


class Reference:
    """The U-Net by its structure: `net(x, t, label)` on a batch (n, c, h, w)."""

    def __init__(
        self,
        *,
        widths=(32, 32),
        layers=1,
        attention=(1,),
        heads=lambda channels: 4,
        new_order=False,
        scale_shift=True,
        resample="conv",
        channels=3,
        outputs=3,
        labels=None,
    ):
        self.__dict__ |= {k: v for k, v in locals().items() if k != "self"}
        self.weights, self.random = {}, torch.Generator().manual_seed(3)

    def get(self, name, *shape):
        if name not in self.weights:
            draw = torch.randn(shape, generator=self.random)
            scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
            self.weights[name] = scale * draw + (len(shape) == 1 and name.endswith("weight"))
        return self.weights[name]

    def linear(self, name, h, size):
        return nn.linear(
            h, self.get(f"{name}.weight", size, h.shape[1]), self.get(f"{name}.bias", size)
        )

    def conv(self, name, h, size, side=3, stride=1):
        weight = self.get(f"{name}.weight", size, h.shape[1], side, side)
        return nn.conv2d(h, weight, self.get(f"{name}.bias", size), stride, side // 2)

    def norm(self, name, h):
        size = h.shape[1]
        return nn.group_norm(
            h, 32, self.get(f"{name}.weight", size), self.get(f"{name}.bias", size)
        )

    def resnet(self, name, h, size, change=lambda h: h):
        out = change(nn.silu(self.norm(f"{name}.in_layers.0", h)))
        out, h = self.conv(f"{name}.in_layers.2", out, size), change(h)
        shift = self.linear(
            f"{name}.emb_layers.1", nn.silu(self.vector), (1 + self.scale_shift) * size
        )
        shift = shift[..., None, None]
        if self.scale_shift:
            factor, shift = shift.split(size, 1)
            out = self.norm(f"{name}.out_layers.0", out) * (1 + factor) + shift
        else:
            out = self.norm(f"{name}.out_layers.0", out + shift)
        out = self.conv(f"{name}.out_layers.3", nn.silu(out), size)
        return out + (h if h.shape[1] == size else self.conv(f"{name}.skip_connection", h, size, 1))

    def attend(self, name, h):
        n, size, *sides = h.shape
        heads = self.heads(size)
        flat = self.norm(f"{name}.norm", h).flatten(2)
        rows = nn.conv1d(
            flat,
            self.get(f"{name}.qkv.weight", 3 * size, size, 1),
            self.get(f"{name}.qkv.bias", 3 * size),
        )
        if self.new_order:
            q, k, v = rows.reshape(n, 3, heads, size // heads, -1).unbind(1)
        else:
            q, k, v = rows.reshape(n, heads, 3, size // heads, -1).unbind(2)
        out = nn.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.reshape(n, size, -1)
        weight = self.get(f"{name}.proj_out.weight", size, size, 1)
        out = nn.conv1d(out, weight, self.get(f"{name}.proj_out.bias", size))
        return h + out.reshape(n, size, *sides)

    def halve(self, name, h):
        pool = lambda h: nn.avg_pool2d(h, 2)
        if self.resample == "conv":
            return self.conv(f"{name}.op", h, h.shape[1], stride=2)
        return pool(h) if self.resample == "pool" else self.resnet(name, h, h.shape[1], pool)

    def double(self, name, h):
        grow = lambda h: h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if self.resample == "conv":
            return self.conv(f"{name}.conv", grow(h), h.shape[1])
        return grow(h) if self.resample == "pool" else self.resnet(name, h, h.shape[1], grow)

    def __call__(self, x, t, label=None):
        rates = 10_000 ** (-torch.arange(FEATURES // 2) / (FEATURES // 2))
        waves = t[:, None] * rates
        h = self.linear("time_embed.0", torch.cat([waves.cos(), waves.sin()], 1), 4 * FEATURES)
        self.vector = self.linear("time_embed.2", nn.silu(h), 4 * FEATURES)
        if self.labels is not None:
            self.vector = (
                self.vector + self.get("label_emb.weight", self.labels, 4 * FEATURES)[label]
            )
        h = self.conv("input_blocks.0.0", x, self.widths[0])
        skips, index = [h], 1
        for level, size in enumerate(self.widths):
            for _ in range(self.layers):
                h = self.resnet(f"input_blocks.{index}.0", h, size)
                if level in self.attention:
                    h = self.attend(f"input_blocks.{index}.1", h)
                skips.append(h)
                index += 1
            if level < len(self.widths) - 1:
                h = self.halve(f"input_blocks.{index}.0", h)
                skips.append(h)
                index += 1
        h = self.resnet("middle_block.0", h, h.shape[1])
        h = self.resnet("middle_block.2", self.attend("middle_block.1", h), h.shape[1])
        index = 0
        for level, size in reversed(list(enumerate(self.widths))):
            for i in range(self.layers + 1):
                h = self.resnet(f"output_blocks.{index}.0", torch.cat([h, skips.pop()], 1), size)
                if level in self.attention:
                    h = self.attend(f"output_blocks.{index}.1", h)
                if level and i == self.layers:
                    h = self.double(f"output_blocks.{index}.{1 + (level in self.attention)}", h)
                index += 1
        return self.conv("out.2", nn.silu(self.norm("out.0", h)), self.outputs)


def sample(channels=3):
    return np.random.default_rng(5).normal(size=(SIZE, SIZE, channels)).astype(np.float32)


def output(net, x, t, label=None):
    """The reference on one sample (h, w, c); the first channels only, as many as the sample's."""
    with torch.no_grad():
        images = torch.tensor(x.transpose(2, 0, 1))[None]
        out = net(images, torch.tensor([t]), None if label is None else torch.tensor([label]))
    return out[0, : x.shape[2]].numpy().transpose(1, 2, 0)


def write(folder, net, settings=None, name="model.pt", table=lambda weights: weights):
    """Save weights, with settings beside them."""
    label = None if net.labels is None else 0
    output(net, sample(net.channels), 1.0, label)
    file = folder / name
    file.unlink(missing_ok=True)  # weights that were read may still lie in the old file
    torch.save(table(net.weights), file)
    if settings is not None:
        file.with_suffix(".json").write_text(json.dumps(settings))
    return file


ADM = {"image_size": SIZE, "num_heads": 4, "noise_schedule": "linear"}
FLOW = {"image_size": SIZE, "num_heads": 4, "process": "flow_matching"}
VARIANTS = {
    # Where the time is only added, normalizations of one channel a group would hide it.
    "older order of heads": (
        {"scale_shift": False, "widths": (32, 64)},
        {**ADM, "use_scale_shift_norm": False},
    ),
    "newer order, learned variance": (
        {
            "new_order": True,
            "outputs": 6,
            "resample": "resnet",
        },
        {**ADM, "use_new_attention_order": True, "resblock_updown": True, "learn_sigma": True},
    ),
    "channels of heads": (
        {"heads": lambda channels: channels // 16, "resample": "resnet", "attention": (0, 1)},
        {"image_size": SIZE, "num_head_channels": 16, "noise_schedule": "cosine"},
    ),
    "narrow first level, no weights in resampling": (
        {"widths": (64, 32), "resample": "pool", "layers": 2, "attention": ()},
        {**FLOW, "conv_resample": False, "num_res_blocks": 2},
    ),
}


@pytest.mark.parametrize("variant", slow_but(VARIANTS, "newer order, learned variance"))
def test_outputs_are_those_of_pytorch(variant, tmp_path):
    arguments, settings = VARIANTS[variant]
    net = Reference(**arguments)
    found = import_adm(write(tmp_path, net, settings))
    x, time = sample(), 0.3 if "process" in settings else 412.0
    expected = output(net, x, time)
    got = found.model.network(jnp.asarray(x), jnp.asarray(time))
    np.testing.assert_allclose(got, expected, atol=5e-6 * np.abs(expected).max())
    assert any("learned variance" in note for note in found.notes) == (net.outputs == 6)


@pytest.mark.slow
def test_classes_are_read_with_and_without_one_for_none(tmp_path):
    net = Reference(labels=4)
    file = write(tmp_path, net, ADM)
    every = import_adm(file).model.network
    expected = [output(net, sample(), 7.0, label) for label in range(4)]
    for label in (0, 3):
        np.testing.assert_allclose(every(sample(), 7.0, label), expected[label], atol=2e-5)
    with pytest.raises(ValueError, match="pass a class label"):
        every(sample(), 7.0)
    # Now the last row is that of flow_matching for no class: it is zero, or the settings say so.
    stated = write(tmp_path, net, {**ADM, "num_classes": 3})
    assert import_adm(stated).meta.model.network["no_class"]
    net.weights["label_emb.weight"][3] = 0.0
    found = import_adm(write(tmp_path, net, ADM))
    network, classes = found.model.network, found.meta.model.network
    assert (classes["num_classes"], classes["no_class"]) == (3, True)
    none = output(net, sample(), 7.0, 3)
    np.testing.assert_allclose(network(sample(), 7.0), none, atol=2e-5)
    np.testing.assert_allclose(network(sample(), 7.0, 2), expected[2], atol=2e-5)
    assert np.abs(none - expected[2]).max() > 0.01
    with pytest.raises(ValueError, match="3 for no label"):
        network(sample(), 7.0, 4)


def averages(weights):
    """What the training programs write: last and averaged weights, and arguments of the run."""
    last = {name: torch.zeros_like(w) for name, w in weights.items()}
    wrapped = {"num_updates": torch.tensor(7), **{f"model.{k}": v for k, v in last.items()}}
    wrapped |= {f"shadow_params.{i}": v for i, v in enumerate(weights.values())}
    run = argparse.Namespace(lr=1e-4, **FLOW)
    return {
        "torchcfm": {"net_model": last, "ema_model": weights, "step": 3, "sched": {"lr": 0.1}},
        "flow_matching": {"model": wrapped, "args": run, "epoch": 3},
    }


@pytest.mark.slow
@pytest.mark.parametrize(("program", "settings"), [("torchcfm", FLOW), ("flow_matching", None)])
def test_averaged_weights_of_a_run_are_taken_and_named(program, settings, tmp_path):
    net = Reference()
    file = write(tmp_path, net, settings, table=lambda weights: averages(weights)[program])
    assert is_adm(file)
    found = import_adm(file)
    x = sample()
    expected = output(net, x, 0.4)
    np.testing.assert_allclose(found.model.network(x, 0.4), expected, atol=2e-5)
    assert any("ema_model" in note or "shadow_params" in note for note in found.notes)
    if program == "torchcfm":
        return
    # At time 1 there is data, and the velocity is towards it.
    velocity = dgjax.velocity(found.model, jnp.asarray(0.6), jnp.asarray(x))
    np.testing.assert_allclose(velocity, -expected, atol=2e-5)


MEAN, SCALE = np.array([1.5, -0.7, 0.4]), 0.6  # of the data


def gaussian(alpha, sigma, x):
    """The expected data and noise at x, for Gaussian data."""
    variance = (alpha * SCALE) ** 2 + sigma**2
    noise = sigma * (x - alpha * MEAN) / variance
    return (x - sigma * noise) / alpha, noise


def log_density(alpha, sigma, x):
    variance = (alpha * SCALE) ** 2 + sigma**2
    return -0.5 * (
        np.sum((x - alpha * MEAN) ** 2) / variance + x.size * np.log(2 * np.pi * variance)
    )


def measured(found, network, x):
    """Log p at t_min by the process of an imported model, with another network."""
    spec = replace(found.meta.model, shape=x.shape)
    model = build(spec, network)
    grid = dgjax.grid_logsnr(model, 64)
    return float(dgjax.likelihood(model, jnp.asarray(x), grid, key=jax.random.key(0)).log_density)


def test_a_flow_to_data_has_the_log_density_of_its_data(tmp_path):
    found = import_adm(write(tmp_path, Reference(), FLOW))

    def network(x, s, cond=None):
        """The velocity from noise at s = 0 to data at s = 1, as torchcfm trains it."""
        data, noise = gaussian(s, 1 - s, x)
        return data - noise

    x = np.array([1.1, -0.2, 1.3])
    assert measured(found, network, x) == pytest.approx(log_density(0.999, 1e-3, x), abs=0.01)
    assert any("independent" in note for note in found.notes)


SCHEDULES = {
    "cosine, of the data": ({"noise_schedule": "cosine", "predict_xstart": True}, 1000),
    "4000 steps, time of 1000": (
        {"noise_schedule": "linear", "diffusion_steps": 4000, "rescale_timesteps": True},
        4000,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_diffusion_has_the_log_density_of_its_data(name, tmp_path):
    settings, steps = SCHEDULES[name]
    found = import_adm(write(tmp_path, Reference(), {**ADM, **settings}))
    if settings["noise_schedule"] == "linear":
        betas = np.linspace(0.1 / steps, 20 / steps, steps)
        table = np.cumprod(1 - betas)
    else:
        cos = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        table = np.cumprod(1 - np.minimum(1 - cos[1:] / cos[:-1], 0.999))
    path = build(replace(found.meta.model, shape=(3,)), lambda x, t, cond: x).path
    ends = [path.alpha(jnp.asarray(t)) ** 2 for t in (0.0, steps - 1.0)]
    np.testing.assert_allclose(ends, table[[0, -1]], rtol=1e-3)

    def network(x, time, cond=None):
        t = time * (steps / 1000)  # the network has the time of 1000 steps
        pair = gaussian(path.alpha(t), path.sigma(t), x)
        return pair[0 if "predict_xstart" in settings else 1]

    x = np.array([1.1, -0.2, 1.3])
    alpha = np.sqrt(table[0])
    expected = log_density(alpha, np.sqrt(1 - table[0]), x)
    assert measured(found, network, x) == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_a_checkpoint_keeps_the_clock(tmp_path):
    found = import_model(write(tmp_path, Reference(), FLOW))
    save(tmp_path / "saved", found.model, found.meta, dtype=None)
    model, meta = load(tmp_path / "saved")
    assert meta.model.clock == {"rate": -1.0, "offset": 1.0}
    pairs = [m.pair(jnp.asarray(0.3), jnp.asarray(sample())) for m in (model, found.model)]
    np.testing.assert_allclose(pairs[0].x0, pairs[1].x0, atol=1e-6)


def test_published_models_are_known_by_name_and_structure(tmp_path, monkeypatch):
    for values in PUBLISHED.values():
        assert {"image_size", "noise_schedule", "num_channels"} <= values.keys()
        assert "rescale_timesteps" in values or values.get("diffusion_steps", 1000) == 1000
    net = Reference(heads=lambda channels: channels // 64, widths=(64,))
    file = write(tmp_path, net, name="lsun_cat.pt")
    with pytest.raises(ValueError, match="do not tell the size"):
        import_adm(file)  # of the same name, and another network
    small = {"num_channels": FEATURES, "num_res_blocks": 1}
    monkeypatch.setitem(PUBLISHED, "lsun_cat", {**PUBLISHED["lsun_cat"], **small})
    found = import_adm(file, shape=(SIZE, SIZE))
    assert any("OpenAI states" in note for note in found.notes)
    assert found.model.shape == (SIZE, SIZE, 3)
    assert found.meta.model.network["attention_head_dim"] == 64


def edited(**changes):
    return {k: v for k, v in {**ADM, **changes}.items() if v is not None}


WRONG = {
    "no settings": ({}, None, r"size of the images, the heads .* to .*model\.json, such as"),
    "no heads": ({}, edited(num_heads=None), r'add "num_heads".* to .*model\.json'),
    "no size": ({}, edited(image_size=None), r'"image_size" to .*model\.json'),
    "no process": ({}, edited(noise_schedule=None), '"noise_schedule" .*flow_matching'),
    "a typing error": ({}, edited(num_head=4), "'num_head' is unknown.*did you mean"),
    "an unknown schedule": ({}, edited(noise_schedule="sqrt"), "there is linear, cosine"),
    "a contradiction": ({}, edited(num_res_blocks=3), "num_res_blocks = 3, they have 1"),
    "heads that do not fit": ({}, edited(num_heads=5), "5 attention heads do not divide"),
    "other heads up": ({}, edited(num_heads_upsample=2), "num_heads_upsample"),
    "4000 steps": ({}, edited(diffusion_steps=4000), "guided-diffusion.*improved-diffusion"),
    "labels": ({"labels": 4}, edited(num_classes=9), "num_classes = 9.*4 labels"),
    "upsampling": ({"channels": 6, "outputs": 3}, ADM, "for upsampling"),
    "upsampling with variance": ({"channels": 6, "outputs": 6}, ADM, "for upsampling"),
    "upsampling by settings": ({}, edited(small_size=4), "for upsampling"),
    "noise on top": ({}, {**FLOW, "sigma": 0.1}, "sigma = 0.1"),
    "an odd size": ({}, edited(image_size=7), "multiples of 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_known_is_refused_in_one_line(case, tmp_path):
    arguments, settings, message = WRONG[case]
    file = write(tmp_path, Reference(**arguments), settings)
    with pytest.raises(ValueError, match=message) as error:
        import_adm(file)
    assert "\n" not in str(error.value)


def test_optimal_transport_is_refused_unless_the_user_says_otherwise(tmp_path):
    file = write(tmp_path, Reference(), FLOW, name="otcfm_cifar10_weights_step_400000.pt")
    with pytest.raises(ValueError, match="coupled by optimal transport"):
        import_adm(file)
    file.with_suffix(".json").write_text(json.dumps({**FLOW, "coupling": "independent"}))
    assert import_adm(file).meta.model.clock


def test_classifiers_and_networks_with_text_are_refused(tmp_path):
    net = Reference()
    half = lambda weights: {k: v for k, v in weights.items() if "output_blocks" not in k}
    with pytest.raises(ValueError, match="a classifier of noisy images"):
        import_adm(write(tmp_path, net, ADM, table=half))
    name = "input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    text = lambda weights: {**weights, name: torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="attends to a text"):
        import_adm(write(tmp_path, net, ADM, table=text))
    other = tmp_path / "other.pt"
    torch.save({"layer.weight": torch.zeros(2)}, other)
    assert not is_adm(other)
    assert not is_adm(tmp_path / "nothing.pt")
