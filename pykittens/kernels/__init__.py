"""The library: one file per kernel family, each readable on its own."""
