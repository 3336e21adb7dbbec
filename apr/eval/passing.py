"""pass@k, the chance that one of k samples passes: Chen et al. 2021 (arXiv 2107.03374), eq. 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apr.errors import UsageError
from apr.eval.figures import Estimate, mean

DEFAULT_KS = (1, 10, 100)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate from `passed` of `samples`: 1 - C(samples - passed, k) / C(samples, k).

    As a product, because the binomials overflow.
    """
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


def estimate(samples: int, passed: Sequence[int], k: int) -> Estimate:
    """Mean over problems, `passed` of `samples` each; the standard error is that over problems."""
    return mean(np.array([pass_at_k(samples, c, k) for c in passed]))


def check_ks(ks: Sequence[int], samples: int) -> tuple[int, ...]:
    """The k to report, in order: those asked for, or by default those of 1, 10, 100 that fit.

    Raises:
        UsageError: a k is below 1, or more than there are samples.
    """
    for k in ks:
        if not 1 <= k <= samples:
            raise UsageError(
                f"-k {k}",
                f"needs {k} samples or more of each problem, there are {samples}"
                if k > 0
                else "is less than 1",
                f"write --samples {max(k, 1)}, or a smaller k" if k > 0 else "write 1 or more",
            )
    return tuple(sorted(set(ks))) or tuple(k for k in DEFAULT_KS if k <= samples)
