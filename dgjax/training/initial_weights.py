"""Weights of another model to start a run from: fine-tuning."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, PyTree

from dgjax.checkpoints.arrays import from_named, to_named
from dgjax.checkpoints.checkpoint import digest, load
from dgjax.checkpoints.pretrained import load_pretrained, pretrained_models
from dgjax.checkpoints.spec import ModelSpec, build
from dgjax.files import write_json
from dgjax.training.checkpointing import restore_latest
from dgjax.training.components import state_shapes
from dgjax.training.data_parallel import to_devices
from dgjax.training.run_folder import is_recorded, model_meta, read_config
from dgjax.training.step import TrainState

__all__ = ["InitialWeights", "read_initial_weights", "record_start"]

START_FILE = "start.json"


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from, and what they are.

    Attributes:
        source: name or folder of the model that they are of.
        network: the network with these weights, as NumPy arrays.
        steps: number of steps that they were trained for.
        sha256: digest of that model.
        notes: one line each of what differs between that model and the new one.
    """

    source: str
    network: PyTree[np.ndarray]
    steps: int
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Return one line that describes the weights."""
        return f"starting from the weights of {self.source} ({self.steps:,} steps)"

    def replace_weights(self, state: TrainState, where: TrainState) -> TrainState:
        """Return the state before the first step with these weights, and averages of them.

        Args:
            state: the state before the first step.
            where: sharding of every array of the state.
        """

        def copy(sharding: PyTree) -> PyTree[Array]:
            # A copy each, since a step reuses the memory of the state that it is given.
            return to_devices(jax.tree.map(np.array, self.network), sharding)

        averages = tuple(copy(sharding) for sharding in where.averages)
        return state._replace(network=copy(where.network), averages=averages)


def read_initial_weights(source: str, spec: ModelSpec, like: PyTree) -> InitialWeights:
    """Read the weights of a model for a new run.

    Args:
        source: name of a shipped model, folder of a checkpoint, or run folder. Of a run folder they
            are the first moving average at its latest checkpoint, which `export` writes.
        spec: of the new model.
        like: its network with shapes and dtypes in place of arrays.

    Raises:
        ValueError: if there is no such model, it cannot be read, or a weight is missing or has
            another shape than in the new model; the message names the first one.
    """
    folder = Path(source).absolute()
    if source in pretrained_models():
        model, meta = load_pretrained(source)
    elif is_recorded(folder):
        config = read_config(folder)
        state = restore_latest(folder, state_shapes(config))
        if state is None:
            raise ValueError(f"cannot start from {source}: this run has no checkpoint yet")
        meta = model_meta(folder, config, int(state.step))
        model = build(config.model, state.averages[0])
    elif not folder.is_dir():
        raise ValueError(
            f"cannot start from {source}: there is no such folder, and the models that come with "
            f"dgjax are {', '.join(pretrained_models())}"
        )
    else:
        model, meta = load(folder)
    expected, found = to_named(like), to_named(model.network)
    for name in [*expected, *found]:
        shapes = [tuple(part[name].shape) if name in part else None for part in (expected, found)]
        if shapes[0] != shapes[1]:
            here, there = (f"has shape {shape}" if shape else "does not exist" for shape in shapes)
            raise ValueError(
                f"cannot start from {source}: its {name} {there}, and in this model it {here}; "
                "give model.network the settings of that model"
            )
    notes = tuple(
        f"model.{name} is not that of {source}, so its network predicts something else at first"
        for name in ("path", "parametrization", "clock")
        if getattr(spec, name) != getattr(meta.model, name)
    )
    network = from_named(like, found, f"the model {source}")
    return InitialWeights(source, network, meta.steps, digest(model, meta), notes)


def record_start(run_dir: Path, start: InitialWeights | None) -> None:
    """Write to the run folder which weights a run without saved steps starts from.

    Args:
        run_dir: the run folder.
        start: the weights, or None for fresh ones; the record of an earlier try is then removed.

    Raises:
        ValueError: if it cannot be written.
    """
    if start is None:
        (run_dir / START_FILE).unlink(missing_ok=True)
        return
    facts = {"init_from": start.source, "steps": start.steps, "sha256": start.sha256}
    write_json(run_dir / START_FILE, facts)
