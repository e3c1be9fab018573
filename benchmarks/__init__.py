"""Benchmarks: `python -m benchmarks` measures everything the README claims about speed."""
