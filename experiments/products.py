"""Products and powers of models by weighted particles, and what classifier-free guidance samples.

1. Gaussians in 3-D, whose products are known: effective sample size and log normalizer along the
   drift of `sample_product`, the mean of the velocities, and along that of Feynman-Kac correctors,
   f x - g^2/2 sum b_i s_i (arXiv 2503.02819). Neither resamples here. Then both as they are used:
   `sample_product` with moves and resampling, and correctors with noise (target score SDE) and
   resampling, by Euler-Maruyama.
2. Classifier-free guidance against p(x | c)^w p(x)^(1 - w). Its samples are the particles without
   resampling and moves. Their weights give its divergence from that density,
   KL = log Z - E[log w], and say how many of n samples it is worth. The model is a 2-D mixture, for
   which Z is a sum on a grid.
3. The same on a class of a shipped model, whose Z is not known: the spread of the log-weights.

    python experiments/products.py
    python experiments/products.py images      a class of fashion-mnist
    python experiments/products.py scatter     the error of log Z at weight 4, for several seeds
"""

import sys

import claims
import jax
import jax.numpy as jnp
import numpy as np

import dgjax
from dgjax.sampling.resampling import effective_size, resample

KEY, STEPS, MANY = jax.random.key(0), 48, 1000
EXACT = dgjax.Exact()
PRODUCTS = {"p1 p2": (1.0, 1.0), "p1^1.7": (1.7, 0.0), "p1^0.5 p2^0.2": (0.5, 0.2)}
WEIGHTS = (1.0, 1.5, 2.0, 4.0)


def model_of(data):
    return dgjax.closed_form(data, dgjax.edm(), t_min=0.05, t_max=60.0)


def gaussians(seed=0, size=3):
    """Return two Gaussians: their means and covariances."""
    rng = np.random.default_rng(seed)
    roots = 0.5 * rng.normal(size=(2, size, size))
    return 1 + rng.normal(size=(2, size)), roots @ roots.mT + 0.3 * np.eye(size)


def log_normalizer(powers, means, covariances, t_min=0.05):
    """Return log of the integral of prod p_i^(b_i) of noised Gaussians."""
    noised = covariances + t_min**2 * np.eye(means.shape[1])
    inverses = np.linalg.inv(noised)
    b = np.asarray(powers)
    precision = np.einsum("k,kij->ij", b, inverses)
    linear = np.einsum("k,kij,kj->i", b, inverses, means)
    squares = np.einsum("ki,kij,kj->k", means, inverses, means)
    constant = -0.5 * b @ (squares + np.linalg.slogdet(2 * np.pi * noised)[1])
    covariance = np.linalg.inv(precision)
    found = linear @ covariance @ linear + np.linalg.slogdet(2 * np.pi * covariance)[1]
    return constant + 0.5 * found


def of_correctors(models, powers, t, x):
    """Return sum b_i s_i, and sum b_i |s_i|^2 less the square of that sum."""
    b = jnp.asarray(powers)
    scores = jnp.stack([dgjax.score(model, t, x) for model in models])
    total = b @ scores
    return total, b @ jnp.sum(scores**2, -1) - total @ total


def latents(models, powers, t, num):
    """Return x (num, D) from the product of the priors at t_max, and their log-weights (num,)."""
    spread = t / jnp.sqrt(sum(powers))
    z = jax.random.normal(KEY, (num, *models[0].shape))
    own = jnp.sum(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi * spread**2), -1)
    x = spread * z
    priors = [jax.vmap(lambda x, m=m: dgjax.log_prior(m, x))(x) for m in models]
    return x, jnp.asarray(powers) @ jnp.stack(priors) - own


def corrector(models, powers, grid, num):
    """Return log-weights along f x - g^2/2 sum b_i s_i on the EDM path (f = 0, t = sigma)."""

    def rate(t, x):
        total, gained = of_correctors(models, powers, t, x)
        return -t * total, t * gained

    def step(state, times):
        x, (t0, t1) = state[0], times
        h = t1 - t0
        k = [rate(t0, x)]
        for share, t in ((0.5, t0 + h / 2), (0.5, t0 + h / 2), (1.0, t1)):
            k.append(rate(t, x + share * h * k[-1][0]))
        new = [
            a + h * (k[0][i] + 2 * k[1][i] + 2 * k[2][i] + k[3][i]) / 6 for i, a in enumerate(state)
        ]
        return tuple(new), None

    def one(*state):
        return jax.lax.scan(step, state, (grid[:-1], grid[1:]))[0][1]

    start = latents(models, powers, grid[0], num)
    return np.asarray(jax.jit(jax.vmap(one))(*start))


