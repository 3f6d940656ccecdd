"""dgjax: sample diffusion and flow models at a chosen log-density, and measure it.

`field` makes a model of a network and its path. `sample` draws from the model with guides and
noise, and tracks log p_t along the way. `likelihood` and `quadrature` measure the log-density of
given points. Functions act on one sample; use `jax.vmap` for a batch. Log-densities are in nats,
of the model's own marginal at its smallest noise level t_min.
"""

import pkgutil

import lazy_loader

from dgjax._version import __version__ as __version__

# Names are imported from their modules when they are first used: `__init__.pyi` says from where.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted({*__all__} - {module.name for module in pkgutil.iter_modules(__path__)})
