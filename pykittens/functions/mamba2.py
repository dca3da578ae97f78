"""Mamba-2's recurrence over sequences (state-space duality, SSD)."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from ..kernels import mamba2 as kernels
from ..kernels.arguments import check_floats
from ..kernels.sequences import DTYPES, check_gradient, check_offsets, check_state
from ..kernels.ssd import STATES
from ..kernels.ssd_backward import STAGES
from ..kernels.ssd_passes import COLUMNS
from .declaration import Backward, Function, Result
from .row_forms import PackedRows, one_row

_NAME = "mamba2"
WIDE = ("B", "C", "state")  # operands with the columns of states
OPERANDS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, Tensor? dt_bias=None, "
    "Tensor? state=None, Tensor? cu_seqlens=None"
)


def _results(*given: Any) -> tuple[Result, ...]:
    operands = given[:10]
    x, dt, a, b, c, d, z, bias, state, offsets = operands
    infos = {"x": x, "B": b, "C": c} | ({} if z is None else {"z": z})
    said = f"{_NAME} of " + ", ".join(f"{name} {i.dtype} {tuple(i.shape)}" for name, i in infos.items())
    if any(len(i.shape) != 4 for i in infos.values()):
        fix = "x and z are (batch, n, heads, columns), B and C (batch, n, groups, N)"
        raise ArgumentError(said, fix=fix)
    if x.dtype not in {d.name for d in DTYPES} or len({i.dtype for i in infos.values()}) > 1:
        raise ArgumentError(f"{said}: these dtypes are not supported", fix="pass all of them as bf16, or all as f16")
    (batch, n, heads, cols), groups = x.shape, b.shape[2]
    if b.shape != c.shape or b.shape[:2] != x.shape[:2] or (z is not None and z.shape != x.shape):
        fix = "x and z have one shape, B and C another with the same batch and rows"
        raise ArgumentError(f"{said}: the shapes do not go together", fix=fix)
    if heads % groups if groups else heads:
        raise ArgumentError(f"{said}: {heads} heads over {groups} groups", fix="heads are a multiple of groups")
    for what, size, supported in (("columns of x", cols, COLUMNS), ("columns of B", b.shape[3], STATES)):
        if size not in (0, *supported):
            fix = f"{', '.join(map(str, supported))} {what} are supported"
            raise ArgumentError(f"{said}: there is no kernel for {size} {what}", fix=fix)
    rest: tuple[tuple[str, Any, tuple[int, ...]], ...] = (("dt", dt, (batch, n, heads)), ("dt_bias", bias, (heads,)))
    for name, info, shape in rest:
        if info is not None:
            check_floats(_NAME, name, info)
            if tuple(info.shape) != tuple(shape):
                raise ArgumentError(f"{_NAME}: {name} has shape {tuple(info.shape)}", fix=f"pass {tuple(shape)}")
    sequences = check_offsets(_NAME, offsets, batch)
    kept = (sequences, heads, cols, b.shape[3])
    for name, info, shape in (("A", a, (heads,)), ("D", d, (heads,)), ("state", state, kept)):
        if info is not None and (info.dtype != "f32" or tuple(info.shape) != tuple(shape)):
            said = f"{_NAME}: {name} is {info.dtype} {tuple(info.shape)}"
            raise ArgumentError(said, fix=f"pass float32 {tuple(shape)}")
    return Result(x.shape, x.dtype), Result(kept, "f32", nothing="state")


def _gradient_results(dy: Any, *given: Any) -> tuple[Result, ...]:
    *operands, dafter, soft = given
    _, after = _results(*operands, soft)
    x, dt, a, b, c, d, z, bias, state, _ = operands
    check_gradient(f"{_NAME}_backward", dy, x)
    check_state(f"{_NAME}_backward", "dafter", dafter, after.shape)
    if b.shape[3] not in (0, *STAGES):
        fix = f"pass parts of {max(STAGES)} columns, whose gradients add up: torch's autograd does so by itself"
        raise ArgumentError(f"{_NAME}_backward with {b.shape[3]} columns of B", fix=fix)
    made = [Result((0,), "f32") if i is None else Result(i.shape, i.dtype) for i in (x, dt, a, b, c, d, z, bias)]
    return *made, Result((0,) if state is None else state.shape, "f32", nothing="dafter")


_SUMMED = {"B": -1, "C": -1, "state": -1, "dafter": -1}  # without states, D and z are what is left
MAMBA2_BACKWARD = Function(
    f"{_NAME}_backward",
    f"Tensor dy, {OPERANDS}, Tensor? dafter=None",
    "bool dt_softplus=False",
    outputs=("dx", "ddt", "dA", "dB", "dC", "dD", "dz", "ddt_bias", "dstate"),
    results=_gradient_results,
    forward=kernels.call_backward,
    autocast="low",
    cast=("dy", "x", "B", "C", "z"),
    summed=_SUMMED,
    zeros=lambda *_: min(STAGES),
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    dy = saved.x.new_zeros(saved.x.shape) if grads.out is None else grads.out
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state")
    given = {name: getattr(saved, name) for name in names}
    width, most = saved.B.shape[3], max(STAGES)
    if width <= most:
        operands = (dy, *given.values(), saved.cu_seqlens, grads.after)
        return dict(zip(names, MAMBA2_BACKWARD(operands, (settings.dt_softplus,)), strict=True))
    # S C is a sum over columns, and the rows are one of recurrences of some columns each; D x goes with the first
    found: list[dict[str, Any]] = []
    for first in range(0, width, most):
        part = {name: x[..., first : first + most] for name, x in given.items() if name in WIDE and x is not None}
        part |= {"D": None} if found else {}
        after = None if grads.after is None else grads.after[..., first : first + most]
        operands = (dy, *{**given, **part}.values(), saved.cu_seqlens, after)
        found.append(dict(zip(names, MAMBA2_BACKWARD(operands, (settings.dt_softplus,)), strict=True)))
    one, two = found
    # What is a sum of both; the gradient of an operand that was not given has no elements.
    made = {name: one[name] + two[name] for name in names if name not in (*WIDE, "D")}
    made |= {name: one[name] if given[name] is None else _joined(one[name], two[name]) for name in WIDE}
    return made | {"D": one["D"]}


def _joined(one: Any, two: Any) -> Any:
    """Columns beside columns."""
    made = one.new_empty((*one.shape[:-1], 2 * one.shape[-1]))
    made[..., : one.shape[-1]], made[..., one.shape[-1] :] = one, two
    return made


MAMBA2 = Function(
    _NAME,
    OPERANDS,
    "bool dt_softplus=False, bool exact_state=False",
    also="after",
    results=_results,
    forward=kernels.call,
    autocast="low",
    cast=("x", "B", "C", "z"),
    summed=_SUMMED,
    zeros=lambda *_: min(STATES),
    backward=Backward(("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state", "cu_seqlens"), _gradients),
)


def mamba2(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    *,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
    state: Any = None,
    cu_seqlens: Any = None,
    exact_state: bool = False,
    return_state: bool = False,
) -> Any:
    """y_i = (S_i C_i + D x_i) silu(z_i), S_i = exp(dt_i A) S_(i - 1) + dt_i x_i B_i, of each head, on arrays of any
    framework.

    x, z: (batch, n, heads, p), p 64 or 128; B, C: (batch, n, groups, N), N 64, 128 or 256, for the heads / groups heads
    of each group; all of them bf16, or all f16, any n, any strides. dt: (batch, n, heads) and dt_bias: (heads,), bf16,
    f16 or f32: dt_i is dt + dt_bias, or softplus of that with `dt_softplus`. A, negative or zero, and D: float32
    (heads,). D, z and dt_bias may be left out. `state`: what an earlier call returned, for rows that continue it,
    float32 (batch, heads, p, N); its sums are of 16-bit products, but with `exact_state` of those of float32. Packed
    sequences: batch 1, or no batch, as x (total, heads, p), with `cu_seqlens`, int32 (sequences + 1,) on x's device,
    from 0 to n, not decreasing; states are then one for each sequence. Returns y like x, or (y, state) with
    `return_state`. For Hopper and the simulated GPU. (mamba_ssm's `mamba_chunk_scan_combined`.)

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    rows = PackedRows(1, x, 4, cu_seqlens)
    x, dt, B, C, z = rows.batched(x, dt, B, C, z)
    operands = (x, dt, A, B, C, D, z, dt_bias, state, cu_seqlens)
    return rows.result(MAMBA2(operands, (dt_softplus, exact_state), return_state))


def mamba2_step(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    *,
    state: Any,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
) -> tuple[Any, Any]:
    """One row of `mamba2` for each sequence: (y, state) of x and z (batch, heads, p), dt (batch, heads), B and C
    (batch, groups, N), and the state before it, None where there is none.

    A, D, dt_bias, dt_softplus and state as `mamba2` has them. For every GPU.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    row, shared = "batch, heads, p", "batch, groups, N"
    named = {"x": (x, row), "dt": (dt, "batch, heads"), "B": (B, shared), "C": (C, shared), "z": (z, row)}
    x, dt, B, C, z = one_row("mamba2_step", 1, **named)
    options = {"D": D, "z": z, "dt_bias": dt_bias, "dt_softplus": dt_softplus}
    y, after = mamba2(x, dt, A, B, C, **options, state=state, return_state=True)
    return y[:, 0], after
