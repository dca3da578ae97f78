"""`python -m pykittens`."""

from .cli import app

app(prog_name="pykittens")
