"""The CPU machine: runs a program on NumPy arrays and finds its races, hangs and bank conflicts."""

from .report import Report
from .run import simulate

__all__ = ["Report", "simulate"]
