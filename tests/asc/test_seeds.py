from asc.seeds import mixed_seed


def test_neighbouring_pairs_have_their_own_seeds() -> None:
    seeds = {mixed_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_pinned() -> None:
    """Runs that resume and masks that are drawn again rely on the numbers."""
    assert mixed_seed(0, 0) == 15793235383387715774
    assert mixed_seed(3, 7) == mixed_seed(3, 7) != mixed_seed(7, 3)
