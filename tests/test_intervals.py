"""Intervals for the difference of two models: how often they miss the truth, in simulations."""

import math

import numpy as np
import pytest

from minigpt.comparison.intervals import Difference, difference, over_seeds, over_text, seeds_needed

TRIALS = 400


def blocks_of(rng, n_blocks: int, size: int, correlation: float, runs: int = 1) -> np.ndarray:
    """`(runs, n_blocks)` sums of differences per character that are correlated from one to the next."""
    noise = rng.standard_normal((runs, n_blocks * size))
    for i in range(1, noise.shape[1]):
        noise[:, i] = correlation * noise[:, i - 1] + math.sqrt(1 - correlation**2) * noise[:, i]
    return noise.reshape(runs, n_blocks, size).sum(2)


@pytest.mark.parametrize(("n_blocks", "correlation"), [(30, 0.0), (30, 0.7), (8, 0.5)])
def test_two_equal_models_are_seldom_told_apart(n_blocks, correlation):
    rng = np.random.default_rng(n_blocks)
    size = 64
    means = blocks_of(rng, n_blocks, size, correlation, TRIALS) / size
    clear = sum(Difference(float(row.mean()), over_text(row)).clear for row in means)
    assert clear <= 0.05 * TRIALS + 2 * math.sqrt(0.05 * 0.95 * TRIALS)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_recipes_that_differ_by_nothing_are_seldom_told_apart(seeds):
    """Each run has its own level, as seeds give, and each block its own difficulty, the same for all runs."""
    rng = np.random.default_rng(seeds)
    sizes = np.full(20, 64.0)
    clear = 0
    for _ in range(TRIALS // 2):
        level = 2.0 + 0.02 * rng.standard_normal((2 * seeds, 1))
        difficulty = 0.3 * rng.standard_normal(20)
        bits = (level + difficulty + 0.05 * rng.standard_normal((2 * seeds, 20))) * sizes
        clear += difference(bits[:seeds], bits[seeds:], sizes).clear
    assert clear <= 0.05 * TRIALS // 2


def test_a_real_difference_is_found_and_has_its_size():
    rng = np.random.default_rng(0)
    sizes = np.full(40, 100.0)
    bits = (2.0 + 0.3 * rng.standard_normal(40) + 0.005 * rng.standard_normal((6, 1))) * sizes
    bits[3:] -= 0.05 * sizes
    found = difference(bits[:3], bits[3:], sizes)
    assert found.clear
    assert found.mean == pytest.approx(-0.05, abs=0.015)


def test_the_interval_misses_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = [abs(float(row.mean()) - 0.1) <= over_text(row) for row in 0.1 + rng.standard_normal((TRIALS, 25))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_too_little_text_is_never_clear():
    assert over_text(np.array([1.0, 1.0, 1.0, 1.0])) == math.inf
    assert not Difference(5.0, math.inf).clear


def test_the_same_model_twice_is_not_clear():
    bits, sizes = np.full((1, 9), 3.0), np.full(9, 2.0)
    assert difference(bits, bits, sizes) == Difference(0.0, 0.0)
    assert not difference(bits, bits, sizes).clear


def test_one_seed_says_nothing_of_seeds():
    assert over_seeds([2.0], [2.1]) is None
    assert over_seeds([2.0, 2.02, 1.98], [2.1]) == pytest.approx(4.303 * 0.02 * math.sqrt(4 / 3), rel=1e-3)


def test_seeds_that_would_be_needed():
    assert seeds_needed(0.1, [2.0, 2.1, 2.2], [2.1, 2.2, 2.3]) == 9
    assert seeds_needed(0.5, [2.0, 2.001], [2.5, 2.501]) == 2
    assert seeds_needed(1e-6, [2.0, 2.1], [2.0, 2.1]) is None
    assert seeds_needed(0.1, [2.0], [2.1]) is None


def test_where_the_text_alone_is_too_short_no_number_of_seeds_is_named():
    rng = np.random.default_rng(2)
    sizes = np.full(10, 100.0)
    bits = (2.0 + 0.3 * rng.standard_normal((4, 10)) + 0.001 * rng.standard_normal((4, 1))) * sizes
    found = difference(bits[:2], bits[2:], sizes)
    assert abs(found.mean) < found.text
    assert found.needed is None
    bits = (2.0 + np.array([[0.00], [0.06], [0.09], [0.03]]) + 0.001 * rng.standard_normal((4, 10))) * sizes
    found = difference(bits[:2], bits[2:], sizes)
    assert not found.clear
    assert 2 < found.needed < 100
