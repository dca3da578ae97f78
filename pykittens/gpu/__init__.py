"""The GPU: compile CUDA C, keep the result, load it, launch it. Importing this needs no CUDA package."""
