"""Distilled divergence: can a small head predict the divergence of its frozen network?

With it a log-density costs one evaluation a step and no jvp. The head sees the last features of the
U-Net, its input and its output. For every pixel it foretells a 5x5 patch of that pixel's row of the
Jacobian A of x0, whose middle is the diagonal. It learns from what random probes z make of the
network: from A z pixel by pixel, and from z^T A z, whose mean is the trace. Taking the patches
times z away from A z also makes a control variate, which leaves an estimate unbiased.

Measured on new latents along their PF-ODE: the integral of the foretold divergence against that of
64 products a point (8 colours, which have an eighth to a fifth of the variance), and the standard
error of one and four plain random signs.

    python experiments/distilled.py              train the head, then measure (50 minutes)
    python experiments/distilled.py --steps 200  see that it runs
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import track

import dgjax
from dgjax.data.named_datasets import load_dataset
from dgjax.model.paths import coefficients
from dgjax.networks.unet import Block, fold, unfold

MODEL, STEPS, BATCH, RATE = "fashion-mnist", 3000, 32, 2e-3
WIDTH, BLOCKS, REACH = 64, 2, 2  # channels and blocks of the head, and pixels to each side
SIDE = 2 * REACH + 1
LATENTS, POINTS, PRODUCTS = 16, 32, (8, 8)  # colours, repeats
DRAWS, ROUNDS = 8, 9
OUT = Path(__file__).parent / "figures" / "distilled.md"


class Head(nnx.Module):
    """Network (features, x, x0, embedding) -> (H, W, SIDE^2): entries of A in each pixel's row."""

    def __init__(self, features, embedding, *, rngs):
        conv = lambda i, o, **more: nnx.Conv(i, o, (3, 3), rngs=rngs, **more)
        self.enter = conv(features + 8, WIDTH)
        blocks = (Block(WIDTH, embedding, 0.0, rngs=rngs) for _ in range(BLOCKS))
        self.blocks = nnx.List(blocks)
        self.leave = conv(WIDTH, 4 * SIDE**2, kernel_init=nnx.initializers.zeros)

    def __call__(self, features, x, x0, embedding):
        h = self.enter(jnp.concatenate([fold(a[None]) for a in (features, x, x0)], -1))
        for block in self.blocks:
            h = block(h, embedding, None)
        return unfold(self.leave(nnx.silu(h)))[0]


def with_features(network):
    """Change the network so that it also returns the input features of its last layer."""
    wide, leave, shallow = nnx.clone(network), network.leave[0], network.shallow

    def beside(features, out):  # channels of each of the four pixels that are folded into one
        both = [a.reshape(*a.shape[:-1], 4, -1) for a in (features, out)]
        return jnp.concatenate(both, -1).reshape(*out.shape[:-1], -1)

    def detail(h):
        out = shallow(h)
        return beside(jnp.zeros((*out.shape[:-1], leave.in_features)), out)

    wide.leave[0], wide.shallow = lambda h: beside(h, leave(h)), detail
    return wide


def evaluate(model, t, x):
    """Return x0 and the inputs of the head, from one pass of the network."""
    c = coefficients(model.path, t)
    seen = []

    def network(x, t, cond):
        both = with_features(model.network)(x, t, cond)
        seen.extend([both[..., : -x.shape[-1]], x, model.network.embed(t)])
        return both[..., -x.shape[-1] :]

    x0 = model.parametrization(network, x, t, c, None).x0
    features, y, embedding = seen
    return x0, (features, y, x0, embedding)


def times(patches, z):
    """Return the predicted Jacobian times z."""
    padded = jnp.pad(z[..., 0], REACH)
    rows, columns = z.shape[:2]
    shifts = [(i, j) for i in range(SIDE) for j in range(SIDE)]
    parts = (
        patches[..., k] * padded[i : i + rows, j : j + columns] for k, (i, j) in enumerate(shifts)
    )
    return sum(parts)[..., None]


def trace(patches):
    return jnp.sum(patches[..., SIDE**2 // 2])


def loss(head, model, x, key):
    """Return the squared residuals of the predicted A z and z^T A z, for one image."""
    keys = jax.random.split(key, 3)
    low, high = jnp.log(model.t_min), jnp.log(model.t_max)
    t = jnp.exp(jax.random.uniform(keys[0], minval=low, maxval=high))
    x = x + t * jax.random.normal(keys[1], x.shape)
    z = jax.random.rademacher(keys[2], x.shape, x.dtype)
    _, product, seen = jax.jvp(lambda x: evaluate(model, t, x), (x,), (z,), has_aux=True)
    left = product - times(head(*seen), z)
    return jnp.sum(left**2) + jnp.sum(z * left) ** 2


def distil(model, steps):
    """Train the head by Adam with a cosine decay."""
    data = load_dataset(MODEL)
    head = Head(
        model.network.leave[0].in_features,
        model.network.embed.outer.out_features,
        rngs=nnx.Rngs(0),
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, steps))
    )
    state, draw = optimiser.init(head), np.random.default_rng(0)

    @jax.jit
    def step(head, state, model, x, key):
        def mean(head):
            return jnp.mean(
                jax.vmap(loss, (None, None, 0, 0))(head, model, x, jax.random.split(key, BATCH))
            )

        value, gradient = jax.value_and_grad(mean)(head)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(head, updates), state, value

    values = []
    for i in track(range(steps), "distilling"):
        rows = draw.integers(0, len(data), BATCH)
        x = jnp.asarray(data.batch(rows))
        head, state, value = step(head, state, model, x, jax.random.key(i))
        values.append(float(value))
        if (i + 1) % 250 == 0:
            print(f"step {i + 1}: loss {np.mean(values[-250:]):.2f}", flush=True)
    return head


