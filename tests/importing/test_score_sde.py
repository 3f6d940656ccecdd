"""NCSN++ and DDPM++ of score_sde: scores of PyTorch, both file formats, and what is refused.

The reference is written from the paper (arXiv 2011.13456, appendix H). It makes a random array
whenever it asks for a new one, so it writes the checkpoints, too: modules in the order of their
calls, as PyTorch has them, or counted by class, as Flax has them.
"""

import json
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but
from flax import serialization

import dgjax
from dgjax.checkpoints import load, save
from dgjax.importing import import_model, import_score_sde, is_score_sde

torch = pytest.importorskip("torch")
functional = torch.nn.functional

SIDE, BASE, WIDTHS, ROOT = 8, 8, (8, 16), math.sqrt(2)
SMOOTH = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


class Reference:
    """The network by its structure: `net(x, t)` on a batch (n, c, h, w)."""

    def __init__(self, fourier=False, fir=False, encoder="none", decoder="none"):
        self.fourier, self.fir, self.encoder, self.decoder = fourier, fir, encoder, decoder
        self.random, self.modules = torch.Generator().manual_seed(3), []

    def module(self, kind):
        if self.place == len(self.modules):
            self.modules.append((kind, {}))
        self.place += 1
        return self.modules[self.place - 1][1]

    def get(self, module, name, *shape):
        if name not in module:
            draw = torch.randn(shape, generator=self.random)
            module[name] = draw / math.sqrt(math.prod(shape[1:]))
        return module[name]

    def conv(self, module, name, h, size, kernel=3, **options):
        weight = self.get(module, f"{name}weight", size, h.shape[1], kernel, kernel)
        bias = self.get(module, f"{name}bias", size)
        return functional.conv2d(h, weight, bias, **options)

    def linear(self, module, name, h, size):
        weight = self.get(module, f"{name}weight", size, h.shape[-1])
        return functional.linear(h, weight, self.get(module, f"{name}bias", size))

    def norm(self, module, name, h):
        size = h.shape[1]
        scale, shift = (self.get(module, f"{name}{end}", size) for end in ("weight", "bias"))
        return functional.group_norm(h, min(size // 4, 32), scale, shift, 1e-6)

    def filtered(self, h, padding, stride=1):
        kernel = torch.outer(SMOOTH, SMOOTH).expand(h.shape[1], 1, 4, 4)
        return functional.conv2d(h, kernel, padding=padding, stride=stride, groups=h.shape[1])

    def down(self, h):
        return self.filtered(h, 1, 2) if self.fir else functional.avg_pool2d(h, 2)

    def up(self, h):
        if not self.fir:
            return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        kernel = (4 * torch.outer(SMOOTH, SMOOTH)).expand(h.shape[1], 1, 4, 4)
        return functional.conv_transpose2d(h, kernel, stride=2, padding=1, groups=h.shape[1])

    def block(self, h, vector, size, resample=lambda h: h, shortcut=False):
        module = self.module("ResnetBlockBigGANpp")
        out = resample(functional.silu(self.norm(module, "GroupNorm_0.", h)))
        out = self.conv(module, "Conv_0.", out, size, padding=1)
        out = out + self.linear(module, "Dense_0.", vector, size)[:, :, None, None]
        out = functional.silu(self.norm(module, "GroupNorm_1.", out))
        out = self.conv(module, "Conv_1.", out, size, padding=1)
        if shortcut or h.shape[1] != size:
            h = self.conv(module, "Conv_2.", resample(h), size, 1)
        return (h + out) / ROOT

    def attend(self, h):
        module, size = self.module("AttnBlockpp"), h.shape[1]
        tokens = self.norm(module, "GroupNorm_0.", h).flatten(2).mT

        def mapped(i, tokens):
            matrix = self.get(module, f"NIN_{i}.W", size, size)
            return tokens @ matrix + self.get(module, f"NIN_{i}.b", size)

        q, k, v = (mapped(i, tokens) for i in range(3))
        out = mapped(3, torch.softmax(q @ k.mT / math.sqrt(size), -1) @ v)
        return (h + out.mT.reshape(h.shape)) / ROOT

    def level(self, h):
        return self.attend(h) if h.shape[-1] == SIDE // 2 else h

    def output(self, h):
        module = self.module("GroupNorm")
        h = functional.silu(self.norm(module, "", h))
        return self.conv(self.module("Conv"), "", h, 3, padding=1)

    def __call__(self, x, t):
        self.place = 0
        if self.fourier:
            rates = self.get(self.module("GaussianFourierProjection"), "W", BASE)
            angles = 2 * math.pi * t.log()[:, None] * rates
        else:
            half = BASE // 2
            angles = t[:, None] * 1e4 ** (-torch.arange(half) / (half - 1))
        vector = torch.cat([angles.sin(), angles.cos()], 1)
        vector = functional.silu(self.linear(self.module("Dense"), "", vector, 4 * BASE))
        vector = functional.silu(self.linear(self.module("Dense"), "", vector, 4 * BASE))
        small, (first, second) = x, WIDTHS
        skips = [self.conv(self.module("Conv"), "", x, first, padding=1)]
        skips.append(self.block(skips[-1], vector, first))
        h = self.block(skips[-1], vector, first, self.down, True)
        if self.encoder == "skip":
            small = self.down(small)
            h = h + self.conv(self.module("Combine"), "Conv_0.", small, first, 1)
        if self.encoder == "residual":
            module = self.module("Downsample")
            h = (
                h + self.conv(module, "Conv2d_0.", self.filtered(small, 2), first, stride=2)
            ) / ROOT
        skips.append(h)
        skips.append(self.level(self.block(h, vector, second)))
        h = self.attend(self.block(skips[-1], vector, second))
        h = self.block(h, vector, second)
        for _ in range(2):
            h = self.block(torch.cat([h, skips.pop()], 1), vector, second)
        h = self.level(h)
        low = self.output(h) if self.decoder == "skip" else None
        h = self.block(h, vector, second, self.up, True)
        for _ in range(2):
            h = self.block(torch.cat([h, skips.pop()], 1), vector, first)
        out = self.output(h)
        return out if low is None else out + self.up(low)

    def torch_state(self):
        """The run as the PyTorch program writes it."""
        weights = {
            f"module.all_modules.{i}.{name}": array
            for i, (_, module) in enumerate(self.modules)
            for name, array in module.items()
        }
        trained = [array for name, array in weights.items() if not name.endswith(".0.W")]
        sigmas = torch.linspace(math.log(50), math.log(0.01), 1000, dtype=torch.float64).exp()
        moved = {n: a if n.endswith(".0.W") else a + 1 for n, a in weights.items()}
        return {
            "optimizer": {"state": {}, "param_groups": [{"lr": 2e-4 * np.minimum(3 / 5000, 1.0)}]},
            "model": {"module.sigmas": sigmas, **moved},
            "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": trained},
            "step": 3,
        }

    def flax_state(self):
        """The run as the JAX program writes it."""
        counts, table = Counter(), {}
        for kind, module in self.modules:
            found = table.setdefault(f"{kind}_{counts[kind]}", {})
            counts[kind] += 1
            for name, tensor in module.items():
                *owners, end = name.split(".")
                array, place = tensor.numpy(), found
                for owner in owners:
                    place = place.setdefault(owner, {})
                if end == "weight" and array.ndim == 1:
                    end = "scale"
                elif end == "weight":
                    end = "weight" if owners == ["Conv2d_0"] else "kernel"
                    array = array.transpose((1, 0) if array.ndim == 2 else (2, 3, 1, 0))
                place[end] = array
        zeros = jax.tree.map(np.zeros_like, table)
        return {"step": 3, "params_ema": table, "optimizer": {"target": zeros, "state": {}}}


DDPMPP = {}
NCSNPP = {"fir": True, "encoder": "residual"}
WITH_SKIPS = {"fourier": True, "fir": True, "encoder": "skip", "decoder": "skip"}
OWN = {"image_size": SIDE, "attn_resolutions": [SIDE // 2]}
# The network, the settings, the model's time, and the network's as score_sde has it then.
CASES = {
    "VP": (DDPMPP, {"sde": "vpsde", "continuous": True, "fir": False}, 0.37, 0.37 * 999),
    "VP by steps": (NCSNPP, {"sde": "vpsde", "continuous": False}, 370.0, 370.0),
    "sub-VP": (NCSNPP, {"sde": "subvpsde", "continuous": True}, 0.37, 0.37 * 999),
    "VE": (WITH_SKIPS, {"sde": "vesde", "fir": True}, 0.6, 0.01 * 5000**0.6),
    "VE by steps": (NCSNPP, {"sde": "vesde", "continuous": False}, 600 / 999, 399.0),
    "VE of data in [-1, 1]": (
        {**NCSNPP, "fourier": True},
        {"sde": "vesde", "centered": True},
        0.6,
        0.01 * 5000**0.6,
    ),
}
VP = {**CASES["VP"][1], **OWN}


def sample():
    return np.random.default_rng(5).normal(size=(SIDE, SIDE, 3)).astype(np.float32)


def output(net, x, t):
    with torch.no_grad():
        out = net(torch.tensor(x.transpose(2, 0, 1))[None], torch.tensor([t], dtype=torch.float32))
    return out[0].numpy().transpose(1, 2, 0)


def write(folder, net, settings, name="checkpoint_8.pth"):
    """Save a run in the format that the name says, with settings beside it."""
    output(net, sample(), 3.0)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if file.suffix == ".pth":
        torch.save(net.torch_state(), file)
    else:
        file.write_bytes(serialization.to_bytes(net.flax_state()))
    if settings is not None:
        file.with_suffix(".json").write_text(json.dumps(settings))
    return file


def standard_deviation(settings, t):
    """The noise of score_sde's three SDEs, per unit of its data (arXiv 2011.13456, appendix B)."""
    if settings["sde"] == "vesde":
        return 0.01 * 5000**t
    if settings["continuous"] is False:
        return math.sqrt(1 - np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: int(t) + 1]))
    lost = 1 - math.exp(-0.1 * t - 0.5 * 19.9 * t**2)
    return lost if settings["sde"] == "subvpsde" else math.sqrt(lost)


@pytest.mark.parametrize("case", slow_but(CASES, "VE", "VP by steps", "sub-VP"))
def test_scores_are_those_of_pytorch(case, tmp_path):
    kind, settings, t, own = CASES[case]
    net = Reference(**kind)
    found = import_model(write(tmp_path, net, {**settings, **OWN}))
    x, sigma = sample(), standard_deviation(settings, t)
    if settings["sde"] != "vesde":
        expected = -output(net, x, own) / sigma
    else:
        # It divides its output by sigma. Data in [0, 1] are doubled, and their score is halved.
        doubled = 1 if settings.get("centered") else 2
        x = x * sigma * doubled
        expected = output(net, x, own) / (doubled * sigma)
    got = jax.jit(dgjax.score)(found.model, jnp.asarray(t), jnp.asarray(x))
    np.testing.assert_allclose(got, expected, atol=3e-5 * np.abs(expected).max())
    assert found.architecture == ("DDPM++" if kind == DDPMPP else "NCSN++")
    assert found.meta.data_range == (-1.0, 1.0)


@pytest.mark.parametrize("case", slow_but(["VP", "VE", "VE of data in [-1, 1]"], "VE"))
def test_the_file_of_flax_is_read_as_that_of_pytorch(case, tmp_path):
    kind, settings, _, _ = CASES[case]
    net = Reference(**kind)
    settings = {**settings, **OWN, "sigma_max": 50}  # which the file of Flax does not hold
    expected = import_model(write(tmp_path / "torch", net, settings))
    found = import_model(write(tmp_path / "flax", net, settings, "checkpoint_8"))
    assert found.meta.model == expected.meta.model
    jax.tree.map(np.testing.assert_array_equal, found.model, expected.model)


def test_an_imported_run_is_a_checkpoint(tmp_path):
    kind, settings, _, _ = CASES["VE"]
    found = import_score_sde(write(tmp_path, Reference(**kind), {**settings, **OWN}))
    save(tmp_path / "model", found.model, found.meta, dtype=None)
    model, meta = load(tmp_path / "model")
    assert meta.model == found.meta.model
    jax.tree.map(np.testing.assert_array_equal, model, found.model)


def test_a_published_configuration_is_named_by_the_path_or_the_settings(tmp_path):
    kind = {**NCSNPP, "fourier": True}
    file = write(tmp_path / "ve" / "cifar10_ncsnpp_continuous", Reference(**kind), None)
    # Its images have 32 pixels, of which this network has attention at none.
    settings = {"attn_resolutions": [16]}
    file.with_suffix(".json").write_text(json.dumps(settings))
    found = import_score_sde(file)
    assert found.meta.shape == (32, 32, 3)
    assert "read as ve/cifar10_ncsnpp_continuous, which the path of the file says" in found.notes
    assert found.meta.model.path == {"kind": "ve", "sigma_min": 0.02, "sigma_max": 100.0}
    alone = write(tmp_path, Reference(**kind), {"config": "ve/cifar10_ncsnpp_deep_continuous"})
    assert import_score_sde(alone).meta.model == found.meta.model
    # One file is enough in a folder, and the name without "ve/" with these features.
    assert is_score_sde(alone.parent)
    bare = write(tmp_path / "cifar10_ncsnpp_continuous", Reference(**kind), None)
    assert import_score_sde(bare).meta.model == found.meta.model


def test_weights_without_an_average_are_read_with_a_note(tmp_path):
    kind, settings, _, _ = CASES["VP"]
    file = write(tmp_path, net := Reference(**kind), {**settings, **OWN})
    state = net.torch_state()
    torch.save({"model": state["model"], "step": 3}, file)
    found = import_score_sde(file)
    assert any("no moving average" in note for note in found.notes)
    bias = found.model.network.map_layer0.bias[...]
    np.testing.assert_array_equal(bias, net.modules[0][1]["bias"] + 1)


def test_numbers_of_an_older_numpy_are_read(tmp_path):
    file = write(tmp_path, net := Reference(), VP)
    torch.save(net.torch_state(), file, _use_new_zipfile_serialization=False)
    old = file.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != file.read_bytes()
    file.write_bytes(old)
    assert import_score_sde(file).architecture == "DDPM++"


def without(settings, *keys):
    return {key: value for key, value in settings.items() if key not in keys}


REFUSALS = {
    "no SDE": (DDPMPP, without(VP, "sde"), 'its SDE: add "config" to '),
    "no size": (DDPMPP, without(VP, "image_size"), '"image_size" to '),
    "no filter": (DDPMPP, without(VP, "fir"), 'resampled: add "fir" to '),
    "another filter": (NCSNPP, {**VP, "fir": False}, "the weights are of fir = True"),
    "attention elsewhere": (DDPMPP, {**VP, "attn_resolutions": [8]}, "no AttnBlockpp where one"),
    "less attention": (DDPMPP, {**VP, "attn_resolutions": []}, "no ResnetBlockBigGANpp where"),
    "another SDE": (DDPMPP, {**VP, "sde": "vp"}, "'vp' is unknown: there is vpsde, subvpsde"),
    "another config": (DDPMPP, {"config": "vp/cifar_ddpmpp"}, "did you mean 'vp/cifar10_ddpmpp'?"),
    "data in [0, 1]": (DDPMPP, {**VP, "centered": False}, r"only data in \[-1, 1\] are read"),
    "log of time": ({"fourier": True}, VP, "the logarithm of its time"),
    "another range": (
        NCSNPP,
        {**CASES["VE by steps"][1], **OWN, "sigma_max": 90},
        "sigma_max = 90, and the file 50",
    ),
    "steps": (NCSNPP, {**OWN, "sde": "vesde", "continuous": True}, "the index of its noise level"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_known_is_refused_in_one_line(case, tmp_path):
    kind, settings, message = REFUSALS[case]
    file = write(tmp_path, Reference(**kind), settings)
    with pytest.raises(ValueError, match=message) as error:
        import_model(file)
    assert len(str(error.value).splitlines()) == 1


def of_ddpm(state):
    name = next(name for name in state["model"] if name.endswith("Conv_2.weight"))
    state["model"][name.replace("Conv_2.weight", "NIN_0.W")] = state["model"].pop(name)


CHANGES = {
    "average": (lambda s: s["ema"]["shadow_params"].pop(), "the moving average has 153 arrays"),
    "module": (
        lambda s: s["model"].update({"module.all_modules.99.a": torch.ones(1)}),
        r"a module of another network \(99\), which is not read: dgjax.torch_network takes",
    ),
    "DDPM": (of_ddpm, "residual blocks of DDPM .*, which is not read: dgjax.torch_network takes"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_networks_are_refused(case, tmp_path):
    change, message = CHANGES[case]
    file = write(tmp_path, net := Reference(), VP)
    state = net.torch_state()
    if case != "average":
        del state["ema"]
    change(state)
    torch.save(state, file)
    with pytest.raises(ValueError, match=message):
        import_score_sde(file)