def noisy_corrector(models, powers, grid, num, below=0.5):
    """Return log Z, the least share of effective particles, and the share of ancestors left.

    Particles follow f x - g^2 sum b_i s_i with noise g, backwards in time, on the EDM path, and are
    resampled where fewer than the share `below` are effective.
    """

    def one(t0, t1, x, log_weight, z):
        total, gained = of_correctors(models, powers, t0, x)
        g2 = 2 * t0 * (t0 - t1)  # times the step
        return x + g2 * total + jnp.sqrt(g2) * z, log_weight - 0.5 * g2 * gained

    def step(carry, item):
        (x, log_weights, ancestors), (t0, t1, key) = carry, item
        again, noise = jax.random.split(key)
        kept = resample(again, log_weights, below)
        z = jax.random.normal(noise, x.shape)
        moved = jax.vmap(one, (None, None, 0, 0, 0))(t0, t1, x[kept.indices], kept.log_weights, z)
        return (*moved, ancestors[kept.indices]), effective_size(moved[1])

    @jax.jit
    def run():
        start = *latents(models, powers, grid[0], num), jnp.arange(num)
        keys = jax.random.split(jax.random.fold_in(KEY, 1), len(grid) - 1)
        return jax.lax.scan(step, start, (grid[:-1], grid[1:], keys))

    (_, log_weights, ancestors), sizes = run()
    return mean_weight(log_weights), float(sizes.min()) / num, len(np.unique(ancestors)) / num


def mean_weight(log_weights):
    return float(jax.nn.logsumexp(jnp.asarray(log_weights))) - np.log(len(log_weights))


def gaussian_models():
    """Return the models of two Gaussians and the log normalizers of their products by name."""
    means, covariances = gaussians()
    pairs = zip(jnp.asarray(means), jnp.asarray(covariances), strict=True)
    models = [model_of(dgjax.gaussian(*pair)) for pair in pairs]
    return models, {name: log_normalizer(b, means, covariances) for name, b in PRODUCTS.items()}


def products(num=4000):
    """Yield a row for each product of two Gaussians."""
    models, truths = gaussian_models()
    grid = dgjax.grid_logsnr(models[0], STEPS)
    for name, powers in PRODUCTS.items():
        old = corrector(models, powers, grid, num)
        found = dgjax.sample_product(
            models, powers, grid, key=KEY, num=num, divergence=EXACT, moves=0, resample_below=0
        )
        yield [
            name,
            f"{dgjax.effective_sample_size(old) / num:.1%}",
            f"{mean_weight(old) - truths[name]:+.3f}",
            f"{float(found.effective_sizes[-1]) / num:.1%}",
            f"{float(found.log_normalizer) - truths[name]:+.3f}",
        ]


def resampled_products(num=4000):
    """Yield a row for each product of two Gaussians and method, as the methods are used."""
    models, truths = gaussian_models()
    grid = dgjax.grid_logsnr(models[0], STEPS)
    for name, powers in PRODUCTS.items():
        run = dgjax.sample_product(models, powers, grid, key=KEY, num=num, divergence=EXACT)
        left = len(np.unique(run.ancestors)) / num
        ours = float(run.log_normalizer), float(run.effective_sizes.min()) / num, left
        found = {("velocities, moves", STEPS): ours}
        for steps in (STEPS, MANY):
            fine = dgjax.grid_logsnr(models[0], steps)
            found["correctors, noise", steps] = noisy_corrector(models, powers, fine, num)
        for (method, steps), (log_z, least, ancestors) in found.items():
            error = f"{log_z - truths[name]:+.3f}"
            yield [name, method, f"{steps:,}", f"{least:.1%}", f"{ancestors:.1%}", error]


def guided(models, weight, grid, num, key=KEY, divergence=EXACT, **options):
    """Return the particles of p(x | c)^w p(x)^(1 - w)."""
    powers = jnp.array([weight, 1 - weight])
    return dgjax.sample_product(
        models, powers, grid, key=key, num=num, divergence=divergence, **options
    )


