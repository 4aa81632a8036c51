"""Benchmarks: `tests/bench/run` measures everything and prints a table. See `__main__`."""
