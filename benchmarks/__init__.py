"""Measurements whose committed JSON makes docs/benchmarks.md."""