def class_among_others():
    """Return a class of two modes, the mixture of all classes, and the error of a log Z of them."""
    means = jnp.array([[0.0, 0.0], [2.0, 1.5], [1.5, -1.0], [-1.5, 0.5]])
    covariances = (
        jnp.array([[0.3, 0.1], [0.1, 0.2]]) * jnp.array([1.0, 0.7, 1.5, 2.0])[:, None, None]
    )
    every = model_of(dgjax.gaussian_mixture(jnp.ones(4) / 4, means, covariances))
    one = model_of(dgjax.gaussian_mixture(jnp.ones(2) / 2, means[:2], covariances[:2]))
    line = jnp.linspace(-8, 9, 401)
    points = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    logs = [jax.vmap(lambda x, m=m: dgjax.log_density(m, 0.05, x))(points) for m in (one, every)]

    def log_z(weight):
        tilted = weight * logs[0] + (1 - weight) * logs[1]
        return float(jax.nn.logsumexp(tilted) + 2 * jnp.log(line[1] - line[0]))

    return [one, every], log_z


def classes_in_2d(num=4000):
    """Yield a row for each weight, of a class of two modes among three classes."""
    models, log_z = class_among_others()
    grid = dgjax.grid_logsnr(models[0], STEPS)
    for weight in WEIGHTS:
        true = log_z(weight)
        plain = guided(models, weight, grid, num, moves=0, resample_below=0)
        moved = guided(models, weight, grid, num)
        log_weights = np.asarray(plain.log_weights)
        yield [
            "2-D mixture",
            f"{weight:g}",
            f"{num}",
            claims.mean_error(true - log_weights, 3),
            f"{log_weights.std():.2f}",
            f"{dgjax.effective_sample_size(log_weights):,.0f}",
            f"{float(moved.effective_sizes.min()):,.0f}",
            f"{int(moved.resampled.sum())}, {len(np.unique(moved.ancestors))}",
            f"{float(moved.log_normalizer) - true:+.3f}",
        ]


def images(label=8, num=32):
    """Yield a row for each weight, of a class of fashion-mnist."""
    every, _ = dgjax.load_pretrained("fashion-mnist")
    models = [dgjax.condition(every, label), every]
    # Along the mean of the velocities divergences cancel in the weights: any probes serve.
    grid, probes = dgjax.grid_logsnr(every, 32), dgjax.Coloured(5)
    for weight in WEIGHTS[1:]:
        found = guided(models, weight, grid, num, divergence=probes, moves=0, resample_below=0)
        log_weights = np.asarray(found.log_weights)
        yield [
            f"{weight:g}",
            f"{num}",
            f"{log_weights.std(ddof=1):.1f}",
            f"{dgjax.effective_sample_size(log_weights):.1f}",
        ]


def scatter(weight=4.0, num=2000, seeds=6):
    """Yield the error of log Z with moves for several seeds, by the number of steps."""
    models, log_z = class_among_others()
    for steps in (STEPS, 3 * STEPS):
        grid = dgjax.grid_logsnr(models[0], steps)
        keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
        found = [guided(models, weight, grid, num, key=key).log_normalizer for key in keys]
        errors = np.sort(np.asarray(found) - log_z(weight))
        yield [f"{steps}", f"{num}", ", ".join(f"{e:+.2f}" for e in errors)]


def main():
    if sys.argv[1:] == ["scatter"]:
        with jax.enable_x64():
            header = ["steps", "particles", "error of log Z, nats, sorted"]
            claims.report("products_scatter", header, list(scatter()))
        return
    if sys.argv[1:] == ["images"]:
        header = ["weight", "particles n", "s.d. of log weights, nats", "n effective"]
        claims.report("products_images", header, list(images()))
        return
    header = ["product", "corrector: particles left", "error of log Z"]
    header += ["mean of velocities: left", "error of log Z"]
    again = ["product", "along, with", "steps", "least n effective", "ancestors left"]
    with jax.enable_x64():
        claims.report("products", header, list(products()))
        rows = list(resampled_products())
        claims.report("products_resampled", [*again, "error of log Z"], rows)
        rows = list(classes_in_2d())
    header = ["model", "weight", "particles n", "KL(guided, target), nats", "s.d. of log weights"]
    header += ["n effective", "with moves: least n effective", "resamplings, ancestors left"]
    claims.report("products_guidance", [*header, "error of log Z"], rows)


if __name__ == "__main__":
    main()
