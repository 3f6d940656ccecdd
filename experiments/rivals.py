"""Other people's dials for detail beside density guidance, at equal PNG size and at equal nats.

Detail Daemon, Omegance, temporal score rescaling and prior scaling are turned until the mean PNG
size of a few samples is a tenth above or below that of unguided ones, and until their mean log p
changes by as many nats as density guidance changes it there. With these settings more samples are
drawn from the same latents, and their Fréchet distance, precision and recall against as many
held-out images are measured, all at 8, 16 and 32 evaluations of the network. The images are those
that the last evaluation denoises. Log p is tracked for the first quarter of them, which takes
Jacobian products that are not counted; nor is Detail Daemon's second pass beside them, which its
own samplers do not need.

    python experiments/rivals.py
    python experiments/rivals.py --model photo-patches --evaluations 16 32 --keep parts
"""

import argparse
from functools import partial
from math import gcd
from typing import NamedTuple

import claims
import jax
import jax.numpy as jnp
import numpy as np
from prior_guidance import features, qualities
from scipy.interpolate import PchipInterpolator

import dgjax
from dgjax.devices.batches import map_batches
from dgjax.evaluation.frechet import frechet_distance
from dgjax.evaluation.precision_recall import precision_recall
from dgjax.pictures.grid import image_grid

EVALUATIONS = (8, 16, 32)
CHANGE = 0.1  # of the PNG size
SIGNS = (-1, 1)
DRAWN = 16  # evaluations of the samples in the picture
TRIED, SHOWN = 32, 10  # samples of each setting that is tried; columns of the picture
OURS = "density guidance"


class Dial(NamedTuple):
    """A way to turn detail: its place in `Settings` and the settings tried, of rising log p."""

    place: str
    settings: tuple[float, ...]  # without the neutral one


class Settings(NamedTuple):
    """Settings of all dials, of which one is turned. These are neutral."""

    q: float = 0.5
    amount: float = 0.0
    omega: float = 1.0
    T: float = 1.0
    radius: float = 1.0


DIALS = {
    OURS: Dial("q", (0.3, 0.42, 0.58, 0.7)),
    "Detail Daemon": Dial("amount", (0.3, 0.1, -0.15, -0.6)),
    "Omegance": Dial("omega", (0.98, 0.994, 1.006, 1.025)),
    "score rescaling": Dial("T", (1.1, 1.04, 0.95, 0.8)),
    "prior scaling": Dial("radius", (1.1, 1.04, 0.96, 0.88)),
}


def guides_of(settings, field, grid, scale):
    """Return the guides of all dials; those that are neutral change nothing.

    Density guidance comes first, because it would undo what others do along the score.
    """
    return (
        dgjax.density_guidance(settings.q),
        dgjax.detail_daemon(settings.amount, field, grid),
        dgjax.omegance(settings.omega),
        dgjax.temperature(settings.T, scale=scale),
    )


def drawn(field, settings, scale, key, probes, *, shape, grid, tracked):
    """Return (denoised image, log p, error of the solver) of one latent of the median norm.

    `scale` is the standard deviation of the data. All dials are in one program, compiled once.
    """
    x = dgjax.prior_guidance(field, dgjax.prior_sample(field, key, shape), 0.5)
    guides = guides_of(settings, field, grid, scale)
    options = {} if tracked else {"divergence": dgjax.Untracked()}
    found = dgjax.sample(field, settings.radius * x, grid, key=probes, guides=guides, **options)
    return dgjax.denoise(field, grid[-1], found.x), found.log_density, found.info.solver_error


