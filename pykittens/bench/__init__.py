"""Measuring the shipped kernels on a GPU, beside the best that others have. `pykittens bench` runs it; torch is needed.

A family (a module: `attention`, `gemm`, `linear`, `memory`) lists its cells and makes a `Trial` of each: who takes
part, and how far from float64 a result lies. `measure` checks, then times, everybody taking turns.
"""
