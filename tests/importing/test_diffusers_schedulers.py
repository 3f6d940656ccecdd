"""What a scheduler's config says of the process, and what it must not be read as."""

import inspect
import re

import numpy as np
import pytest

from dgjax.checkpoints.spec import ModelSpec, build
from dgjax.importing.diffusers_schedulers import DISCRETE, alphas_cumprod, read_scheduler

DDIM = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.30.0", "clip_sample": False}


def test_a_process_is_a_model_s_path_and_parametrization():
    steps = {"beta_schedule": "linear", "num_train_timesteps": 100, "steps_offset": 1}
    found = read_scheduler(DDIM | steps)
    assert (found.t_min, found.t_max, found.data_range) == (0.0, 99.0, (-1.0, 1.0))
    assert found.parametrization == {"kind": "noise"}
    assert not found.notes
    spec = ModelSpec(
        (2,),
        {"kind": "mlp"},
        found.path,
        found.parametrization,
        found.t_min,
        found.t_max,
    )
    path = build(ModelSpec.from_dict(spec.to_dict())).path
    betas = np.linspace(1e-4, 0.02, 100)
    assert float(path.alpha(99.0)) ** 2 == pytest.approx(np.prod(1 - betas), rel=1e-9)
    assert float(path.sigma(0.0)) ** 2 == pytest.approx(1e-4, rel=1e-9)


@pytest.mark.parametrize(
    ("prediction", "kind"), [("epsilon", "noise"), ("sample", "denoised"), ("v_prediction", "v")]
)
def test_predictions(prediction, kind):
    found = read_scheduler(DDIM | {"prediction_type": prediction})
    assert found.parametrization == {"kind": kind}


def test_zero_terminal_snr_ends_one_step_earlier_and_says_so():
    found = read_scheduler(DDIM | {"rescale_betas_zero_snr": True})
    table = alphas_cumprod("DDIMScheduler", {"rescale_betas_zero_snr": True})
    assert table[-1] == 0
    assert table[0] == pytest.approx(1 - 1e-4)
    assert found.t_max == 998
    assert found.path["alphas_cumprod"] == table[:-1].tolist()
    assert "t_max is the one before, 998" in found.notes[0]


def test_what_is_the_sampler_s_is_left_there_and_said():
    (note,) = read_scheduler(DDIM | {"clip_sample": True, "thresholding": True}).notes
    assert "clip_sample and thresholding" in note


def test_noise_levels_of_a_variance_exploding_model():
    found = read_scheduler({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 90.0, "snr": 0.15})
    assert (found.path, found.parametrization) == ({"kind": "edm"}, {"kind": "score"})
    assert (found.t_min, found.t_max, found.data_range) == (0.01, 90.0, (0.0, 1.0))
    assert found.time == "noise_level"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "DDIMSheduler"}, "did you mean 'DDIMScheduler'"),
        ({"_class_name": None}, "scheduler 'None' is unknown"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is unknown"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction' is unknown"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas = True is a process that is not supported"),
        (
            {"timestep_type": "continuous"},
            "timestep_type = 'continuous' is a process that is not supported",
        ),
        ({"new_noise": 1}, "has the setting 'new_noise'"),
        ({"beta_end": "0.02"}, "are not numbers"),
        ({"beta_end": 1.5}, "between 0 and 1"),
        ({"num_train_timesteps": "many"}, "are not numbers"),
        ({"trained_betas": [[0.1], [0.2]]}, "must be a list"),
    ],
)
def test_what_would_be_another_process_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_scheduler(DDIM | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
        {"trained_betas": [0.01, 0.02, 0.05, 0.03]},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_the_table_is_diffusers_own_to_its_single_precision(settings):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(**settings).alphas_cumprod.numpy()
    ours = alphas_cumprod("DDIMScheduler", settings)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(theirs, ours, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_defaults_are_those_of_the_class_and_its_settings_are_known(name):
    diffusers = pytest.importorskip("diffusers")
    taken = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {key: p.default for key, p in taken.items() if key not in ("self", "kwargs")}
    assert DISCRETE[name] == (defaults["beta_start"], defaults["beta_end"])
    assert defaults["beta_schedule"] == "linear"
    assert defaults["num_train_timesteps"] == 1000
    assert defaults["prediction_type"] == "epsilon"
    found = read_scheduler({"_class_name": name, **defaults})
    assert found.path == read_scheduler({"_class_name": name}).path
    assert not re.search("clip", str(found.notes)) or defaults["clip_sample"]
