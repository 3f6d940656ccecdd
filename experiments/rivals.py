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
    python experiments/rivals.py --model photo-patches
"""

from functools import partial
from typing import NamedTuple

import claims
import jax.numpy as jnp
import numpy as np
from prior_guidance import features, qualities, sizes
from scipy.interpolate import PchipInterpolator

import dgjax
from dgjax.evaluation.frechet import frechet_distance
from dgjax.evaluation.precision_recall import precision_recall
from dgjax.pictures.grid import image_grid
from dgjax.pictures.quantization import to_uint8

EVALUATIONS = (8, 16, 32)
CHANGE = 0.1  # of the PNG size
SIGNS = (-1, 1)
DRAWN = 8  # evaluations of the samples in the picture
TRIED, SHOWN = 32, 10  # samples of each setting that is tried; columns of the picture
OURS = "density guidance"


class Dial(NamedTuple):
    """A way to turn detail: (field, latent, grid, setting) -> (latent, guides)."""

    turn: object
    neutral: float
    settings: tuple[float, ...]  # tried, of rising log p, without the neutral one


def dials(scale):
    """Return the dials by name, for data of standard deviation `scale`."""
    guide = lambda make: lambda field, x, grid, setting: (x, make(setting, field, grid))
    prior = lambda field, x, grid, r: (dgjax.with_norm(field, x, r * x.size**0.5), ())
    return {
        OURS: Dial(guide(lambda q, *_: dgjax.density_guidance(q)), 0.5, (0.3, 0.42, 0.58, 0.7)),
        "Detail Daemon": Dial(guide(dgjax.detail_daemon), 0.0, (0.3, 0.1, -0.15, -0.6)),
        "Omegance": Dial(
            guide(lambda omega, *_: dgjax.omegance(omega)),
            1.0,
            (0.98, 0.994, 1.006, 1.025),
        ),
        "score rescaling": Dial(
            guide(lambda T, *_: dgjax.temperature(T, scale=scale)),
            1.0,
            (1.1, 1.04, 0.95, 0.8),
        ),
        "prior scaling": Dial(prior, 1.0, (1.1, 1.04, 0.96, 0.88)),
    }


def drawn(field, key, probes, setting, *, turn, shape, grid, tracked):
    """Return (denoised image, log p, error of the solver) of one latent of the median norm."""
    x = dgjax.prior_guidance(field, dgjax.prior_sample(field, key, shape), 0.5)
    x, guides = turn(field, x, grid, setting)
    options = {} if tracked else {"divergence": dgjax.Untracked()}
    found = dgjax.sample(field, x, grid, key=probes, guides=guides, **options)
    return dgjax.denoise(field, grid[-1], found.x), found.log_density, found.info.solver_error


def draws(setup, dial, evaluations):
    """Return a function (settings, first, last, tracked) -> images, log p, error by settings."""
    field, shape = setup.model.field, setup.model.meta.shape
    options = {"turn": dial.turn, "shape": shape, "grid": dgjax.grid_logsnr(field, evaluations - 1)}

    def run(settings, first, last, tracked):
        keys, probes = (claims.keys(setup, last, i)[first:] for i in (0, 1))
        found = claims.each(
            f"{evaluations} evaluations",
            partial(drawn, tracked=tracked, **options),
            setup,
            jnp.tile(keys, len(settings)),
            jnp.tile(probes, len(settings)),
            np.repeat(np.float32(settings), len(keys)),
        )
        return [a.reshape(len(settings), -1, *a.shape[1:]) for a in found]

    return run


def curve(setup, dial, run):
    """Return settings with their mean PNG sizes and mean log p, on the first samples."""
    half = len(dial.settings) // 2
    settings = (*dial.settings[:half], dial.neutral, *dial.settings[half:])
    images, log_density, _ = run(settings, 0, TRIED, True)
    return (
        np.array(settings),
        np.array([sizes(setup, x).mean() for x in images]),
        log_density.mean(1),
    )


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


def measured(setup, run, settings, real):
    """Return {setting: Found} of those settings that are not None."""
    settings, count = sorted({s for s in settings if s is not None}), len(real)
    if not settings:
        return {}
    few = count // 4
    images, log_density, error = run(settings, 0, few, True)
    images = np.concatenate([images, run(settings, few, count, False)[0]], axis=1)
    return {
        s: Found(s, x, *known, sizes(setup, x), qualities(features(setup, x), real))
        for s, x, *known in zip(settings, images, log_density, error, strict=True)
    }


def measure(setup, scale, real, evaluations):
    """Return the unguided `Found` and {(sign, dial): (at equal size, at equal nats)}."""
    plain, groups, wanted = None, {}, {}
    for name, dial in dials(scale).items():
        run = draws(setup, dial, evaluations)
        settings, bytes_, nats = curve(setup, dial, run)
        middle = len(settings) // 2
        gains = nats - nats[middle]
        chosen = {}
        for sign in SIGNS:
            size = solve(settings, bytes_, bytes_[middle] * (1 + sign * CHANGE))
            if name == OURS:
                wanted[sign] = PchipInterpolator(settings, gains)(size)
            alike = size if name == OURS else solve(settings, gains, wanted[sign])
            chosen[sign] = size, alike
        asked = [s for pair in chosen.values() for s in pair]
        found = measured(setup, run, [*asked, *([dial.neutral] if plain is None else [])], real)
        plain = plain or found[dial.neutral]
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


def draw(setup, plain, groups):
    """Draw the first latents without a guide and with each dial at equal PNG size."""
    shown = {"unguided": plain}
    for name in dials(1.0):
        for sign in SIGNS:
            shown[f"{name}\nPNG {sign * CHANGE:+.0%}"] = groups[sign, name][0]
    shown = {label: found for label, found in shown.items() if found is not None}
    images = np.stack([found.images[:SHOWN] for found in shown.values()])
    figure = image_grid(
        to_uint8(images, setup.model.meta.data_range),
        list(shown),
        title="The same latents with each dial at one mean PNG size",
        caption="Images without the noise of t_min. A dial is left out where it cannot reach it.",
    )
    claims.save(figure, f"rivals-{setup.model.name}")


def main():
    setup = claims.start(__doc__)
    count = 4 * setup.preset.count
    pictures = claims.images(setup, 2 * count)
    seen = features(setup, pictures)
    real, others = seen[:count], seen[count : 2 * count]
    header = ["evaluations", "PNG size", "dial", "setting", "nats", "Fréchet VGG16 [95 %]"]
    header += ["precision", "recall", "setting at equal nats", "PNG size"]
    header += ["Fréchet VGG16 [95 %]", "precision", "recall"]
    found = {}
    for evaluations in EVALUATIONS:
        found[evaluations] = measure(setup, float(pictures.std()), real, evaluations)
        claims.report(f"rivals-{setup.model.name}", header, rows_of(found))
        if evaluations == DRAWN:
            draw(setup, *found[evaluations])
    if len(others) == count:
        shares = precision_recall(others, real)
        print(
            f"other held-out images: Fréchet {frechet_distance(others, real):.3f}, precision "
            f"{shares.precision.value:.0%}, recall {shares.recall.value:.0%}; "
            f"{sizes(setup, pictures).mean():.0f} bytes"
        )
    for evaluations, (plain, _) in found.items():
        print(f"{evaluations} evaluations: solver's error {np.median(plain.error):.2g} nats")


if __name__ == "__main__":
    main()
