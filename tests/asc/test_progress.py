from rich.console import Console

from asc.progress import _is_seen, quiet


def test_no_bars_inside() -> None:
    terminal = Console(force_terminal=True)
    assert _is_seen(terminal) and not _is_seen(Console(force_terminal=False))
    with quiet():
        with quiet():
            assert not _is_seen(terminal)
        assert not _is_seen(terminal)
    assert _is_seen(terminal)