def measure(head, model, shape):
    """Return the integral along each trajectory by the head, by many products and by few."""
    grid = dgjax.grid_logsnr(model, POINTS)
    weights = np.gradient(np.log(np.asarray(grid, np.float64)))
    weights[[0, -1]] /= 2

    @jax.jit
    def trajectory(model, key):
        x = dgjax.prior_sample(model, key, shape)
        options = {"divergence": dgjax.Untracked(), "save": dgjax.Trajectory}
        return dgjax.sample(model, x, grid, key=key, **options).trajectory.x

    @jax.jit
    def at(head, model, t, x, key):
        _, jvp, seen = jax.linearize(lambda x: evaluate(model, t, x), x, has_aux=True)
        patches = head(*seen)
        keys = jax.random.split(key, 3)
        many = dgjax.Coloured(*PRODUCTS)(jvp, x, keys[0])
        plain = dgjax.Hutchinson(DRAWS)(jvp, x, keys[1])
        left = dgjax.Hutchinson(DRAWS)(lambda z: jvp(z) - times(patches, z), x, keys[2])
        variances = jnp.stack([jnp.var(a, ddof=1) for a in (many, plain, left)])
        return trace(patches), jnp.mean(many), variances / jnp.array([PRODUCTS[1], 1, 1])

    foretold, found, variances = [], [], []
    for i in track(range(LATENTS), "measuring"):
        xs = trajectory(model, jax.random.fold_in(jax.random.key(1), i))
        keys = jax.random.split(jax.random.key(i), POINTS + 1)
        parts = jax.lax.map(lambda a: at(head, model, *a), (grid, xs, keys), batch_size=4)
        foretold.append(weights @ np.asarray(parts[0], np.float64))
        found.append(weights @ np.asarray(parts[1], np.float64))
        variances.append(weights**2 @ np.asarray(parts[2], np.float64))
    return np.array(foretold), np.array(found), np.array(variances)


def seconds(head, model, shape):
    """Time one evaluation of a batch: network alone, with the head, with one product."""
    xs = jax.random.normal(jax.random.key(0), (BATCH, *shape))
    t, z = jnp.float32(1.0), jnp.sign(xs[0])

    def with_head(head, model, x):
        x0, seen = evaluate(model, t, x)
        return x0, trace(head(*seen))

    def with_product(head, model, x):
        return jax.jvp(lambda x: dgjax.denoise(model, t, x), (x,), (z,))

    kinds = [lambda head, model, x: dgjax.denoise(model, t, x), with_head, with_product]
    kinds = [jax.jit(jax.vmap(kind, (None, None, 0))) for kind in kinds]
    times = []
    for _ in range(ROUNDS + 1):  # the first compiles
        for kind in kinds:
            start = time.perf_counter()
            jax.block_until_ready(kind(head, model, xs))
            times.append(time.perf_counter() - start)
    return np.median(np.reshape(times, (-1, len(kinds)))[1:], 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="of training the head")
    steps = parser.parse_args().steps
    model, meta = dgjax.load_pretrained(MODEL)
    head = distil(model, steps)
    foretold, found, variances = measure(head, model, meta.shape)
    off, noise = foretold - found, np.sqrt(variances.mean(0))
    alone, with_head, with_product = seconds(head, model, meta.shape)
    mean, error = off.mean(), off.std(ddof=1) / np.sqrt(LATENTS)
    products = np.prod(PRODUCTS)
    lines = [
        f"| {steps} steps of {BATCH} images, {LATENTS} latents | nats |",
        "|---|---|",
        f"| integral of the divergence: spread over latents | {found.std(ddof=1):.1f} |",
        f"| head less {products} products: mean and its s.e. | {mean:+.1f} ± {error:.1f} |",
        f"| head less {products} products: RMS | {np.sqrt(np.mean(off**2)):.1f} |",
        f"| s.e. of {products} products by colours | {noise[0]:.2f} |",
        f"| s.e. of 1 and of 4 plain products | {noise[1]:.1f}, {noise[1] / 2:.1f} |",
        f"| s.e. of 1 with the head as control variate | {noise[2]:.1f} |",
        "",
        f"Gain in variance as a control variate: {(noise[1] / noise[2]) ** 2:.2f}. Cost of an "
        f"evaluation with the head {with_head / alone:.2f}, with a product "
        f"{with_product / alone:.2f} times that of the network alone.",
    ]
    print("\n".join(lines))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
