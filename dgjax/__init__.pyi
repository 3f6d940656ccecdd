from . import checkpoints as checkpoints
from . import data as data
from . import devices as devices
from . import evaluation as evaluation
from . import guidance as guidance
from . import importing as importing
from . import model as model
from . import networks as networks
from . import pictures as pictures
from . import sampling as sampling
from . import training as training
from .checkpoints.pretrained import load_pretrained, pretrained_models
from .evaluation.alignment import Alignment, AlignmentStatistics, align, alignment_statistics
from .evaluation.frechet import frechet_distance, frechet_gaussian, frechet_interval
from .evaluation.geodesics import Geodesic, geodesic
from .evaluation.inconsistency import (
    Inconsistency,
    InconsistencyStatistics,
    heat_residual,
    inconsistency,
    inconsistency_statistics,
)
from .evaluation.intervals import Estimate
from .evaluation.local_dimension import local_dimension
from .evaluation.normality import Normality, h_statistic, normality
from .evaluation.posteriors import Posterior, jeffreys, posterior, posterior_kl
from .evaluation.precision_recall import PrecisionRecall, precision_recall
from .evaluation.reweighting import effective_sample_size, importance_weights, weighted_mean
from .evaluation.route_gap import (
    RouteGap,
    RouteGapStatistics,
    one_evaluation_gap,
    route_gap,
    route_gap_statistics,
)
from .guidance.classifier_free import autoguidance, classifier_free_guidance
from .guidance.density import density_guidance, density_guidance_nats, forcing_nats
from .guidance.detail_daemon import detail_daemon
from .guidance.high_density import high_density
from .guidance.hold import hold
from .guidance.noise import (
    churn,
    level_set_noise,
    noise_matched,
    published_stochastic,
    reverse_sde,
    reverse_sde_ito,
)
from .guidance.omegance import omegance
from .guidance.parts import band, region
from .guidance.rate import rate_guidance
from .guidance.schedules import schedule, window
from .guidance.target import target_guidance
from .guidance.temperature import temperature
from .model.closed_form import closed_form
from .model.coloured_probes import Coloured
from .model.conditioned import condition
from .model.custom_path import custom
from .model.discrete_time import discrete_time
from .model.distilled import Distilled
from .model.divergence import Exact, FixedProbe, Hutchinson, HutchPP, Untracked
from .model.energy import Normalized, energy_prediction, normalize
from .model.faults import Fault
from .model.field import Field, denoise, field, log_prior, score, velocity
from .model.gaussian_mixture import GaussianMixture, gaussian, gaussian_mixture, kernel_density
from .model.gaussian_prior import gaussian_prior
from .model.local import Local, evaluate
from .model.log_density import log_density
from .model.parametrization import (
    DenoisedPrediction,
    NoisePrediction,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
    affine_time,
    preconditioned,
    rescale_time,
)
from .model.paths import cosine, edm, logsnr, rectified_flow, sub_vp, ve, vp
from .model.prior import chi_quantile, prior_guidance, prior_sample, with_norm
from .model.repath import repath
from .model.reverse_mode import ReverseMode
from .networks.torch_network import torch_network
from .pictures.code_length import (
    Dequantized,
    bits_per_dim_bound,
    dequantize_truncated,
)
from .pictures.png import png_bytes
from .pictures.quantization import bits_per_dim, dequantize
from .sampling.adjoints import BOTH_MODES, FORWARD
from .sampling.find_grid import FoundGrid, find_grid
from .sampling.fitted_likelihood import (
    FittedLikelihood,
    LikelihoodFit,
    fit_likelihood,
    fitted_likelihood,
)
from .sampling.head_correction import Correction, head_correction
from .sampling.likelihood import Likelihood, likelihood
from .sampling.node_quadrature import node_quadrature
from .sampling.product import Particles, sample_product
from .sampling.results import Info, Sampled, Trajectory
from .sampling.sample import sample
from .sampling.sampler_law import SamplerLaw, sampler_law
from .sampling.shooting import Shot, pilot, shoot
from .sampling.solvers import RK4, LevelSetEuler, Multistep
from .sampling.spacetime_quadrature import chord, quadrature
from .sampling.superposition import Superposed, intersection, mixture, superpose
from .sampling.time_grids import grid_from_data, grid_karras, grid_logsnr, grid_uniform
from .typing import register_dataclass

__version__: str

__all__ = [
    "BOTH_MODES",
    "FORWARD",
    "RK4",
    "Alignment",
    "AlignmentStatistics",
    "Coloured",
    "Correction",
    "DenoisedPrediction",
    "Dequantized",
    "Distilled",
    "Estimate",
    "Exact",
    "Fault",
    "Field",
    "FittedLikelihood",
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
    "LikelihoodFit",
    "Local",
    "Multistep",
    "NoisePrediction",
    "Normality",
    "Normalized",
    "Particles",
    "Posterior",
    "PrecisionRecall",
    "ReverseMode",
    "RouteGap",
    "RouteGapStatistics",
    "Sampled",
    "SamplerLaw",
    "ScorePrediction",
    "Shot",
    "Superposed",
    "Trajectory",
    "Untracked",
    "VPrediction",
    "VelocityPrediction",
    "affine_time",
    "align",
    "alignment_statistics",
    "autoguidance",
    "band",
    "bits_per_dim",
    "bits_per_dim_bound",
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
    "dequantize_truncated",
    "detail_daemon",
    "discrete_time",
    "edm",
    "effective_sample_size",
    "energy_prediction",
    "evaluate",
    "field",
    "find_grid",
    "fit_likelihood",
    "fitted_likelihood",
    "forcing_nats",
    "frechet_distance",
    "frechet_gaussian",
    "frechet_interval",
    "gaussian",
    "gaussian_mixture",
    "gaussian_prior",
    "geodesic",
    "grid_from_data",
    "grid_karras",
    "grid_logsnr",
    "grid_uniform",
    "h_statistic",
    "head_correction",
    "heat_residual",
    "high_density",
    "hold",
    "importance_weights",
    "inconsistency",
    "inconsistency_statistics",
    "intersection",
    "jeffreys",
    "kernel_density",
    "level_set_noise",
    "likelihood",
    "load_pretrained",
    "local_dimension",
    "log_density",
    "log_prior",
    "logsnr",
    "mixture",
    "node_quadrature",
    "noise_matched",
    "normality",
    "normalize",
    "omegance",
    "one_evaluation_gap",
    "pilot",
    "png_bytes",
    "posterior",
    "posterior_kl",
    "precision_recall",
    "preconditioned",
    "pretrained_models",
    "prior_guidance",
    "prior_sample",
    "published_stochastic",
    "quadrature",
    "rate_guidance",
    "rectified_flow",
    "region",
    "register_dataclass",
    "repath",
    "rescale_time",
    "reverse_sde",
    "reverse_sde_ito",
    "route_gap",
    "route_gap_statistics",
    "sample",
    "sample_product",
    "sampler_law",
    "schedule",
    "score",
    "shoot",
    "sub_vp",
    "superpose",
    "target_guidance",
    "temperature",
    "torch_network",
    "ve",
    "velocity",
    "vp",
    "weighted_mean",
    "window",
    "with_norm",
]
