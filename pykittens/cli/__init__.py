"""The command line: one command a file."""

import typer

from ..versions import check_version
from .bench import run_bench
from .cache import app as cache_commands
from .compile import compile_kernels
from .demo import run_demo
from .doctor import run_doctor
from .inspect import inspect_kernel
from .layout import show_layout
from .list import list_kernels
from .probe import probe_gpu
from .schedule import show_schedule
from .vocabulary import show_vocabulary

check_version("typer", typer.__version__)

app = typer.Typer(
    name="pykittens",
    help="GPU kernels in Python, on a GPU or on a simulated one. The tiles are ThunderKittens'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
_KERNEL_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}  # each kernel has its own

app.command("demo")(run_demo)
app.command("list")(list_kernels)
app.command("inspect", context_settings=_KERNEL_OPTIONS)(inspect_kernel)
app.command("compile")(compile_kernels)
app.command("doctor")(run_doctor)
app.command("bench", context_settings={"allow_extra_args": True})(run_bench)
app.command("layout")(show_layout)
app.command("probe")(probe_gpu)
app.command("schedule")(show_schedule)
app.command("vocabulary")(show_vocabulary)
app.add_typer(cache_commands, name="cache")
