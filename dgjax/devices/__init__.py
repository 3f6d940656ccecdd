"""Place models and batches of samples on one or many devices."""

from dgjax.devices.sharding import (
    device_mesh,
    over_devices,
    replicate,
    shard_batch,
    weight_sharding,
)

__all__ = ["device_mesh", "over_devices", "replicate", "shard_batch", "weight_sharding"]