def draws(setup, scale, evaluations):
    """Return a function (dial, settings, first, last, tracked) -> images, log p, error."""
    size = gcd(setup.preset.batch, TRIED, setup.preset.count)  # no batch is padded
    grid = dgjax.grid_logsnr(setup.model.field, evaluations - 1)
    options = {"shape": setup.model.meta.shape, "grid": grid}

    @partial(jax.jit, static_argnames="tracked")
    def batch_of(field, settings, scale, batch, *, tracked):
        one = partial(drawn, field, settings, scale, tracked=tracked, **options)
        return jax.vmap(one)(*batch)

    def run(name, settings, first, last, tracked):
        items = tuple(claims.keys(setup, last, i)[first:] for i in (0, 1))
        run_batch = partial(batch_of, tracked=tracked)
        kind = "tracked" if tracked else "untracked"
        found = []
        for setting in settings:
            where = f"{evaluations}-{name}-{setting:.9g}-{first}-{last}-{kind}"
            turned = Settings(**{DIALS[name].place: setting})
            shared = setup.model.field, jax.tree.map(jnp.float32, turned), jnp.float32(scale)
            make = partial(map_batches, where, run_batch, items, size, *shared)
            found.append(claims.kept(setup, where, make))
        return [np.stack(column) for column in zip(*found, strict=True)]

    return run


def neutral(name):
    return getattr(Settings(), DIALS[name].place)


def curve(setup, name, run, plain):
    """Return settings with their mean PNG sizes and mean log p, on the first samples.

    `plain` are size and log p at the neutral setting, if they are known.
    """
    tried = DIALS[name].settings
    images, log_density, _ = run(name, tried if plain else (*tried, neutral(name)), 0, TRIED, True)
    found = [
        (claims.sizes(setup, x).mean(), a.mean()) for x, a in zip(images, log_density, strict=True)
    ]
    found, plain = (found, plain) if plain else (found[:-1], found[-1])
    half = len(found) // 2
    settings = (*tried[:half], neutral(name), *tried[half:])
    return np.array(settings), *np.array([*found[:half], plain, *found[half:]]).T


def solve(settings, values, wanted):
    """Return the setting at which the monotone curve of values is `wanted`; None out of reach."""
    order = np.argsort(values)
    if not values[order[0]] <= wanted <= values[order[-1]]:
        return None
    return float(PchipInterpolator(values[order], settings[order])(wanted))


class Found(NamedTuple):
    """Samples of one setting: images (n, ...), log p (n/4,), PNG sizes (n,) and quality."""

    setting: float
    images: np.ndarray
    log_density: np.ndarray
    error: np.ndarray
    sizes: np.ndarray
    quality: tuple


def measured(setup, name, evaluations, run, settings, real):
    """Return {setting: Found} of those settings that are not None."""
    settings, count = sorted({s for s in settings if s is not None}), len(real)
    if not settings:
        return {}
    few = count // 4
    images, log_density, error = run(name, settings, 0, few, True)
    images = np.concatenate([images, run(name, settings, few, count, False)[0]], axis=1)
    found = {}
    for setting, x, *known in zip(settings, images, log_density, error, strict=True):
        where = f"{evaluations}-{name}-{setting:.9g}-{count}-features"
        make = partial(features, setup, x)
        (seen,) = claims.kept(setup, where, lambda make=make: [make()])
        found[setting] = Found(setting, x, *known, claims.sizes(setup, x), qualities(seen, real))
    return found


def measure(setup, scale, real, evaluations, names):
    """Return the unguided `Found` and {(sign, dial): (at equal size, at equal nats)}."""
    plain, tried, groups, wanted = None, None, {}, {}
    run = draws(setup, scale, evaluations)
    for name in names:
        settings, bytes_, nats = curve(setup, name, run, tried)
        middle = len(settings) // 2
        tried = bytes_[middle], nats[middle]
        gains = nats - nats[middle]
        chosen = {}
        for sign in SIGNS:
            size = solve(settings, bytes_, bytes_[middle] * (1 + sign * CHANGE))
            if name == OURS:
                wanted[sign] = PchipInterpolator(settings, gains)(size)
            alike = size if name == OURS else solve(settings, gains, wanted[sign])
            chosen[sign] = size, alike
        asked = [s for pair in chosen.values() for s in pair]
        asked += [neutral(name)] if plain is None else []
        found = measured(setup, name, evaluations, run, asked, real)
        plain = plain or found[neutral(name)]
        for sign, pair in chosen.items():
            groups[sign, name] = tuple(found.get(s) for s in pair)
    return plain, groups


