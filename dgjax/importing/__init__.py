"""Models that other programs trained, read as models of this library.

    from dgjax.checkpoints.checkpoint import save
    from dgjax.importing import import_model

    found = import_model("google/ddpm-cifar10-32")
    parts = {"autoencoder": found.autoencoder, "prompts": found.prompts}
    save("models/cifar10", found.model, found.meta, **parts, dtype=None)

`import_model` takes a file, a folder or a name on the Hugging Face hub, and asks the readers
(`READERS`) who recognises it: `import_diffusers`, `import_edm`, `import_edm2`, `import_adm`,
`import_dit`, `import_score_sde`.
`found.model` is a `dgjax.Field` with NumPy weights in the precision of their files. It can be used
without a checkpoint, too: `jax.tree.map(jnp.asarray, found.model)` puts the weights on the device.

`open_weights` and `load_state_dict` read PyTorch weights into any Flax network whose attributes
have the same names.
"""

from dgjax.importing.adm import import_adm, is_adm
from dgjax.importing.diffusers import import_diffusers
from dgjax.importing.diffusers_parts import is_diffusers
from dgjax.importing.dit import import_dit, is_dit
from dgjax.importing.edm import import_edm, is_edm
from dgjax.importing.edm2 import Snapshot, edm2_snapshots, import_edm2, is_edm2
from dgjax.importing.model_folder import Imported
from dgjax.importing.pickles import Refusal
from dgjax.importing.score_sde import import_score_sde, is_score_sde
from dgjax.importing.source import READERS, import_model
from dgjax.importing.state_dict import load_state_dict
from dgjax.importing.weights import StoredArray, open_weights

__all__ = [
    "READERS",
    "Imported",
    "Refusal",
    "Snapshot",
    "StoredArray",
    "edm2_snapshots",
    "import_adm",
    "import_diffusers",
    "import_dit",
    "import_edm",
    "import_edm2",
    "import_model",
    "import_score_sde",
    "is_adm",
    "is_diffusers",
    "is_dit",
    "is_edm",
    "is_edm2",
    "is_score_sde",
    "load_state_dict",
    "open_weights",
]
