"""Components of a run, built from its configuration: model, state, jitted step, augmentation.

Large states may be split over devices and never exist whole on one of them. So the shapes of the
state come first (`state_shapes`), and `create_state` makes every array in its place.
"""

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dgjax.checkpoints.spec import build, build_network
from dgjax.data.dataset import Dataset
from dgjax.model.field import Field, score
from dgjax.training import ema
from dgjax.training.config import (
    TrainConfig,
    make_consistency,
    make_noise_sampler,
    make_optimiser,
    make_time_score,
    make_weighting,
)
from dgjax.training.consistency import compiler_options
from dgjax.training.data_parallel import data_parallel
from dgjax.training.objective import LabelDropout, Objective
from dgjax.training.pipeline import Augment
from dgjax.training.precision import in_precision
from dgjax.training.step import GradientFunction, Step, TrainState, initial_state, make_train_step

__all__ = [
    "check_data",
    "check_network",
    "create_state",
    "jit_train_step",
    "make_augment",
    "model_shapes",
    "scale_notes",
    "state_shapes",
]

MISMATCH = 1.25  # ratio of sigma_data to the data's from which it is said


def model_shapes(config: TrainConfig) -> Field:
    """Return the model with shapes and dtypes in place of weights.

    Args:
        config: of the run.

    Raises:
        ValueError: if the configuration of the model is wrong.
    """
    return build(config.model, nnx.eval_shape(lambda: build_network(config.model)))


def check_network(config: TrainConfig, model: Field) -> None:
    """Trace the network on one sample, so that what does not fit raises before anything runs.

    Args:
        config: of the run.
        model: as of `model_shapes`.

    Raises:
        ValueError: if the network returns another shape than that of its sample.
    """
    x = jax.ShapeDtypeStruct(config.model.shape, np.float32)
    label = None
    if config.model.network.get("num_classes") is not None:
        label = jax.ShapeDtypeStruct((), np.int32)
    jax.eval_shape(score, model, jax.ShapeDtypeStruct((), np.float32), x, label)


def state_shapes(config: TrainConfig) -> TrainState:
    """Return the training state with shapes and dtypes in place of arrays.

    Args:
        config: of the run.

    Raises:
        ValueError: if the configuration of the model is wrong.
    """
    return jax.eval_shape(lambda: _initial(config))


def create_state(config: TrainConfig, where: TrainState) -> TrainState:
    """Make the training state before the first step, on the devices.

    Args:
        config: of the run.
        where: sharding of every array of the state.
    """
    return jax.jit(lambda: _initial(config), out_shardings=where)()


def _initial(config: TrainConfig) -> TrainState:
    network = build_network(config.model, config.seed)
    noise_sampler = make_noise_sampler(config).init()
    return initial_state(network, make_optimiser(config), len(config.ema_widths), noise_sampler)


def jit_train_step(
    config: TrainConfig,
    model: Field,
    mesh: Mesh,
    where: TrainState,
    gradient: GradientFunction | None = None,
) -> Step:
    """Return the jitted training step of a run.

    The buffers of the state that it is given are donated: use the returned state instead.

    Args:
        config: of the run.
        model: path and parametrization; its weights, or their shapes, are not used.
        mesh: of the devices over which batches are split.
        where: sharding of every array of the state.
        gradient: loss and gradient of one device, None for those by JAX of the objective.
    """
    network = config.model.network
    drop_labels = None
    if config.label_dropout:
        drop_labels = LabelDropout(config.label_dropout, network["num_classes"])
    objective = Objective(
        make_noise_sampler(config),
        make_weighting(config),
        drop_labels,
        dropout=network.get("dropout", 0) > 0,
        time_score=make_time_score(config),
        consistency=make_consistency(config),
    )
    whole = NamedSharding(mesh, PartitionSpec())
    by_rows = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    step = make_train_step(
        model,
        make_optimiser(config),
        objective,
        gammas=[ema.exponent(width) for width in config.ema_widths],
        accumulate=config.execution.accumulate,
        cast_weights=in_precision(lambda: build_network(config.model), config.execution.precision),
        distribute=lambda own: data_parallel(gradient or own, mesh, where.network),
    )
    return jax.jit(
        step,
        in_shardings=(where, by_rows, whole),
        out_shardings=(where, whole),
        donate_argnums=0,
        compiler_options=None if objective.consistency is None else compiler_options(),
    )


def check_data(config: TrainConfig, data: Dataset, part: str = "train") -> None:
    """Check that data fit the model: shape of samples, flips and labels.

    Args:
        config: of the run.
        data: a part of the data set.
        part: name of that part, for the error message.

    Raises:
        ValueError: if the data do not fit.
    """
    name = f"{config.data.dataset} (part {part})"
    if data.shape != config.model.shape:
        raise ValueError(
            f"{name} has samples of shape {data.shape}, but model.shape is "
            f"{config.model.shape}; set it to {list(data.shape)}"
        )
    if config.data.flip and len(data.shape) < 2:
        raise ValueError(
            f"data.flip mirrors images, but samples have shape {data.shape}; set it to false"
        )
    classes, labels = config.model.network.get("num_classes"), data.labels
    if classes is not None and (labels is None or labels.min() < 0 or labels.max() >= classes):
        why = "".join(f"; {note}" for note in data.notes if labels is None)
        raise ValueError(
            f"num_classes = {classes}: {name} needs labels from 0 to {classes - 1}{why}"
        )


def scale_notes(config: TrainConfig, data: Dataset) -> list[str]:
    """Return a line for each sigma_data that is far from the standard deviation of the data.

    Args:
        config: of the run.
        data: the training data.
    """
    given = {
        "data.sigma_data": config.data.sigma_data,
        "model.parametrization.sigma_data": config.model.parametrization.get("sigma_data"),
    }
    found = data.standard_deviation()
    return [
        f"{name} is {value:g}, and the standard deviation of the data is about {found:.3g}: "
        "EDM's preconditioning and weighting take them to be alike"
        for name, value in given.items()
        if value is not None and found > 0 and abs(np.log(value / found)) > np.log(MISMATCH)
    ]


def make_augment(config: TrainConfig) -> Augment:
    """Return the augmentation of a run.

    Args:
        config: of the run.
    """
    arguments = {"labels": "num_classes", "augmentations": "num_augmentations"}
    network = config.model.network
    given = frozenset(field for field, key in arguments.items() if network.get(key) is not None)
    return Augment(0.5 if config.data.flip else 0.0, given)
