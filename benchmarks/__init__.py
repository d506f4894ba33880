"""Continuous benchmarks for asv over the same public API; see README.md in this folder."""
