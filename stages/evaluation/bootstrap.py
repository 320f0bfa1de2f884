"""How sure a difference between two ways of training is, where both seeds and scenes were drawn.

One seed's scenes say how a training did on those pictures, not how the next seed's training will do: intervals over scenes
alone are too narrow where seeds differ, and those over seeds alone where scenes do. So both are drawn again together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and where it lies with 95 % confidence; of `seeds` trainings and `scenes` pictures."""

    mean: float
    low: float
    high: float
    seeds: int
    scenes: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    method: Float[np.ndarray, "seeds scenes"],
    baseline: Float[np.ndarray, "_ _"],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of method - baseline, and its percentile interval over seeds and scenes together.

    Row i of both is of the same seed, and column j of the same scene: differences are taken first, so whatever makes a seed
    lucky or a scene hard for both drops out. Each draw takes as many seeds as there are, with replacement, and, independently,
    as many scenes, and averages the differences of all their pairs (the pigeonhole bootstrap of Owen, 2007, which for crossed
    data errs on the wide side). A draw is two vectors of counts, so all draws are two matrix products. With one seed, or one
    scene, that side is held fixed and the interval is of the other alone. Scenes in which any value is NaN (a metric that they
    do not have) are left out of all. A mean over few seeds scatters more than its own draws do: deviations from the mean are
    widened by sqrt(n / (n - 1)) for the smaller side of n > 1, which is what the variance of so few lacks.
    Raises ValueError for shapes that differ and where no scene is left.
    """
    if method.shape != baseline.shape or method.ndim != 2:
        raise ValueError(
            f"found scores of shape {method.shape} and {baseline.shape}, expected the same seeds and scenes of both"
        )
    difference = np.asarray(method, np.float64) - baseline
    difference = difference[:, np.isfinite(difference).all(0)]
    if not difference.size:
        raise ValueError("no scene has this metric in every training: there is nothing to compare")
    rng = np.random.default_rng(seed)
    seeds, scenes = difference.shape
    of_seeds, of_scenes = (rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in (seeds, scenes))
    means = ((of_seeds @ difference) * of_scenes).sum(1)
    mean = float(difference.mean())
    fewest = min((n for n in (seeds, scenes) if n > 1), default=1)
    widened = np.sqrt(fewest / (fewest - 1)) if fewest > 1 else 1.0
    low, high = mean + widened * (np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - mean)
    return Interval(mean=mean, low=float(low), high=float(high), seeds=seeds, scenes=scenes)
