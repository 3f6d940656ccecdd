"""dgjax: sample diffusion and flow models at a chosen log-density, and measure it.

`field` makes a model of a network and its path. `sample` draws from the model with guides and
noise, and tracks log p_t along the way. `likelihood` and `quadrature` measure the log-density of
given points. Functions act on one sample; use `jax.vmap` for a batch. Log-densities are in nats,
of the model's own marginal at its smallest noise level t_min.
"""

from dgjax._version import __version__ as __version__
from dgjax.checkpoints.pretrained import load_pretrained, pretrained_models
from dgjax.evaluation.alignment import Alignment, AlignmentStatistics, align, alignment_statistics
from dgjax.evaluation.frechet import frechet_distance, frechet_gaussian, frechet_interval
from dgjax.evaluation.geodesics import Geodesic, Posterior, geodesic, jeffreys, posterior
from dgjax.evaluation.inconsistency import (
    Inconsistency,
    InconsistencyStatistics,
    heat_residual,
    inconsistency,
    inconsistency_statistics,
)
from dgjax.evaluation.intervals import Estimate
from dgjax.evaluation.normality import Normality, h_statistic, normality
from dgjax.evaluation.precision_recall import PrecisionRecall, precision_recall
from dgjax.guidance.classifier_free import autoguidance, classifier_free_guidance
from dgjax.guidance.density import (
    density_guidance,
    density_guidance_nats,
    forcing_nats,
)
from dgjax.guidance.high_density import high_density
from dgjax.guidance.noise import (
    churn,
    level_set_noise,
    noise_matched,
    published_stochastic,
    reverse_sde,
    reverse_sde_ito,
)
from dgjax.guidance.rate import rate_guidance
from dgjax.guidance.schedules import schedule, window
from dgjax.guidance.target import target_guidance
from dgjax.guidance.temperature import temperature
from dgjax.model.closed_form import (
    GaussianMixture,
    closed_form,
    gaussian,
    gaussian_mixture,
    kernel_density,
    log_density,
)
from dgjax.model.coloured_probes import Coloured
from dgjax.model.discrete_time import discrete_time
from dgjax.model.divergence import (
    Exact,
    FixedProbe,
    Hutchinson,
    HutchPP,
    Untracked,
)
from dgjax.model.faults import Fault
from dgjax.model.field import (
    Field,
    condition,
    denoise,
    field,
    gaussian_prior,
    log_prior,
    repath,
    score,
    velocity,
)
from dgjax.model.local import Local, evaluate
from dgjax.model.parametrization import (
    DenoisedPrediction,
    NoisePrediction,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
    preconditioned,
    rescale_time,
)
from dgjax.model.paths import cosine, custom, edm, logsnr, rectified_flow, sub_vp, ve, vp
from dgjax.model.prior import chi_quantile, prior_guidance, prior_sample, with_norm
from dgjax.model.reverse_mode import ReverseMode
from dgjax.networks.torch_network import torch_network
from dgjax.pictures.png import png_bytes
from dgjax.pictures.quantization import bits_per_dim, dequantize
from dgjax.sampling.adjoints import BOTH_MODES, FORWARD
from dgjax.sampling.find_grid import FoundGrid, find_grid
from dgjax.sampling.likelihood import Likelihood, likelihood
from dgjax.sampling.node_quadrature import node_quadrature
from dgjax.sampling.results import Info, Sampled, Trajectory
from dgjax.sampling.sample import sample
from dgjax.sampling.shooting import Shot, pilot, shoot
from dgjax.sampling.solvers import RK4, LevelSetEuler, Multistep
from dgjax.sampling.spacetime_quadrature import chord, quadrature
from dgjax.sampling.time_grids import grid_karras, grid_logsnr, grid_uniform
from dgjax.typing import register_dataclass

__all__ = [
    "BOTH_MODES",
    "FORWARD",
    "RK4",
    "Alignment",
    "AlignmentStatistics",
    "Coloured",
    "DenoisedPrediction",
    "Estimate",
    "Exact",
    "Fault",
    "Field",
    "FixedProbe",
    "FoundGrid",
    "GaussianMixture",
    "Geodesic",
    "HutchPP",
    "Hutchinson",
    "Inconsistency",
    "InconsistencyStatistics",
    "Info",
    "LevelSetEuler",
    "Likelihood",
    "Local",
    "Multistep",
    "NoisePrediction",
    "Normality",
    "Posterior",
    "PrecisionRecall",
    "ReverseMode",
    "Sampled",
    "ScorePrediction",
    "Shot",
    "Trajectory",
    "Untracked",
    "VPrediction",
    "VelocityPrediction",
    "align",
    "alignment_statistics",
    "autoguidance",
    "bits_per_dim",
    "chi_quantile",
    "chord",
    "churn",
    "classifier_free_guidance",
    "closed_form",
    "condition",
    "cosine",
    "custom",
    "denoise",
    "density_guidance",
    "density_guidance_nats",
    "dequantize",
    "discrete_time",
    "edm",
    "evaluate",
    "field",
    "find_grid",
    "forcing_nats",
    "frechet_distance",
    "frechet_gaussian",
    "frechet_interval",
    "gaussian",
    "gaussian_mixture",
    "gaussian_prior",
    "geodesic",
    "grid_karras",
    "grid_logsnr",
    "grid_uniform",
    "h_statistic",
    "heat_residual",
    "high_density",
    "inconsistency",
    "inconsistency_statistics",
    "jeffreys",
    "kernel_density",
    "level_set_noise",
    "likelihood",
    "load_pretrained",
    "log_density",
    "log_prior",
    "logsnr",
    "node_quadrature",
    "noise_matched",
    "normality",
    "pilot",
    "png_bytes",
    "posterior",
    "precision_recall",
    "preconditioned",
    "pretrained_models",
    "prior_guidance",
    "prior_sample",
    "published_stochastic",
    "quadrature",
    "rate_guidance",
    "rectified_flow",
    "register_dataclass",
    "repath",
    "rescale_time",
    "reverse_sde",
    "reverse_sde_ito",
    "sample",
    "schedule",
    "score",
    "shoot",
    "sub_vp",
    "target_guidance",
    "temperature",
    "torch_network",
    "ve",
    "velocity",
    "vp",
    "window",
    "with_norm",
]
