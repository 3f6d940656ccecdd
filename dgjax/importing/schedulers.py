"""What a diffusers scheduler says of the process a model was trained on.

A scheduler's config holds the process and habits of its sampler side by side. Only the process is
taken over: betas, what the network predicts, noise levels. How many steps, where they start,
clipping and thresholding of samples are the sampler's, and dgjax has its own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dgjax.configuration import unknown_name

__all__ = ["Process", "alphas_cumprod", "read_scheduler"]


class Process(NamedTuple):
    """A path and a parametrization, as `dgjax.checkpoints.spec.ModelSpec` takes them.

    `clock` is what the network is told: "step", the number of the time step, or "level", sigma.
    `notes` are lines on what was left out of it.
    """

    path: dict[str, Any]
    parametrization: dict[str, Any]
    t_min: float
    t_max: float
    data_range: tuple[float, float]
    clock: str
    notes: tuple[str, ...] = ()


# First and last beta where a config does not say. All of these share one discrete process.
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
# Of the samplers: which steps they take, and what they do to a sample on the way.
HABITS = {
    *("algorithm_type", "clip_sample", "clip_sample_range", "disable_corrector"),
    *("dynamic_thresholding_ratio", "euler_at_final", "final_sigmas_type", "interpolation_type"),
    *("lambda_min_clipped", "lower_order_final", "predict_x0", "sample_max_value"),
    *("set_alpha_to_one", "set_alpha_to_zero", "sigma_max", "sigma_min", "skip_prk_steps"),
    *("solver_order", "solver_p", "solver_type", "steps_offset", "thresholding"),
    *("timestep_spacing", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"),
    *("use_lu_lambdas", "variance_type", "flow_shift", "use_dynamic_shifting"),
    *("time_shift_type", "base_shift", "max_shift", "shift_terminal"),
}
PROCESS = {
    *("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps"),
    *("prediction_type", "rescale_betas_zero_snr"),
}
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
FLOW_HABITS = {
    *("base_image_seq_len", "base_shift", "max_image_seq_len", "max_shift", "shift_terminal"),
    *("stochastic_sampling", "time_shift_type", "use_beta_sigmas", "use_dynamic_shifting"),
    *("use_exponential_sigmas", "use_karras_sigmas"),
}
# Keys that would make another process of it, with the values that do not.
NEUTRAL = {"use_flow_sigmas": (False, None), "timestep_type": ("discrete", None)}


def read_scheduler(config: Mapping[str, Any]) -> Process:
    """The process of a scheduler's config, with the class's defaults for what it leaves out.

    Raises:
        ValueError: if the class is unknown, or a key changes the process in a way that is not
            read here or could, being unknown.
    """
    name = config.get("_class_name")
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    if name == "ScoreSdeVeScheduler":
        return _variance_exploding(values)
    if name in DISCRETE:
        return _discrete(name, values)
    if name in FLOW:
        return _flow_matching(name, values)
    raise unknown_name("scheduler", str(name), [*DISCRETE, "ScoreSdeVeScheduler", *FLOW])


def _discrete(name: str, values: dict[str, Any]) -> Process:
    for key, neutral in NEUTRAL.items():
        value = values.pop(key, None)
        if value not in neutral:
            raise ValueError(f"{name} with {key} = {value!r} is a process not read here")
    _only(name, values, PROCESS | HABITS)
    prediction = values.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction_type", str(prediction), PREDICTIONS)
    table = alphas_cumprod(name, values)
    notes = []
    if clipped := [key for key in ("clip_sample", "thresholding") if values.get(key)]:
        notes.append(f"not taken over from {name}: {' and '.join(clipped)}, which would change p")
    last = len(table) - 1
    if values.get("rescale_betas_zero_snr"):  # a limit that no path reaches
        last -= 1
        notes.append(f"the last step has no data in it: t_max is the one before, {last}")
    return Process(
        {"kind": "discrete_time", "alphas_cumprod": table[: last + 1].tolist()},
        {"kind": PREDICTIONS[prediction]},
        0.0,
        float(last),
        (-1.0, 1.0),
        "step",
        tuple(notes),
    )


def alphas_cumprod(name: str, values: Mapping[str, Any]) -> np.ndarray:
    """Squared scale of the data after each time step, in float64, shape (T,).

    Raises:
        ValueError: if the betas' schedule is unknown, or they are not between 0 and 1.
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
        elif kind == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
            angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
            betas = np.minimum(1 - (np.cos(angle[1:]) / np.cos(angle[:-1])) ** 2, 0.999)
        else:
            raise unknown_name(
                "beta_schedule", str(kind), ["linear", "scaled_linear", "squaredcos_cap_v2"]
            )
    except TypeError as error:
        raise ValueError(f"the betas of {name} are no numbers: {error}") from error
    if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"the betas of {name} must be a list of numbers between 0 and 1")
    table = np.exp(np.cumsum(np.log1p(-betas)))
    if values.get("rescale_betas_zero_snr"):  # Lin et al. 2024, algorithm 1
        root = np.sqrt(table)
        table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return table


def _variance_exploding(values: dict[str, Any]) -> Process:
    name = "ScoreSdeVeScheduler"
    keys = {"num_train_timesteps", "snr", "sampling_eps", "correct_steps"}
    _only(name, values, {"sigma_min", "sigma_max"} | keys)
    return Process(
        {"kind": "edm"},
        {"kind": "score"},
        float(values.get("sigma_min", 0.01)),
        float(values.get("sigma_max", 1348.0)),
        (0.0, 1.0),
        "level",
    )


def _flow_matching(name: str, values: dict[str, Any]) -> Process:
    """Rectified flow, whose network is told N sigma and predicts eps - x0, a unit of sigma.

    A `shift` moves the sampler's sigmas, and with them what the network is told: the relation of
    the two stays, and so does the path. Only the least sigma that the network is asked at depends
    on it, which is t_min. The greatest is 1, where no data is left: t_max is 1/N below.
    """
    if values.pop("invert_sigmas", False):
        raise ValueError(f"{name} with invert_sigmas counts from noise to data: not read here")
    _only(name, values, {"num_train_timesteps", "shift"} | FLOW_HABITS)
    steps, shift = values.get("num_train_timesteps", 1000), values.get("shift", 1.0)
    if not (isinstance(steps, int) and steps > 1):
        raise ValueError(f"num_train_timesteps of {name} must be above 1, got {steps!r}")
    if values.get("use_dynamic_shifting"):
        shift = 1.0  # that of the sampler, for each size of image
    if not (isinstance(shift, int | float) and 0 < shift < steps):
        raise ValueError(f"shift of {name} must be a number between 0 and {steps}, got {shift!r}")
    return Process(
        {"kind": "rectified_flow"},
        {"kind": "velocity", "rate": float(steps)},
        shift / (steps + shift - 1),
        1 - 1 / steps,
        (-1.0, 1.0),
        "step",
        (f"nothing of the data is left at sigma = 1: t_max is {1 - 1 / steps:g}",),
    )


def _only(name: str, values: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(
            f"{name} has the setting {unknown[0]!r}, of which it is not known here whether it "
            "changes the process"
        )
