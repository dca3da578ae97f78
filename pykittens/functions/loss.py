"""Cross-entropy of logits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..errors import ArgumentError
from ..interop.arrays import describe
from ..kernels import cross_entropy as kernels
from ..kernels import linear_cross_entropy as linear
from ..kernels import linear_cross_entropy_gradients as ahead
from ..kernels import scale_rows
from ..kernels import vocabulary_slices as slices
from ..kernels.arguments import KernelCall
from .declaration import Backward, Function, Result, asked_once, compiling, wants_gradient, writing


def _results(lse: bool, x: Any, targets: Any, *settings: Any) -> tuple[Result, ...]:
    reduction, *_ = settings
    kernels.check(x, targets, *settings)
    shape, nothing = (x.shape[:1] if reduction == "none" else ()), float("nan") if reduction == "mean" else 0.0
    loss, dx = Result(shape, "f32", nothing=nothing), Result(x.shape, x.dtype)
    return (loss, Result(x.shape[:1], "f32"), dx) if lse else (loss, dx)


def _forward(x: Any, targets: Any, loss: Any, dx: Any, *settings: Any, **config: Any) -> KernelCall:
    return _forward_lse(x, targets, loss, None, dx, *settings, **config)


def _forward_lse(x: Any, targets: Any, loss: Any, lse: Any, dx: Any, *settings: Any, **config: Any) -> KernelCall:
    kernels.look_at_targets("cross_entropy", targets, x.shape[1], settings[1])
    statics = {"shared": describe(x).dtype != "f16", **config}
    return KernelCall(kernels.STEPS, (x, targets, loss, lse, dx, *settings), statics)  # type: ignore[arg-type]


def _scaled_results(dx: Any, upstream: Any) -> tuple[Result, ...]:
    kernels.check_floats("cross_entropy_backward", "dx", dx)
    if upstream.dtype not in ("bf16", "f16", "f32") or tuple(upstream.shape) not in ((), tuple(dx.shape[:1])):
        said = f"upstream is {upstream.dtype} {tuple(upstream.shape)}"
        raise ArgumentError(f"cross_entropy_backward: {said}", fix=f"pass floats of shape () or ({dx.shape[0]},)")
    return (Result(dx.shape, dx.dtype),)


# The gradient of logits, made in the forward pass for an upstream gradient of 1, times the one that comes.
CROSS_ENTROPY_BACKWARD = Function(
    "cross_entropy_backward", "Tensor dx, Tensor upstream", results=_scaled_results, forward=scale_rows.call
)
CROSS_ENTROPY_BACKWARD_OUT = writing(CROSS_ENTROPY_BACKWARD, "out")


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    """That of the loss was made in the forward pass; it is scaled by what comes for the loss.

    In place where nobody will ask again, so that it takes no pass under an upstream gradient of 1. That of float16
    logits is not yet divided by how many targets count, where it would leave the range of the dtype.
    """
    dx = saved.dx
    if grads.loss is None:
        return {"x": dx.new_zeros(dx.shape)}
    upstream = grads.loss.contiguous()
    if settings.reduction == "mean" and str(dx.dtype) == "torch.float16":
        upstream = upstream / (saved.targets != settings.ignore_index).sum().clamp_min(1)
    if asked_once(dx, upstream):
        CROSS_ENTROPY_BACKWARD_OUT((dx, upstream, dx))
        return {"x": dx}
    return {"x": CROSS_ENTROPY_BACKWARD((dx, upstream))}


def _gradients_lse(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    """The same, and exp(z - lse) dz/dx times what comes for the log-sum-exp."""
    dx = _gradients(saved, grads, settings, needs)["x"]
    if grads.lse is None:
        return {"x": dx}
    x, c = saved.x.float(), settings.softcap
    bent = (x / c).tanh() if c else None
    z, slope = (x, 1.0) if bent is None else (bent * c, 1.0 - bent * bent)
    return {"x": (dx + (z - saved.lse[:, None]).exp() * slope * grads.lse[:, None]).to(dx.dtype)}


_OPERANDS = "Tensor x, Tensor targets"
_SETTINGS = 'str reduction="mean", int ignore_index=-100, float label_smoothing=0., float z_loss=0., float softcap=0.'
CROSS_ENTROPY = Function(
    "cross_entropy",
    _OPERANDS,
    _SETTINGS,
    outputs=("loss",),
    also="dx",
    results=partial(_results, False),
    forward=_forward,
    backward=Backward(("targets", "dx"), _gradients),
)
CROSS_ENTROPY_LSE = Function(
    "cross_entropy_lse",
    _OPERANDS,
    _SETTINGS,
    outputs=("loss", "lse"),
    also="dx",
    results=partial(_results, True),
    forward=_forward_lse,
    backward=Backward(("x", "targets", "lse", "dx"), _gradients_lse),
)


def _in_place_results(x: Any, targets: Any, *settings: Any) -> tuple[Result, ...]:
    return _results(False, x, targets, *settings)[:1]


def _in_place_forward(x: Any, targets: Any, loss: Any, *settings: Any, **config: Any) -> KernelCall:
    kernels.look_at_targets("cross_entropy", targets, x.shape[1], settings[1])
    return KernelCall(kernels.STEPS, (x, targets, loss, None, x, *settings), config)  # type: ignore[arg-type]


CROSS_ENTROPY_IN_PLACE = Function(
    "cross_entropy_in_place",
    "Tensor(a!) x, Tensor targets",
    _SETTINGS,
    outputs=("loss",),
    results=_in_place_results,
    forward=_in_place_forward,
    functional=CROSS_ENTROPY,
)


def _linear_results(x: Any, weight: Any, targets: Any, bias: Any, *settings: Any) -> tuple[Result, ...]:
    linear.check(x, weight, targets, bias, *settings)
    shape, nothing = (x.shape[:1] if settings[0] == "none" else ()), float("nan") if settings[0] == "mean" else 0.0
    return Result(shape, "f32", nothing=nothing), Result(x.shape[:1], "f32")


def _linear_forward(x: Any, weight: Any, targets: Any, bias: Any, loss: Any, lse: Any, *settings: Any) -> KernelCall:
    kernels.look_at_targets("linear_cross_entropy", targets, weight.shape[0], settings[1])
    if lse is None:
        lse = linear.maker(x)((x.shape[0],), "f32")
    operands = (x, weight, targets, bias, loss, lse, None, None, None, *settings)
    return KernelCall(linear.FORWARD, operands, {})  # type: ignore[arg-type]


def _kept_results(x: Any, weight: Any, *rest: Any) -> tuple[Result, ...]:
    *rest, early = rest  # type: ignore[assignment]
    found, (m, h), v = _linear_results(x, weight, *rest), x.shape, weight.shape[0]
    held = slices.held_of(m, h, v) if early else 0
    more = slices.kept_of(m, v - held)
    kept, peaks = (m, (more + 7) // 8 * 8), ((held + more + linear.PIECE - 1) // linear.PIECE, m)
    return *found, Result(kept, x.dtype), Result(peaks, "f32"), Result(tuple(weight.shape) if held else (0,), x.dtype)


def _kept_forward(*operands: Any, **statics: Any) -> KernelCall:
    _, weight, targets, *_ = operands
    kernels.look_at_targets("linear_cross_entropy", targets, weight.shape[0], operands[-5])
    return KernelCall(linear.FORWARD, operands[:-1], statics)  # type: ignore[arg-type]


def _linear_gradient_results(x: Any, weight: Any, targets: Any, lse: Any, *rest: Any) -> tuple[Result, ...]:
    bias, dloss, dlse, kept, peaks, held, *settings, for_x, for_weight, for_bias = rest
    loss, _ = _linear_results(x, weight, targets, bias, *settings)
    for name, found, shape in (("lse", lse, x.shape[:1]), ("dloss", dloss, loss.shape), ("dlse", dlse, x.shape[:1])):
        if found is not None and (found.dtype != "f32" or tuple(found.shape) != tuple(shape)):
            said = f"{name} is {found.dtype} {tuple(found.shape)}, where f32 {tuple(shape)} is needed"
            raise ArgumentError(f"linear_cross_entropy_backward: {said}", fix="pass what belongs to the forward call")
    return tuple(
        Result(tuple(like.shape) if wanted and like is not None else (0,), like.dtype if like is not None else "f32")
        for like, wanted in ((x, for_x), (weight, for_weight), (bias, for_bias))
    )


def _linear_gradient_forward(x: Any, weight: Any, targets: Any, lse: Any, *rest: Any, **statics: Any) -> KernelCall:
    bias, dloss, dlse, *more, _, _, _ = rest
    operands = (x, weight, targets, bias, lse, dloss, dlse, *more)
    return KernelCall(linear.BACKWARD, operands, statics)  # type: ignore[arg-type]


LINEAR_CROSS_ENTROPY_BACKWARD = Function(
    "linear_cross_entropy_backward",
    "Tensor x, Tensor weight, Tensor targets, Tensor lse, Tensor? bias=None, Tensor? dloss=None, Tensor? dlse=None, "
    "Tensor? kept=None, Tensor? peaks=None, Tensor? held=None",
    f"{_SETTINGS}, bool for_x=True, bool for_weight=True, bool for_bias=True",
    outputs=("dx", "dweight", "dbias"),
    results=_linear_gradient_results,
    forward=_linear_gradient_forward,
    autocast="low",
    cast=("x", "weight", "bias"),
    summed={"x": 1, "weight": 1},
)


def _held_gradient_results(held: Any, x: Any, weight: Any, *rest: Any) -> tuple[Result, ...]:
    *operands, for_x, for_bias = rest
    if tuple(held.shape) != tuple(weight.shape) or held.dtype != weight.dtype:
        said = f"held is {held.dtype} {tuple(held.shape)}, weight {weight.dtype} {tuple(weight.shape)}"
        raise ArgumentError(f"linear_cross_entropy_backward: {said}", fix="pass what belongs to the forward call")
    dx, _, dbias = _linear_gradient_results(x, weight, *operands[:7], held, *operands[7:], for_x, False, for_bias)
    return dx, dbias


def _held_gradient_forward(held: Any, x: Any, weight: Any, targets: Any, lse: Any, *rest: Any, **statics: Any) -> Any:
    bias, dloss, dlse, kept, peaks, dx, dbias, *settings, _, _ = rest
    operands = (x, weight, targets, bias, lse, dloss, dlse, kept, peaks, held, dx, held, dbias, *settings)
    return KernelCall(linear.BACKWARD, operands, statics)  # type: ignore[arg-type]


# The same, with the gradient of weight in the memory that the forward pass took for it, and left exponentials in.
LINEAR_CROSS_ENTROPY_BACKWARD_HELD = Function(
    "linear_cross_entropy_backward_held",
    "Tensor(a!) held, Tensor x, Tensor weight, Tensor targets, Tensor lse, Tensor? bias=None, Tensor? dloss=None, "
    "Tensor? dlse=None, Tensor? kept=None, Tensor? peaks=None",
    f"{_SETTINGS}, bool for_x=True, bool for_bias=True",
    outputs=("dx", "dbias"),
    results=_held_gradient_results,
    forward=_held_gradient_forward,
)


def _linear_gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    """Where nobody will ask again, the gradient of weight takes the place of what was held in its memory."""
    dloss, dlse = (None if x is None else x.contiguous() for x in (grads.loss, grads.lse))
    kept, peaks, held = (
        x if x is not None and x.numel() else None for x in (getattr(saved, n, None) for n in ("kept", "peaks", "held"))
    )
    given = (saved.x, saved.weight, saved.targets, saved.lse, saved.bias, dloss, dlse, kept, peaks)
    common = [x for name, x in settings._asdict().items() if name != "early"]
    if held is not None and needs.weight and asked_once(held, *(x for x in (dloss, dlse) if x is not None)):
        dx, dbias = LINEAR_CROSS_ENTROPY_BACKWARD_HELD((held, *given), (*common, needs.x, needs.bias))
        return {"x": dx, "weight": held, "bias": dbias}
    chosen = (*common, needs.x, needs.weight, needs.bias)
    found = LINEAR_CROSS_ENTROPY_BACKWARD((*given, held), chosen)
    return dict(zip(("x", "weight", "bias"), found, strict=True))


LINEAR_CROSS_ENTROPY = Function(
    "linear_cross_entropy",
    "Tensor x, Tensor weight, Tensor targets, Tensor? bias=None",
    _SETTINGS,
    outputs=("loss",),
    also="lse",
    results=_linear_results,
    forward=_linear_forward,
    backward=Backward(("x", "weight", "targets", "bias", "lse"), _linear_gradients),
    autocast="low",
    cast=("x", "weight", "bias"),
    summed={"x": 1, "weight": 1},
)
# The same, where there will be a backward pass: with what spares it a part of the logits. early: the memory of weight's
# gradient is taken for a part of that.
LINEAR_CROSS_ENTROPY_KEPT = Function(
    "linear_cross_entropy_kept",
    "Tensor x, Tensor weight, Tensor targets, Tensor? bias=None",
    f"{_SETTINGS}, bool early=False",
    outputs=("loss", "lse", "kept", "peaks", "held"),
    results=_kept_results,
    forward=_kept_forward,
    backward=Backward(("x", "weight", "targets", "bias", "lse", "kept", "peaks", "held"), _linear_gradients),
    autocast="low",
    cast=("x", "weight", "bias"),
    summed={"x": 1, "weight": 1},
)


def _areas(x: Any, weight: Any, bias: bool, early: bool, smoothing: float) -> Any:
    (m, h), v = x.shape, weight.shape[0]
    apart = ahead.factored(x, smoothing) and early
    return slices.areas_of(m, h, v, early, early or bias, 4 if smoothing else 3, apart)


def _finds_room(x: Any, weight: Any, for_weight: bool, for_bias: bool, smoothing: float) -> bool:
    """Whether `LINEAR_CROSS_ENTROPY_GRADIENTS` is for such operands, if they are operands at all."""
    ranks = len(getattr(x, "shape", ())), len(getattr(weight, "shape", ()))
    if ranks != (2, 2) or 0 in (*x.shape, *weight.shape):
        return False
    return _areas(x, weight, for_bias, for_weight, smoothing) is not None


def _ahead_results(x: Any, weight: Any, *rest: Any) -> tuple[Result, ...]:
    *rest, for_x, for_weight, for_bias = rest  # type: ignore[assignment]
    (loss, _), (m, h), v = _linear_results(x, weight, *rest), x.shape, weight.shape[0]
    reduction, _, smoothing, _, softcap = rest[2:]
    areas = _areas(x, weight, for_bias, for_weight, smoothing)
    if softcap or reduction == "none":
        fact = f"linear_cross_entropy_gradients with reduction {reduction!r} and softcap {softcap}"
        raise ArgumentError(fact, fix="call linear_cross_entropy, which knows when to make gradients ahead")
    if areas is None:
        fact = f"linear_cross_entropy_gradients of x {(m, h)} and weight {(v, h)}"
        raise ArgumentError(f"{fact}: no room for a part of the logits", fix="call linear_cross_entropy")
    own = min(areas.again, v) - areas.held if for_weight or for_bias else 0
    return (
        loss,
        Result((4, m), "f32"),
        Result((m, h) if for_x else (0,), x.dtype),
        Result((m, -(-own // 8) * 8) if own else (0,), x.dtype),
        Result((v, h) if areas.held else (0,), x.dtype),
    )


def _ahead_forward(*operands: Any) -> KernelCall:
    x, weight, *rest, _, for_weight, for_bias = operands
    kernels.look_at_targets("linear_cross_entropy", rest[0], weight.shape[0], rest[-4])
    areas = _areas(x, weight, for_bias, for_weight, rest[-3])
    return KernelCall(ahead.FORWARD, (x, weight, *rest), {"areas": areas})  # type: ignore[arg-type]


def _weight_gradient_results(x: Any, weight: Any, targets: Any, state: Any, upstream: Any, *rest: Any) -> Any:
    bias, kept, held, *settings, for_weight, for_bias, early = rest
    _linear_results(x, weight, targets, bias, *settings)
    for name, found, shape in (("state", state, (4, x.shape[0])), ("upstream", upstream, ())):
        if found.dtype != "f32" or tuple(found.shape) != shape:
            said = f"{name} is {found.dtype} {tuple(found.shape)}, where f32 {shape} is needed"
            raise ArgumentError(
                f"linear_cross_entropy_gradients_backward: {said}", fix="pass what belongs to the forward call"
            )
    return tuple(
        Result(tuple(like.shape) if wanted and like is not None else (0,), like.dtype if like is not None else "f32")
        for like, wanted in ((weight, for_weight), (bias, for_bias))
    )


def _weight_gradient_forward(x: Any, weight: Any, targets: Any, state: Any, upstream: Any, *rest: Any) -> KernelCall:
    bias, kept, held, dweight, dbias, *settings, for_weight, for_bias, early = rest
    operands = (x, weight, targets, bias, state, kept, held, upstream, dweight, dbias, *settings)
    areas = _areas(x, weight, True, early, settings[2])
    return KernelCall(ahead.BACKWARD, operands, {"areas": areas, "over": False})  # type: ignore[arg-type]


LINEAR_CROSS_ENTROPY_GRADIENTS_BACKWARD = Function(
    "linear_cross_entropy_gradients_backward",
    "Tensor x, Tensor weight, Tensor targets, Tensor state, Tensor upstream, Tensor? bias=None, "
    "Tensor? kept=None, Tensor? held=None",
    f"{_SETTINGS}, bool for_weight=True, bool for_bias=True, bool early=False",
    outputs=("dweight", "dbias"),
    results=_weight_gradient_results,
    forward=_weight_gradient_forward,
    summed={"x": 1, "weight": 1},
)


def _over_results(held: Any, kept: Any, x: Any, weight: Any, *rest: Any) -> tuple[Result, ...]:
    *operands, for_bias = rest
    if tuple(held.shape) != tuple(weight.shape) or held.dtype != weight.dtype:
        said = f"held is {held.dtype} {tuple(held.shape)}, weight {weight.dtype} {tuple(weight.shape)}"
        raise ArgumentError(
            f"linear_cross_entropy_gradients_backward: {said}", fix="pass what belongs to the forward call"
        )
    return _weight_gradient_results(x, weight, *operands[:4], kept, held, *operands[4:], False, for_bias, True)[1:]


def _over_forward(held: Any, kept: Any, x: Any, weight: Any, targets: Any, state: Any, *rest: Any) -> KernelCall:
    upstream, bias, dbias, *settings, _ = rest
    operands = (x, weight, targets, bias, state, kept, held, upstream, held, dbias, *settings)
    statics = {"areas": _areas(x, weight, True, True, settings[2]), "over": True}
    return KernelCall(ahead.BACKWARD, operands, statics)  # type: ignore[arg-type]


# The same, with the gradient of weight in the memory that the forward pass took for it, over what it left there.
LINEAR_CROSS_ENTROPY_GRADIENTS_BACKWARD_OVER = Function(
    "linear_cross_entropy_gradients_backward_over",
    "Tensor(a!) held, Tensor(b!) kept, Tensor x, Tensor weight, Tensor targets, Tensor state, Tensor upstream, "
    "Tensor? bias=None",
    f"{_SETTINGS}, bool for_bias=True",
    outputs=("dbias",),
    results=_over_results,
    forward=_over_forward,
)


def _ahead_gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> Mapping[str, Any]:
    """What was made in the forward pass, times what comes for the loss; over it where nobody will ask again."""
    if grads.loss is None:
        wanted = ((x, getattr(saved, x)) for x in ("x", "weight", "bias") if getattr(needs, x))
        return {name: x.new_zeros(x.shape) for name, x in wanted}
    upstream, found = grads.loss.contiguous(), {}
    if settings.reduction == "mean" and str(saved.x.dtype) == "torch.float16":
        upstream = upstream / (saved.targets != settings.ignore_index).sum().clamp_min(1)
    kept, held = (x if x.numel() else None for x in (saved.kept, saved.held))
    *common, for_x, for_weight, for_bias = settings
    operands = (saved.x, saved.weight, saved.targets, saved.state, upstream, saved.bias)
    if needs.weight or needs.bias:
        if held is not None and kept is not None and needs.weight and asked_once(held, kept, upstream):
            dbias = LINEAR_CROSS_ENTROPY_GRADIENTS_BACKWARD_OVER((held, kept, *operands), (*common, needs.bias))
            found = {"weight": held, "bias": dbias}
        else:
            chosen = (*common, needs.weight, needs.bias, for_weight)
            made = LINEAR_CROSS_ENTROPY_GRADIENTS_BACKWARD((*operands, kept, held), chosen)
            found = dict(zip(("weight", "bias"), made, strict=True))
    if needs.x and asked_once(saved.dx, upstream):
        CROSS_ENTROPY_BACKWARD_OUT((saved.dx, upstream, saved.dx))
        found["x"] = saved.dx
    elif needs.x:
        found["x"] = CROSS_ENTROPY_BACKWARD((saved.dx, upstream))
    return found


# The same, where there will be a backward pass of one gradient for all rows: with gradients that are made ahead.
LINEAR_CROSS_ENTROPY_GRADIENTS = Function(
    "linear_cross_entropy_gradients",
    "Tensor x, Tensor weight, Tensor targets, Tensor? bias=None",
    f"{_SETTINGS}, bool for_x=True, bool for_weight=True, bool for_bias=True",
    outputs=("loss", "state", "dx", "kept", "held"),
    results=_ahead_results,
    forward=_ahead_forward,
    backward=Backward(("x", "weight", "targets", "bias", "state", "dx", "kept", "held"), _ahead_gradients),
    autocast="low",
    cast=("x", "weight", "bias"),
    summed={"x": 1, "weight": 1},
)


def cross_entropy(
    x: Any,
    targets: Any,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    return_lse: bool = False,
    in_place: bool = False,
) -> Any:
    """The cross-entropy of logits and targets, as torch.nn.functional.cross_entropy; with `return_lse`, also
    log-sum-exps.

    x: (m, n), bf16, f16 or f32, n up to 524,288, columns following one another; targets: (m,), int32 or int64. For each
    row with z = x, or softcap * tanh(x / softcap), and lse = log(sum(exp(z))):

        loss = lse - (1 - label_smoothing) z[target] - label_smoothing mean(z) + z_loss lse^2

    `reduction`: "mean" divides the sum by how many targets are not `ignore_index` (NaN where all are), "sum" does not,
    "none" gives a loss for each row, 0 where it is ignored. Losses and the log-sum-exps (m,) are float32. A target that
    is no column is an error on the simulator and in debug builds; on a GPU its loss is NaN. Where torch wants the
    gradient it is made in the same pass over the logits.

    `in_place`: the gradient of the loss (of the sum of losses for "none") is written over x, which saves as much memory
    as the logits take. It is not differentiable itself: call it on what autograd does not watch, and hand that on as
    the gradient, `logits.backward(x)` with x = logits.detach().

    Raises `ArgumentError` for operands or settings that the kernel does not take.
    """
    if in_place and return_lse:
        fix = "leave one of them out"
        raise ArgumentError("cross_entropy with in_place=True and return_lse=True", fix=fix)
    function = CROSS_ENTROPY_IN_PLACE if in_place else CROSS_ENTROPY_LSE if return_lse else CROSS_ENTROPY
    return function((x, targets), (reduction, ignore_index, label_smoothing, z_loss, softcap))


def linear_cross_entropy(
    x: Any,
    weight: Any,
    targets: Any,
    bias: Any = None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """`cross_entropy` of the logits x @ weight.T + bias, which are never in memory as a whole.

    x: (m, h), weight: (v, h), both bf16 or both f16; targets: (m,), int32 or int64; bias: (v,), bf16, f16 or f32. The
    settings `reduction`, `ignore_index`, `label_smoothing`, `z_loss`, `softcap` and the results are those of
    `cross_entropy`: losses and, with `return_lse`, log-sum-exps (m,) are float32. Logits are float32 sums that nothing
    rounds before the loss.

    Where torch will want gradients of the mean or sum alone, the forward pass makes them, of an upstream gradient of 1,
    some rows of x at a time: that of x complete, and of the logits in 16 bits, which the backward pass multiplies by x.
    They take at most 1016 MiB beside operands and gradients, and the memory of weight's gradient, which is so taken
    early. That is three products of 2 m h v operations, and a fourth for columns for which there is no room; two where
    weight is frozen. Under retain_graph=True the gradient of weight takes memory a second time.

    Under reduction="none", with `return_lse`, and under torch.compile, the forward pass keeps exponentials of logits:
    528 MiB at most, and, but under torch.compile, as many as the gradient of weight will have bytes, in its memory. The
    backward pass makes the gradient of the logits a slice of the vocabulary at a time, from what was kept, and by
    computing the other logits again (under a softcap all), a fourth product for these. It takes 264 MiB more, and a
    float32 copy of the gradient of x where the vocabulary takes more than one slice. Sums are float32 everywhere, and
    gradients are rounded once, or twice where the upstream gradient of a mean or sum is not 1.

    Raises `ArgumentError` for operands or settings that the kernels do not take.
    """
    settings, operands = (reduction, ignore_index, label_smoothing, z_loss, softcap), (x, weight, targets, bias)
    if softcap == 0 and wants_gradient(x, weight, bias):
        wanted = tuple(map(wants_gradient, operands[:2])) + (bias is not None and wants_gradient(bias),)
        if (
            reduction in ("mean", "sum")
            and not (return_lse or compiling())
            and _finds_room(x, weight, wanted[1], wanted[2], label_smoothing)
        ):
            return LINEAR_CROSS_ENTROPY_GRADIENTS((x, weight, targets, bias), (*settings, *wanted))[0]
        early = wants_gradient(weight) and not compiling()
        loss, lse, _, _, _ = LINEAR_CROSS_ENTROPY_KEPT(operands, (*settings, early))
        return (loss, lse) if return_lse else loss
    return LINEAR_CROSS_ENTROPY(operands, settings, return_lse)
