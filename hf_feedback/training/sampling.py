"""How many iterations a training step takes: fixed, drawn at random, or rising."""

import math

import numpy as np

KINDS = ("fixed", "uniform", "poisson", "curriculum")


def draw_iterations(kind: str, least: int, mean: int, most: int, seed: int, step: int, progress: float) -> int:
    """K of one optimizer step. It depends on seed and step alone, so that every process draws the same.

    Args:
        kind: `"fixed"`: `mean`; `"uniform"`: from `least` to `most`, each as likely; `"poisson"`: `least` and a
            Poisson-distributed number more, its rate log-normal (σ = ½), so that the mean is `mean`; at most `most`;
            `"curriculum"`: rising from `least` to `most` in equal parts of the training.
        least, mean, most: K.
        seed, step: of the training.
        progress: how much of the training is done, from 0 to 1.

    Source: Geiping et al. 2025, Scaling up Test-Time Compute with Latent Reasoning, arXiv 2502.05171 (the log-normal
    Poisson distribution).
    """
    if kind == "fixed":
        return mean
    if kind == "curriculum":
        return min(most, least + int(progress * (most - least + 1)))
    generator = np.random.default_rng((seed, step))
    if kind == "uniform":
        return int(generator.integers(least, most + 1))
    sigma = 0.5
    rate = math.exp(generator.normal(math.log(max(mean - least, 1e-9)) - sigma**2 / 2, sigma))
    return min(most, least + int(generator.poisson(rate)))
