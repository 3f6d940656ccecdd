"""Train a U-Net of dgjax with gradients by PyTorch, which is faster on some processors.

Processors with matrix units (Intel's AMX) multiply in bfloat16 many times faster than in float32.
PyTorch uses them and XLA does not. So the loss and its gradient are calculated by PyTorch here, on
the weights that dgjax holds. All else is a run of `dgjax train`: data, noise levels, optimiser,
averages, checkpoints, resuming, the model.

    python experiments/train_with_torch.py avatars --out runs/avatars
    python experiments/train_with_torch.py avatars --compare    # seconds of a step, XLA beside it

Convolutions and activations are in bfloat16, or with `--float32` as all the rest. The loss is that
of `dgjax train` for a `unet` on images with the parametrization `preconditioned`.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import PyTree
from torch import Tensor

from dgjax.checkpoints.arrays import to_named
from dgjax.devices.sharding import device_mesh
from dgjax.networks.embedding import FREQUENCIES
from dgjax.training import TrainConfig, export, fit, load_config
from dgjax.training.components import create_state, jit_train_step, model_shapes, state_shapes
from dgjax.training.config import make_noise_sampler, make_weighting
from dgjax.training.data_parallel import state_shardings
from dgjax.training.objective import Batch, LossInputs
from dgjax.training.step import GradientFunction


def fold(h: Tensor) -> Tensor:
    """Move each 2x2 pixels into channels: (B, C, H, W) to (B, 4C, H/2, W/2)."""
    b, c, height, width = h.shape
    h = h.reshape(b, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return h.reshape(b, height // 2, width // 2, 4 * c).permute(0, 3, 1, 2)


def unfold(h: Tensor) -> Tensor:
    """Invert `fold`."""
    b, c, height, width = h.shape
    h = h.reshape(b, 2, 2, c // 4, height, width).permute(0, 4, 1, 5, 2, 3)
    return h.reshape(b, 2 * height, 2 * width, c // 4).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TorchUNet:
    """`dgjax.networks.UNet` for images as a function of its named weights.

    Attributes:
        weights: by the names of `to_named`, in the layout of flax.
        levels: number of resolutions.
        blocks: residual blocks on each level, each way.
        frequencies: of the sinusoids of pixel values.
        dtype: of convolutions and activations.
    """

    weights: Mapping[str, Tensor]
    levels: int
    blocks: int
    frequencies: tuple[float, ...]
    dtype: torch.dtype

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Apply the network to samples (B, C, H, W), times (B,) and labels (B,), in float32."""
        height, width = x.shape[2:]
        step = 2**self.levels
        h = fold(F.pad(x, (0, -width % step, 0, -height % step)))
        embedding = self._embed(t, labels)
        gate = torch.sigmoid(self._linear(embedding, "detail.gate"))[:, :, None, None]
        angles = [frequency * h for frequency in self.frequencies]
        detail = torch.cat([h, *map(torch.sin, angles), *map(torch.cos, angles)], 1) * gate
        h, skips = detail.to(self.dtype), []
        for k in range(self.levels):
            h = self._conv(h if k == 0 else fold(h), f"enter.{k}")
            for i in range(self.blocks):
                h = self._block(h, embedding, f"down.{k}.{i}")
                skips.append(h)
        h = self._attention(self._block(h, embedding, "middle"), "attention")
        for k in reversed(range(self.levels)):
            for i in range(self.blocks):
                h = self._conv(torch.cat([h, skips.pop()], 1), f"merge.{k}.{i}")
                h = self._block(h, embedding, f"up.{k}.{i}")
            if k == 0:
                h = F.silu(self._norm(h, "norm"))
            h = self._conv(h, f"leave.{k}")
            if k == 0:
                h = h.float() + self._conv(detail, "shallow")
            h = unfold(h)
        return h[:, :, :height, :width]

    def _embed(self, t: Tensor, labels: Tensor | None) -> Tensor:
        angles = t[:, None] * torch.tensor(FREQUENCIES)
        h = self._linear(torch.cat([angles.sin(), angles.cos()], 1), "embed.inner")
        if labels is not None:
            table = self.weights["embed.label.embedding"]
            h = h + F.pad(table, (0, 0, 0, 1))[labels]  # the label after the last adds nothing
        return F.silu(self._linear(F.silu(h), "embed.outer"))

    def _linear(self, h: Tensor, name: str) -> Tensor:
        return h @ self.weights[f"{name}.kernel"] + self.weights[f"{name}.bias"]

    def _conv(self, h: Tensor, name: str) -> Tensor:
        kernel = self.weights[f"{name}.kernel"].to(h.dtype).permute(3, 2, 0, 1)
        bias = self.weights[f"{name}.bias"].to(h.dtype)
        return F.conv2d(h, kernel, bias, padding=kernel.shape[-1] // 2)

    def _norm(self, h: Tensor, name: str) -> Tensor:
        scale, bias = (self.weights[f"{name}.{part}"].to(h.dtype) for part in ("scale", "bias"))
        return F.group_norm(h, h.shape[1] // 8, scale, bias, eps=1e-6)

    def _block(self, h: Tensor, embedding: Tensor, name: str) -> Tensor:
        film = self._linear(embedding, f"{name}.film").to(h.dtype)[:, :, None, None]
        scale, shift = film.chunk(2, 1)
        out = self._conv(F.silu(self._norm(h, f"{name}.norm_in")), f"{name}.conv_in")
        out = F.silu(torch.addcmul(shift, self._norm(out, f"{name}.norm_out"), 1 + scale))
        return h + self._conv(out, f"{name}.conv_out")

    def _attention(self, h: Tensor, name: str) -> Tensor:
        b, c, height, width = h.shape
        qkv = self._conv(self._norm(h, f"{name}.norm"), f"{name}.qkv")
        heads = max(1, c // 64)
        q, k, v = qkv.reshape(b, 3, heads, c // heads, height * width).transpose(3, 4).unbind(1)
        out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(h.shape)
        return h + self._conv(out, f"{name}.out")


def losses(
    network: TorchUNet,
    sigma_data: float,
    data: Tensor,
    noise: Tensor,
    w: Tensor,
    labels: Tensor | None,
) -> Tensor:
    """Return the mean squared error (B,) of the denoised samples, by EDM's preconditioning."""
    levels = w[:, None, None, None]
    total = (levels**2 + sigma_data**2).sqrt()
    y = data + levels * noise
    out = network(y / total, 0.25 * w.log(), labels)
    x0 = (sigma_data / total) ** 2 * y + levels * sigma_data / total * out
    return ((x0 - data) ** 2).mean((1, 2, 3))


def torch_gradient(config: TrainConfig, dtype: torch.dtype) -> GradientFunction:
    """Make the gradient function of a run, for `fit(gradient=)`.

    Raises:
        ValueError: if the model is none of those that this script knows.
    """
    spec, sigma_data = config.model.network, config.model.parametrization.get("sigma_data")
    if spec["kind"] != "unet" or config.model.parametrization["kind"] != "preconditioned":
        raise ValueError("this script trains a `unet` with the parametrization `preconditioned`")
    if len(config.model.shape) != 3 or spec.get("dropout") or spec.get("num_augmentations"):
        raise ValueError("this script trains on images, without dropout and augmentations")
    names = list(to_named(model_shapes(config).network))
    weighting = make_weighting(config)
    density = make_noise_sampler(config).distribution.density
    threads = torch.get_num_threads()

    def on_host(leaves, data, noise, w, weight, importance, labels):
        torch.set_num_threads(threads)  # a setting of the thread that calls
        tensors = [torch.from_numpy(np.array(leaf)).requires_grad_() for leaf in leaves]
        network = TorchUNet(
            dict(zip(names, tensors, strict=True)),
            len(spec["channels"]),
            spec["blocks"],
            tuple(spec.get("frequencies", (4.0, 8.0, 16.0, 32.0))),
            dtype,
        )
        data, noise, w, weight, importance = (
            torch.from_numpy(np.array(a, np.float32)) for a in (data, noise, w, weight, importance)
        )
        data, noise = (a.permute(0, 3, 1, 2) for a in (data, noise))
        labels = None if labels is None else torch.from_numpy(np.array(labels)).long()
        each = weight * losses(network, sigma_data, data, noise, w, labels)
        loss = (importance * each).mean()
        gradient = torch.autograd.grad(loss, tensors)
        return (
            loss.detach().numpy(),
            [g.contiguous().numpy() for g in gradient],
            each.detach().numpy()[None],
        )

    def gradient(network: PyTree, microbatches: LossInputs):
        i = jax.tree.map(lambda a: a[0], microbatches)
        leaves = jax.tree.leaves(network)
        shapes = (
            jax.ShapeDtypeStruct((), jnp.float32),
            [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves],
            jax.ShapeDtypeStruct((1, *i.w.shape), jnp.float32),
        )
        weight = jax.vmap(weighting)(i.w, density(i.w))
        loss, found, each = jax.pure_callback(
            on_host, shapes, leaves, i.data, i.noise, i.w, weight, i.importance, i.labels
        )
        return loss, jax.tree.unflatten(jax.tree.structure(network), found), each

    return gradient


def compare(config: TrainConfig, gradients: Mapping[str, GradientFunction | None]) -> None:
    """Print seconds of a training step on one batch of noise, and its loss, for each gradient."""
    mesh, shapes = device_mesh(), state_shapes(config)
    where = state_shardings(shapes, mesh, "replicated")
    key = jax.random.key(config.seed)
    data = config.data.sigma_data * jax.random.normal(key, (config.batch, *config.model.shape))
    classes = config.model.network.get("num_classes")
    labels = None if classes is None else jnp.arange(config.batch, dtype=jnp.int32) % classes
    steps = {
        name: jit_train_step(config, model_shapes(config), mesh, where, gradient)
        for name, gradient in gradients.items()
    }
    print("| gradient | step, s | loss | norm of the gradient |\n|---|---|---|---|")
    for name, step in steps.items():
        state, seconds = create_state(config, where), []
        for i in range(6):
            begin = time.perf_counter()
            state, metrics = step(state, Batch(data, labels), jax.random.fold_in(key, i))
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - begin)
        row = f"{min(seconds[1:]):.3f} | {metrics.loss:.6f} | {metrics.gradient_norm:.6f}"
        print(f"| {name} | {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a TOML file, or the name of a shipped config")
    parser.add_argument("--out", type=Path, help="folder of the run")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    parser.add_argument("--compare", action="store_true", help="print seconds of steps and stop")
    options = parser.parse_args()
    try:
        config = load_config(options.config)
        dtype = torch.float32 if options.float32 else torch.bfloat16
        if options.compare:
            compare(config, {"XLA": None, "PyTorch": torch_gradient(config, dtype)})
            return
        run = options.out or Path("runs") / Path(options.config).stem
        result = fit(config, run, gradient=torch_gradient(config, dtype))
        export(run, run / "model")
        print(f"{run}: step {result.state.step} of {config.steps}")
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
