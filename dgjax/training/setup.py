"""What a configuration sets up: the state before the first step, the compiled step, the data.

No array of the state is ever whole on one device unless it is to stay so: its shapes are known
before it is made (`state_shapes`), so each device makes its own part (`fresh_state`).
"""

from functools import partial

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dgjax.checkpoints.spec import build, build_network
from dgjax.data.dataset import Dataset
from dgjax.model.field import Field
from dgjax.training import ema
from dgjax.training.config import TrainConfig, make_levels, make_optimiser, make_weighting
from dgjax.training.pipeline import Augment
from dgjax.training.placement import data_parallel
from dgjax.training.precision import in_precision
from dgjax.training.step import (
    LabelDropout,
    Objective,
    Step,
    TrainState,
    initial_state,
    make_train_step,
)

__all__ = [
    "check_data",
    "compile_step",
    "fresh_state",
    "make_augment",
    "model_shapes",
    "state_shapes",
]


def model_shapes(config: TrainConfig) -> Field:
    """The model, with shapes and dtypes in the place of weights.

    Raises:
        ValueError: as of `dgjax.checkpoints.build`.
    """
    return build(config.model, nnx.eval_shape(lambda: build_network(config.model)))


def state_shapes(config: TrainConfig) -> TrainState:
    """Shapes and dtypes of the state of a run; errors as of `model_shapes`."""
    return jax.eval_shape(lambda: _fresh(config))


def fresh_state(config: TrainConfig, where: TrainState) -> TrainState:
    """The state of a run before its first step, each array made where `where` says."""
    return jax.jit(lambda: _fresh(config), out_shardings=where)()


def _fresh(config: TrainConfig) -> TrainState:
    network = build_network(config.model, config.seed)
    levels = make_levels(config).init()
    return initial_state(network, make_optimiser(config), len(config.ema_widths), levels)


def compile_step(config: TrainConfig, model: Field, mesh: Mesh, where: TrainState) -> Step:
    """The jitted step of a run over the devices of `mesh`.

    The state it is given is used up.

    Args:
        config: of the run.
        model: with any weights, or their shapes.
        mesh: over whose devices batches are split.
        where: sharding of every array of the state.
    """
    network = config.model.network
    drop_labels = None
    if config.label_dropout:
        drop_labels = LabelDropout(config.label_dropout, network["num_classes"])
    objective = Objective(
        make_levels(config),
        make_weighting(config),
        drop_labels,
        dropout=network.get("dropout", 0) > 0,
    )
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    step = make_train_step(
        model,
        make_optimiser(config),
        objective,
        gammas=[ema.exponent(width) for width in config.ema_widths],
        accumulate=config.execution.accumulate,
        prepare=in_precision(lambda: build_network(config.model), config.execution.precision),
        spread=partial(data_parallel, mesh=mesh, where=where.network),
    )
    return jax.jit(
        step,
        in_shardings=(where, split, whole),
        out_shardings=(where, whole),
        donate_argnums=0,
    )


def check_data(config: TrainConfig, data: Dataset, part: str = "train") -> None:
    """Raise a ValueError unless `data`, the `part` of the data set, fit the model."""
    name = f"{config.data.dataset} (part {part})"
    if data.shape != config.model.shape:
        raise ValueError(
            f"{name} has samples of shape {data.shape}, and model.shape is "
            f"{config.model.shape}; set it to {list(data.shape)}"
        )
    if config.data.flip and len(data.shape) < 2:
        raise ValueError(f"data.flip mirrors images, and samples have shape {data.shape}")
    classes, labels = config.model.network.get("num_classes"), data.labels
    if classes is not None and (labels is None or labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"num_classes = {classes}: {name} needs labels from 0 to {classes - 1}")


def make_augment(config: TrainConfig) -> Augment:
    """What is done to samples of the data, and what of it the network is told."""
    arguments = {"labels": "num_classes", "augmentations": "num_augmentations"}
    network = config.model.network
    given = frozenset(field for field, key in arguments.items() if network.get(key) is not None)
    return Augment(0.5 if config.data.flip else 0.0, given)
