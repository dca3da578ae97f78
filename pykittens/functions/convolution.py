"""Causal convolution along time, each channel by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError
from ..kernels import causal_conv1d as kernels
from ..kernels import causal_conv1d_backward
from ..kernels.arguments import check_floats
from .declaration import Backward, Function, Result
from .row_forms import PackedRows, one_row

_NAME = "causal_conv1d"


def _results(x: Any, weight: Any, bias: Any, state: Any, cu_seqlens: Any, activation: str | None) -> tuple[Result, ...]:
    for name, array in (("x", x), ("weight", weight), ("bias", bias), ("state", state)):
        if array is not None:
            check_floats(_NAME, name, array)
    if activation not in (None, "silu"):
        raise ArgumentError(f"{_NAME} with activation={activation!r}", fix='use "silu", or None')
    if len(x.shape) != 3:
        raise ArgumentError(f"{_NAME}: x has shape {tuple(x.shape)}", fix="pass (batch, n, channels)")
    batch, _, channels = x.shape
    if len(weight.shape) != 2 or weight.shape[0] != channels or weight.shape[1] not in kernels.WIDTHS:
        widths = ", ".join(map(str, kernels.WIDTHS))
        fix = f"pass (channels, width), here ({channels}, width); widths {widths} are supported"
        raise ArgumentError(f"{_NAME}: weight has shape {tuple(weight.shape)}", fix=fix)
    if bias is not None:
        _check(_NAME, "bias", bias, (channels,))
    sequences = batch
    if cu_seqlens is not None:
        if cu_seqlens.dtype != "i32" or len(cu_seqlens.shape) != 1 or cu_seqlens.shape[0] < 2 or batch != 1:
            said = f"x {tuple(x.shape)} and cu_seqlens {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
            fix = "packed sequences are x (1, total, channels) and cu_seqlens int32 (sequences + 1,)"
            raise ArgumentError(f"{_NAME}: {said}", fix=fix)
        sequences = cu_seqlens.shape[0] - 1
    kept = (sequences, weight.shape[1] - 1, channels)
    if state is not None:
        _check(_NAME, "state", state, kept, x.dtype)
    return Result(x.shape, x.dtype), Result(kept, x.dtype, nothing="state")


def _check(what: str, name: str, x: Any, shape: tuple[Any, ...], dtype: str = "") -> None:
    if tuple(x.shape) != tuple(shape) or dtype not in ("", x.dtype):
        fix = f"pass {dtype} {tuple(shape)}".replace("  ", " ")
        raise ArgumentError(f"{what}: {name} is {x.dtype} {tuple(x.shape)}", fix=fix)


def _gradient_results(
    dy: Any, x: Any, weight: Any, bias: Any, state: Any, cu_seqlens: Any, dafter: Any, activation: str | None
) -> tuple[Result, ...]:
    _, after = _results(x, weight, bias, state, cu_seqlens, activation)
    for name, array, shape in (("dy", dy, x.shape), ("dafter", dafter, after.shape)):
        if array is not None:
            _check(f"{_NAME}_backward", name, array, shape, x.dtype)
    return (
        Result(x.shape, x.dtype),
        Result(weight.shape, weight.dtype),
        Result((0,) if bias is None else bias.shape, "f32" if bias is None else bias.dtype),
        Result((0,) if state is None else state.shape, x.dtype, nothing="dafter"),
    )


def _backward(*arguments: Any) -> Any:
    *given, activation = arguments
    return causal_conv1d_backward.call(*given, activation=activation)


CAUSAL_CONV1D_BACKWARD = Function(
    f"{_NAME}_backward",
    "Tensor dy, Tensor x, Tensor weight, Tensor? bias=None, Tensor? state=None, Tensor? cu_seqlens=None, "
    "Tensor? dafter=None",
    "str? activation=None",
    outputs=("dx", "dweight", "dbias", "dstate"),
    results=_gradient_results,
    forward=_backward,
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    dy = saved.x.new_zeros(saved.x.shape) if grads.out is None else grads.out
    operands = (dy, saved.x, saved.weight, saved.bias, saved.state, saved.cu_seqlens, grads.after)
    made = CAUSAL_CONV1D_BACKWARD(operands, (settings.activation,))
    return dict(zip(("x", "weight", "bias", "state"), made, strict=True))


CAUSAL_CONV1D = Function(
    _NAME,
    "Tensor x, Tensor weight, Tensor? bias=None, Tensor? state=None, Tensor? cu_seqlens=None",
    "str? activation=None",
    also="after",
    results=_results,
    forward=kernels.call,
    backward=Backward(("x", "weight", "bias", "state", "cu_seqlens"), _gradients),
)


def causal_conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str | None = None,
    state: Any = None,
    cu_seqlens: Any = None,
    return_state: bool = False,
) -> Any:
    """bias[c] + sum_{j < width} weight[c, j] x[t - (width - 1) + j, c] of each channel c, then `activation` (None or
    "silu"), on arrays of any framework.

    x: (batch, n, channels), bf16, f16 or f32; one whose channels are not next to each other, such as a transposed
    (batch, channels, n), is copied first. weight: (channels, width), width 2 to 4, bias: (channels,), any of the three
    dtypes. What comes before the first row is zero, or `state`: (batch, width - 1, channels) of x's dtype, what an
    earlier call returned. Packed sequences: x (total, channels) or (1, total, channels) with `cu_seqlens`, int32
    (sequences + 1,) on x's device, from 0 to total, not decreasing; the state is then one for each sequence. Returns y
    like x, or (y, state) with `return_state`: the last width - 1 rows of each sequence, its state before them.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    rows = PackedRows(1, x, 3, cu_seqlens)
    operands = (*rows.batched(x), weight, bias, state, cu_seqlens)
    return rows.result(CAUSAL_CONV1D(operands, (activation,), return_state))


def causal_conv1d_step(
    x: Any, weight: Any, bias: Any = None, *, state: Any, activation: str | None = None
) -> tuple[Any, Any]:
    """One row of `causal_conv1d` for each sequence: (y, state) of x (batch, channels) and the state before it, None
    where there is none.

    state: (batch, width - 1, channels); `weight`, `bias` and `activation` as `causal_conv1d` has them.

    Raises `ArgumentError` for operands that the kernel does not take.
    """
    (x,) = one_row("causal_conv1d_step", 1, x=(x, "batch, channels"))
    y, after = causal_conv1d(x, weight, bias, activation=activation, state=state, return_state=True)
    return y[:, 0], after
