"""Measurements on a GPU, their results, and the tables made of them. Run from the repository: `python -m
benchmarks.errors`.
"""