def quality_cells(found):
    distance, *shares = found.quality
    return [claims.between(distance, 3), *(f"{share.value:.0%}" for share in shares)]


def nats(found, plain):
    return claims.mean_error(found.log_density - plain.log_density, 0)


def rows_of(found):
    """Yield the rows of the table."""
    for evaluations, (plain, groups) in found.items():
        size = claims.mean_error(plain.sizes, 0)
        yield [
            str(evaluations),
            "",
            "unguided",
            "",
            "0",
            *quality_cells(plain),
            "",
            size,
            *[""] * 3,
        ]
        for (sign, name), (at_size, at_nats) in groups.items():
            row = [str(evaluations), f"{sign * CHANGE:+.0%}", name]
            if at_size is None:
                row += ["out of reach", *[""] * 4]
            else:
                row += [f"{at_size.setting:.3g}", nats(at_size, plain), *quality_cells(at_size)]
            if name == OURS:
                row += ["the same", *[""] * 4]
            elif at_nats is None:
                row += ["out of reach", *[""] * 4]
            else:
                change = f"{at_nats.sizes.mean() / plain.sizes.mean() - 1:+.1%}"
                row += [f"{at_nats.setting:.3g}", change, *quality_cells(at_nats)]
            yield row


def draw(setup, evaluations, plain, groups):
    """Draw the first latents with each dial at equal PNG size: smoother, unguided, more detail."""
    less, more = (
        {
            f"{name}\nPNG {sign * CHANGE:+.0%}": found
            for (side, name), (found, _) in groups.items()
            if side == sign
        }
        for sign in SIGNS
    )
    shown = {**less, "unguided": plain, **more}
    images = {label: found.images[:SHOWN] for label, found in shown.items() if found is not None}
    figure = image_grid(
        claims.levels(setup, np.stack(list(images.values()))),
        list(images),
        title=f"The same latents with each dial at one mean PNG size, {evaluations} evaluations",
        caption="Images without the noise of t_min. A dial is left out where it cannot reach it.",
    )
    claims.save(figure, f"rivals-{setup.title}")


def main():
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    options.add_argument("--dials", choices=list(DIALS)[1:], nargs="*", default=list(DIALS)[1:])
    setup = claims.start(__doc__, options)
    asked, _ = options.parse_known_args()
    count = 4 * setup.preset.count
    pictures = claims.images(setup, 2 * count)
    (seen,) = claims.kept(setup, f"held-out-{count}", lambda: [features(setup, pictures)])
    real, others = seen[:count], seen[count : 2 * count]
    header = ["evaluations", "PNG size", "dial", "setting", "nats", "Fréchet VGG16 [95 %]"]
    header += ["precision", "recall", "setting at equal nats", "PNG size"]
    header += ["Fréchet VGG16 [95 %]", "precision", "recall"]
    found = {}
    for evaluations in asked.evaluations:
        found[evaluations] = measure(
            setup, float(pictures.std()), real, evaluations, [OURS, *asked.dials]
        )
        claims.report(f"rivals-{setup.title}", header, rows_of(found))
        if evaluations == DRAWN and len(asked.dials) == len(DIALS) - 1:
            draw(setup, evaluations, *found[evaluations])
    if len(others) == count:
        shares = precision_recall(others, real)
        print(
            f"other held-out images: Fréchet {frechet_distance(others, real):.3f}, precision "
            f"{shares.precision.value:.0%}, recall {shares.recall.value:.0%}; "
            f"{claims.sizes(setup, pictures).mean():.0f} bytes"
        )
    for evaluations, (plain, _) in found.items():
        print(f"{evaluations} evaluations: solver's error {np.median(plain.error):.2g} nats")


if __name__ == "__main__":
    main()
