"""The diffusion processes and flows of training programs, in the terms of a `ModelSpec`."""

from typing import Any, NamedTuple

from dgjax.importing.diffusers_schedulers import alphas_cumprod
from dgjax.importing.run_settings import Settings, choice, integer, switch

__all__ = ["DIFFUSION", "FLOW_NOTE", "RunProcess", "diffusion", "flow_to_data", "flow_to_noise"]

# Settings of `diffusion`.
DIFFUSION = ("noise_schedule", "diffusion_steps", "predict_xstart", "rescale_timesteps")
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
# A clock from noise at 0 to data at 1.
REVERSED = {"rate": -1.0, "offset": 1.0}
EDGE = 1e-3
FLOW_NOTE = (
    f"the flow ends where noise or data vanish: t_min is {EDGE:g}, and t_max 1 less {EDGE:g}"
)


class RunProcess(NamedTuple):
    """A process.

    Attributes:
        name: its name, for people.
        spec: `path`, `parametrization`, `t_min`, `t_max` and perhaps `clock` of a `ModelSpec`.
        notes: lines on how the model differs from its source.
    """

    name: str
    spec: dict[str, Any]
    notes: tuple[str, ...] = ()


def diffusion(settings: Settings, schedule: str = "") -> RunProcess:
    """Return the process of OpenAI's diffusion programs and DiT.

    Args:
        settings: with the names `DIFFUSION`.
        schedule: the noise schedule of a program that has no settings; the empty text for one that
            has.

    Raises:
        ValueError: if a setting is missing or unknown.
    """
    name = choice(settings, "noise_schedule", SCHEDULES, schedule)
    steps = integer(settings, "diffusion_steps", 1000)
    scale = 1000 / steps  # the linear schedule keeps its total noise
    betas = {
        "beta_schedule": SCHEDULES[name],
        "beta_start": scale * 1e-4,
        "beta_end": scale * 0.02,
        "num_train_timesteps": steps,
    }
    rescaled = switch(settings, "rescale_timesteps")
    if rescaled is None and steps != 1000:
        raise ValueError(
            f"with {steps} steps the time of the network is t, or t times {scale:g}: add "
            f'"rescale_timesteps" to {settings.place} (false as in guided-diffusion, true as in '
            "improved-diffusion, unless the flags say otherwise)"
        )
    spec = {
        "path": {
            "kind": "discrete_time",
            "alphas_cumprod": alphas_cumprod("DDPMScheduler", betas).tolist(),
        },
        "parametrization": {"kind": "denoised" if switch(settings, "predict_xstart") else "noise"},
        "t_min": 0.0,
        "t_max": steps - 1.0,
    }
    if rescaled and steps != 1000:
        spec["clock"] = {"rate": scale, "offset": 0.0}
    defaults = {"diffusion_steps": "1000", "predict_xstart": "false"}
    taken = [f"{k} = {v}" for k, v in defaults.items() if k not in settings.values]
    notes = (f"not stated, and taken as is usual: {', '.join(taken)}",) if taken else ()
    return RunProcess(f"{name} betas, {steps} steps", spec, () if schedule else notes)


def flow_to_data(path: str = "rectified_flow", predicts: str = "velocity") -> RunProcess:
    """Return the flow of SiT, torchcfm and flow_matching, with data at time 1.

    Args:
        path: kind of the path: "rectified_flow", "cosine" or "vp".
        predicts: kind of the parametrization.
    """
    spec = {"path": {"kind": path}, "parametrization": {"kind": predicts}, "clock": REVERSED}
    if path == "vp":
        return RunProcess("flow to data", {**spec, "t_min": EDGE, "t_max": 1.0})
    ends = {"t_min": EDGE, "t_max": 1 - EDGE}
    return RunProcess("flow to data", {**spec, **ends}, (FLOW_NOTE,))


def flow_to_noise(path: str = "rectified_flow") -> RunProcess:
    """Return the flow of REPA, with data at time 0; `path` as of `flow_to_data`."""
    spec = {"path": {"kind": path}, "parametrization": {"kind": "velocity"}}
    ends = {"t_min": EDGE, "t_max": 1 - EDGE}
    return RunProcess("flow to noise", {**spec, **ends}, (FLOW_NOTE,))
