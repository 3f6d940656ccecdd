"""Read the diffusion process of a model from the config of its diffusers scheduler.

A scheduler's config holds the process that the model was trained on (betas, noise levels, what the
network predicts) beside the settings of a sampler (number of steps, clipping, thresholding). Only
the process is read, since this library has samplers of its own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dgjax.checkpoints.configuration import unknown_name

__all__ = ["DISCRETE", "Process", "alphas_cumprod", "read_scheduler"]


class Process(NamedTuple):
    """A diffusion process, in the terms of `dgjax.checkpoints.ModelSpec`.

    Attributes:
        path: `kind` and arguments of the path.
        parametrization: `kind` and arguments of the parametrization.
        t_min: least time of the model.
        t_max: greatest time of the model.
        data_range: least and greatest value of the data.
        time: what the network takes as t: "time_step" (a number) or "noise_level" (sigma).
        notes: lines on how the model differs from its source.
    """

    path: dict[str, Any]
    parametrization: dict[str, Any]
    t_min: float
    t_max: float
    data_range: tuple[float, float]
    time: str
    notes: tuple[str, ...] = ()


# Schedulers that share one process in discrete time, with the defaults of first and last beta.
DISCRETE = {
    "DDIMScheduler": (1e-4, 0.02),
    "DDIMInverseScheduler": (1e-4, 0.02),
    "DDIMParallelScheduler": (1e-4, 0.02),
    "DDPMScheduler": (1e-4, 0.02),
    "DDPMParallelScheduler": (1e-4, 0.02),
    "DEISMultistepScheduler": (1e-4, 0.02),
    "DPMSolverMultistepScheduler": (1e-4, 0.02),
    "DPMSolverSinglestepScheduler": (1e-4, 0.02),
    "EulerAncestralDiscreteScheduler": (1e-4, 0.02),
    "EulerDiscreteScheduler": (1e-4, 0.02),
    "HeunDiscreteScheduler": (0.00085, 0.012),
    "KDPM2AncestralDiscreteScheduler": (0.00085, 0.012),
    "KDPM2DiscreteScheduler": (0.00085, 0.012),
    "LMSDiscreteScheduler": (1e-4, 0.02),
    "PNDMScheduler": (1e-4, 0.02),
    "UniPCMultistepScheduler": (1e-4, 0.02),
}
PREDICTIONS = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}
# They choose the sampler's steps or the kind of its arrays, or change samples on the way.
IGNORED_SAMPLER_SETTINGS = {
    *("algorithm_type", "clip_sample", "clip_sample_range", "disable_corrector"),
    *("dynamic_thresholding_ratio", "euler_at_final", "final_sigmas_type", "interpolation_type"),
    *("lambda_min_clipped", "lower_order_final", "predict_x0", "sample_max_value"),
    *("set_alpha_to_one", "set_alpha_to_zero", "sigma_max", "sigma_min", "skip_prk_steps"),
    *("solver_order", "solver_p", "solver_type", "steps_offset", "thresholding"),
    *("timestep_spacing", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"),
    *("use_lu_lambdas", "variance_type", "flow_shift", "use_dynamic_shifting"),
    *("time_shift_type", "base_shift", "max_shift", "shift_terminal", "tensor_format"),
}
PROCESS_SETTINGS = {
    *("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps"),
    *("prediction_type", "rescale_betas_zero_snr"),
}
FLOW_MATCHING = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
IGNORED_FLOW_SETTINGS = {
    *("base_image_seq_len", "base_shift", "max_image_seq_len", "max_shift", "shift_terminal"),
    *("stochastic_sampling", "time_shift_type", "use_beta_sigmas", "use_dynamic_shifting"),
    *("use_exponential_sigmas", "use_karras_sigmas"),
}
# Settings that can change the process, with the values that do not.
NEUTRAL_VALUES = {
    "use_flow_sigmas": (False, None),
    "timestep_type": ("discrete", None),
    "timestep_values": (None,),
}


def read_scheduler(config: Mapping[str, Any]) -> Process:
    """Convert the config of a scheduler, with diffusers' defaults for what it leaves out.

    Args:
        config: the content of scheduler_config.json.

    Returns:
        The process.

    Raises:
        ValueError: if the class or a setting is unknown, or a setting makes the process one that
            is not supported.
    """
    name = config.get("_class_name")
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    if name == "ScoreSdeVeScheduler":
        return _variance_exploding(values)
    if name in DISCRETE:
        return _discrete(name, values)
    if name in FLOW_MATCHING:
        return _flow_matching(name, values)
    raise unknown_name("scheduler", str(name), [*DISCRETE, "ScoreSdeVeScheduler", *FLOW_MATCHING])


def _discrete(name: str, values: dict[str, Any]) -> Process:
    for key, neutral in NEUTRAL_VALUES.items():
        value = values.pop(key, None)
        if value not in neutral:
            raise ValueError(f"{name} with {key} = {value!r} is a process that is not supported")
    _check_known(name, values, PROCESS_SETTINGS | IGNORED_SAMPLER_SETTINGS)
    prediction = values.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction_type", str(prediction), PREDICTIONS)
    table = alphas_cumprod(name, values)
    notes = []
    if clipped := [key for key in ("clip_sample", "thresholding") if values.get(key)]:
        notes.append(f"ignored of {name}: {' and '.join(clipped)}, which would change the density")
    last = len(table) - 1
    if values.get("rescale_betas_zero_snr"):  # alpha is 0 at the last step, which no path has
        last -= 1
        notes.append(f"the last time step holds no data: t_max is the one before, {last}")
    return Process(
        {"kind": "discrete_time", "alphas_cumprod": table[: last + 1].tolist()},
        {"kind": PREDICTIONS[prediction]},
        0.0,
        float(last),
        (-1.0, 1.0),
        "time_step",
        tuple(notes),
    )


def alphas_cumprod(name: str, values: Mapping[str, Any]) -> np.ndarray:
    """Compute alpha^2, the squared scale of the data, at each time step.

    It is the cumulative product of 1 - beta (DDPM, arXiv 2006.11239, below eq. 3).

    Args:
        name: class of the scheduler, a key of `DISCRETE`.
        values: its settings.

    Returns:
        A float64 array of one value per time step.

    Raises:
        ValueError: if the schedule of the betas is unknown, or they are not between 0 and 1.
    """
    steps = values.get("num_train_timesteps", 1000)
    first, last = DISCRETE[name]
    first, last = values.get("beta_start", first), values.get("beta_end", last)
    kind = values.get("beta_schedule", "linear")
    try:
        if values.get("trained_betas") is not None:
            betas = np.asarray(values["trained_betas"], np.float64)
        elif kind == "linear":
            betas = np.linspace(first, last, steps)
        elif kind == "scaled_linear":
            betas = np.linspace(first**0.5, last**0.5, steps) ** 2
        elif kind == "squaredcos_cap_v2":  # arXiv 2102.09672, eq. 17
            angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
            betas = np.minimum(1 - (np.cos(angle[1:]) / np.cos(angle[:-1])) ** 2, 0.999)
        else:
            raise unknown_name(
                "beta_schedule", str(kind), ["linear", "scaled_linear", "squaredcos_cap_v2"]
            )
    except TypeError as error:
        raise ValueError(f"the betas of {name} are not numbers: {error}") from error
    if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"the betas of {name} must be a list of numbers between 0 and 1")
    table = np.exp(np.cumsum(np.log1p(-betas)))
    if values.get("rescale_betas_zero_snr"):  # arXiv 2305.08891, algorithm 1
        root = np.sqrt(table)
        table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return table


def _variance_exploding(values: dict[str, Any]) -> Process:
    name = "ScoreSdeVeScheduler"
    ignored = {"num_train_timesteps", "snr", "sampling_eps", "correct_steps", "tensor_format"}
    _check_known(name, values, {"sigma_min", "sigma_max"} | ignored)
    return Process(
        {"kind": "edm"},
        {"kind": "score"},
        float(values.get("sigma_min", 0.01)),
        float(values.get("sigma_max", 1348.0)),
        (0.0, 1.0),
        "noise_level",
    )


def _flow_matching(name: str, values: dict[str, Any]) -> Process:
    """Rectified flow: the network takes N sigma and predicts eps - x0, the velocity in sigma.

    A `shift` changes at which sigmas the sampler calls the network, and neither the path nor the
    time N sigma. So it only sets t_min, the least of these sigmas. The greatest is 1, where no data
    is left; t_max is 1/N less.
    """
    if values.pop("invert_sigmas", False):
        raise ValueError(
            f"{name} with invert_sigmas has time from noise to data, which is not supported"
        )
    _check_known(name, values, {"num_train_timesteps", "shift"} | IGNORED_FLOW_SETTINGS)
    steps, shift = values.get("num_train_timesteps", 1000), values.get("shift", 1.0)
    if not (isinstance(steps, int) and steps > 1):
        raise ValueError(f"num_train_timesteps of {name} must be above 1, got {steps!r}")
    if values.get("use_dynamic_shifting"):
        shift = 1.0  # the sampler chooses its own for each size of image
    if not (isinstance(shift, int | float) and 0 < shift < steps):
        raise ValueError(f"shift of {name} must be a number between 0 and {steps}, got {shift!r}")
    return Process(
        {"kind": "rectified_flow"},
        {"kind": "velocity", "rate": float(steps)},
        shift / (steps + shift - 1),
        1 - 1 / steps,
        (-1.0, 1.0),
        "time_step",
        (f"no data is left at sigma = 1: t_max is {1 - 1 / steps:g}",),
    )


def _check_known(name: str, values: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(
            f"{name} has the setting {unknown[0]!r}, which is unknown and may change the process"
        )
