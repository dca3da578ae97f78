"""The public functions on arrays of every framework, on the simulated GPU."""

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.kernels import reference

BF16 = ml_dtypes.bfloat16


def operands(heads: int = 2, key_heads: int = 2, n: int = 70, m: int = 70, d: int = 64, dtype: Any = BF16) -> list[Any]:
    rng = np.random.default_rng(n * d + heads)
    return [
        rng.standard_normal(shape).astype(dtype)
        for shape in ((1, heads, n, d), (1, key_heads, m, d), (1, key_heads, m, d))
    ]


def expected(q: Any, k: Any, v: Any, causal: bool = False, scale: float | None = None) -> Any:
    times = q.shape[1] // k.shape[1]
    return reference.attention(
        q, k.repeat(times, 1), v.repeat(times, 1), scale=scale or q.shape[-1] ** -0.5, causal=causal
    )


@pytest.mark.parametrize(
    ("heads", "key_heads", "n", "m", "d"), [(2, 2, 70, 70, 64), (4, 2, 40, 150, 128), (2, 1, 65, 33, 256)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_numpy(heads: int, key_heads: int, n: int, m: int, d: int, causal: bool) -> None:
    q, k, v = operands(heads, key_heads, n, m, d)
    out = pk.attention(q, k, v, causal=causal)
    assert (out.dtype, out.shape) == (q.dtype, q.shape)
    assert reference.row_error(out, expected(q, k, v, causal)) < 1e-2


def test_log_sum_exp_and_scale() -> None:
    q, k, v = operands(dtype=np.float16)
    out, lse = pk.attention(q, k, v, scale=0.5, return_lse=True)
    assert reference.row_error(out, expected(q, k, v, scale=0.5)) < 1e-2
    scores = q.astype(float) @ k.astype(float).swapaxes(-1, -2) * 0.5
    assert (lse.dtype, lse.shape) == (np.float32, (1, 2, 70))
    assert np.allclose(lse, np.log(np.exp(scores).sum(-1)), atol=1e-3)


def test_strides() -> None:
    """Any strides: read in place where the kernels can, copied where they cannot."""
    q, k, v = operands()
    transposed = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    columns = [np.asfortranarray(x) for x in (q, k, v)]
    backwards = [x[:, :, ::-1][:, :, ::-1] for x in (q, k, v)]
    shifted = []
    for x in (q, k, v):
        wide = np.empty((*x.shape[:3], 80), BF16)
        wide[..., 1:65] = x
        shifted.append(wide[..., 1:65])
    first = pk.attention(q, k, v)
    for operand in (transposed, columns, backwards, shifted):
        assert (pk.attention(*operand) == first).all()


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    q, k, v = operands()
    out = pk.attention(*map(jax.numpy.asarray, (q, k, v)))
    assert isinstance(out, jax.Array)
    assert reference.row_error(np.asarray(out), expected(q, k, v)) < 1e-2
    with pytest.raises(ArgumentError, match="being traced by JAX"):
        jax.jit(lambda x: pk.attention(x, x, x))(q)


def bad(**changes: Any) -> list[Any]:
    arrays = dict(zip("qkv", operands(), strict=True))
    return list({name: changes[name](x) if name in changes else x for name, x in arrays.items()}.values())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (bad(q=lambda x: x[0]), r"q bf16 \(2, 70, 64\), .*fix: q, k and v have four dimensions"),
        (
            bad(q=lambda x: x.astype(np.float32)),
            r"these dtypes are not supported.*fix: pass all of them as bf16, or all as f16",
        ),
        (bad(k=lambda x: x.astype(np.float16)), r"k f16 .* these dtypes are not supported"),
        (bad(v=lambda x: x[:, :, :3]), r"shapes do not go together.*fix: k and v have one shape"),
        (operands(heads=3), r"3 query heads share 2 key heads"),
        (operands(d=84), r"no kernel for head dimension 84.*fix: multiples of 8 up to 256 are supported"),
        (
            bad(v=lambda x: x.tolist()),
            r"`v` is a list, which is no array.*fix: pass a NumPy, torch, CuPy or JAX array",
        ),
        (bad(q=lambda x: None), r"`q` is None"),
    ],
)
def test_refusals(arrays: list[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"(?s){message}") as error:
        pk.attention(*arrays)
    assert error.value.location[0].file == __file__


def test_nan_passes() -> None:
    q, k, v = operands()
    q[0, 0, 3, 5], v[0, 1, 7, 2] = np.nan, np.inf
    out = pk.attention(q, k, v).astype(float)
    assert np.isnan(out[0, 0, 3]).all()
    assert np.isfinite(out[0, 0, :3]).all()
    assert (out[0, 1, :, 2] == np.inf).all()


def test_importing() -> None:
    """`import pykittens` loads neither NumPy nor what kernels are made with; words that are also modules stay words."""
    program = (
        "import sys, pykittens as pk\n"
        "assert not {'numpy', 'pykittens.vocabulary', 'pykittens.call.kernel'} & set(sys.modules), sys.modules.keys()\n"
        "import pykittens.call.kernel, pykittens.gpu.driver\n"
        "from pykittens import cuda, kernel\n"
        "assert pk.kernel is kernel and pk.cuda is cuda and type(kernel) is type(cuda) is type(pk.at)\n"
        "assert pk.Kernel is sys.modules['pykittens.call.kernel'].Kernel and set(pk.__all__) <= set(dir(pk))\n"
        "names = {}; exec('from pykittens import *', names); assert names['warp'] is pk.warp\n"
        "assert not hasattr(pk, 'nothing') and pk.__version__\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
