"""Intervals for the difference of two models, from one text and from several seeds.

Two sources of uncertainty are told apart:

- The text. Both models are scored on the same text, so the differences are paired. Neighbouring tokens are not
  independent, so the text is cut into blocks, and the mean difference of each block counts as one observation. The
  standard error is that of a bootstrap over blocks (Künsch, "The Jackknife and the Bootstrap for General Stationary
  Observations", 1989, with blocks that do not overlap, after Carlstein, 1986); Student's t allows for few blocks.
- The seeds. Two trainings that differ by nothing but the seed differ too. With several seeds on each side, Welch's
  interval ("The generalization of 'Student's' problem when several different population variances are involved", 1947)
  covers the difference of their means.

The squares of the two add up, and a difference is called clear if it is greater than that. The interval is wider than
95 % where few seeds also differ by chance on this text, since that part is counted twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 500
FEWEST_BLOCKS = 5  # with fewer a text says too little
MOST_SEEDS = 1000  # more are not asked for


@dataclass(frozen=True)
class Difference:
    """The difference of two models in bits per character, the second minus the first: negative if it is better.

    Attributes:
        mean: The difference.
        text: Half the width of its 95 % interval over the blocks of the text.
        seeds: Half the width of its 95 % interval over seeds; None if neither side has two.
        needed: The number of seeds for each side with which a difference of this size would be clear on this text; None
            if neither side has two seeds, or if even 1,000 would be too few.
    """

    mean: float
    text: float
    seeds: float | None = None
    needed: int | None = None

    @property
    def half_width(self) -> float:
        """Half the width of the interval: the two uncertainties are independent, so their squares add up."""
        return math.hypot(self.text, self.seeds or 0.0)

    @property
    def clear(self) -> bool:
        """Return whether the interval leaves out zero."""
        return abs(self.mean) > self.half_width


def over_text(differences: np.ndarray) -> float:
    """Return half the width of the interval for the mean of `(N,)` differences, one for each block of a text.

    It is infinite for fewer than 5 blocks.
    """
    n = len(differences)
    if n < FEWEST_BLOCKS:
        return math.inf
    if np.ptp(differences) == 0:  # the same model twice
        return 0.0
    resampled = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    error = float(resampled.standard_error) * math.sqrt(n / (n - 1))  # a bootstrap divides by n, not by n - 1
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error


def over_seeds(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return half the width of the interval for the difference of two means over seeds.

    If only one side has two seeds or more, the other is taken to vary as much. None if neither has.
    """
    if min(len(first), len(second)) >= 2:
        if np.ptp(first) == np.ptp(second) == 0:
            return 0.0
        welch = stats.ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE)
        return float(welch.high - welch.low) / 2
    many, few = sorted((first, second), key=len, reverse=True)
    if len(many) < 2:
        return None
    error = float(np.std(many, ddof=1)) * math.sqrt(1 / len(many) + 1 / len(few))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(many) - 1)) * error


def seeds_needed(difference: float, first: Sequence[float], second: Sequence[float]) -> int | None:
    """Return how many seeds each side needs for a difference to exceed its interval, at the spread seen so far.

    Args:
        difference: The difference, or what is left of it beyond the uncertainty of the text.
        first: The scores of the first side's runs.
        second: Those of the second side's.
    """
    variances = [float(np.var(scores, ddof=1)) for scores in (first, second) if len(scores) >= 2]
    if not variances or difference == 0:
        return None
    spread = math.sqrt(float(np.mean(variances)))
    for n in range(2, MOST_SEEDS + 1):
        if float(stats.t.ppf((1 + CONFIDENCE) / 2, 2 * n - 2)) * spread * math.sqrt(2 / n) < abs(difference):
            return n
    return None


def difference(first: np.ndarray, second: np.ndarray, sizes: np.ndarray) -> Difference:
    """Return the difference of two groups of models that were scored on the same blocks of a text.

    Args:
        first: `(R, N)` bits of R runs in N blocks.
        second: `(S, N)` bits of S runs in the same blocks.
        sizes: `(N,)` characters in each block.
    """
    means = (second.mean(0) - first.mean(0)) / sizes.mean()  # blocks are of one size but for the last
    scores = [bits.sum(1) / sizes.sum() for bits in (first, second)]
    mean = float(scores[1].mean() - scores[0].mean())
    text = over_text(means)
    left = math.sqrt(max(0.0, mean**2 - text**2))  # what the seeds' part of the interval may be at most
    before, after = (each.tolist() for each in scores)
    return Difference(mean, text, over_seeds(before, after), seeds_needed(left, before, after))
