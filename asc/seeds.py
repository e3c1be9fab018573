"""Seeds made of seeds."""

import numpy as np


def mixed_seed(seed: int, number: int) -> int:
    """One seed of two numbers that are not negative; neighbouring pairs share nothing."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
