"""Comparison of the library with closed forms, on this machine's device and in its precision.

Each function in `CHECKS` measures one error and compares it with bounds that hold in float32. The
expected values are computed by NumPy and SciPy in float64, from exactly the numbers that the
library gets. The comment at each bound states the error of float32 on a CPU, and often the error
of a lower precision or of a wrong method, which the bound excludes.
"""

from collections.abc import Callable

from dgjax.check.arithmetic import convolutions, matrix_products, sums
from dgjax.check.closed_forms import (
    hutchinson_bias,
    hutchinson_variance,
    mixture_laplacian,
    mixture_log_density,
    mixture_score,
)
from dgjax.check.dynamics import (
    gaussian_likelihood,
    heun_order,
    level_set,
    reverse_sde_quadrature,
    round_trip,
)
from dgjax.check.error_bars import errors_covered, errors_not_inflated
from dgjax.check.finding import Finding
from dgjax.check.gradients import gradient_at_mode, likelihood_gradient
from dgjax.check.guides import (
    bound_reported,
    closed_loop,
    high_density,
    low_density,
    one_compilation,
)
from dgjax.check.shipped import SHIPPED, network_batched, network_precision
from dgjax.check.traced_checks import fitting_numbers, unfitting_numbers
from dgjax.checkpoints.pretrained import pretrained_models

__all__ = ["CHECKS", "Finding"]

CHECKS: tuple[Callable[[], Finding], ...] = (
    matrix_products,
    convolutions,
    sums,
    mixture_log_density,
    mixture_score,
    mixture_laplacian,
    hutchinson_bias,
    hutchinson_variance,
    gaussian_likelihood,
    round_trip,
    heun_order,
    low_density,
    high_density,
    bound_reported,
    one_compilation,
    level_set,
    closed_loop,
    reverse_sde_quadrature,
    fitting_numbers,
    unfitting_numbers,
    errors_covered,
    errors_not_inflated,
    likelihood_gradient,
    gradient_at_mode,
    *((network_precision, network_batched) if SHIPPED in pretrained_models() else ()),
)
