"""Operands that an operation refuses: its type rule names them, and what to write instead."""

from collections.abc import Callable
from typing import Any

import pytest

import pykittens as pk
from pykittens import bf16, block, f16, f32, i32, warp
from tests.expecting import BF, X, refused, says, x


def store_wrong_shape(x: X):
    warp.store(x, warp.zeros(f32, 16, 64), None)  #!


def store_of_a_number(x: X):
    warp.store(x, 3.0, (0, 0))  #!


def store_shared_to_shared(x: X):
    a, b = pk.shared(pk.st(f32, 16, 64)), pk.shared(pk.st(f32, 16, 64))
    warp.store(a, b)  #!


def store_misfit(x: X):
    s = pk.shared(pk.st(f32, 32, 64))
    warp.store(s, warp.zeros(f32, 16, 64))  #!


def store_array_of_tiles(x: X):
    tiles = pk.shared(pk.st(f32, 16, 64), count=2)
    warp.store(tiles, warp.zeros(f32, 16, 64))  #!


def store_to_registers(x: X):
    warp.store(warp.zeros(f32, 16, 64), warp.zeros(f32, 16, 64))  #!


def store_partial(x: X):
    warp.store(x, warp.zeros_col(f32, 64, partial=True), (0, 0))  #!


def store_swapped(x: X):
    warp.store(warp.zeros(f32, 16, 64), x, (0, 0))  #!


def load_without_rows(x: X):
    warp.load(x, (0, 0))  #!


def load_without_coordinate(x: X):
    warp.load(x, rows=16)  #!


def load_with_three_coordinates(x: X):
    warp.load(x, (0, 0, 0), rows=16)  #!


def load_with_float_coordinate(x: X):
    warp.load(x, (0.5, 0), rows=16)  #!


def load_past_the_columns(x: X):
    warp.load(x, (0, 1), rows=16)  #!


def load_into_registers(x: X):
    block.load_into(warp.zeros(f32, 16, 64), x, (0, 0))  #!


def load_into_wrong_dtype(x: X):
    block.load_into(pk.shared(pk.st(bf16, 16, 64)), x, (0, 0))  #!


def load_odd_rows(x: X):
    warp.load(x, (0, 0), rows=20)  #!


def load_a_vector_as_tile(x: X):
    warp.load(pk.shared(pk.sv(f32, 64)))  #!


def load_vector_of_a_tile(x: X):
    warp.load_vec(pk.shared(pk.st(f32, 16, 64)))  #!


def index_past_the_end(x: X):
    pk.shared(pk.st(f32, 16, 64), count=2)[2]  #!


def index_one_tile(x: X):
    pk.shared(pk.st(f32, 16, 64))[0]  #!


def slice_an_array(x: X):
    pk.shared(pk.st(f32, 16, 64), count=2)[0:1]  #!


def part_past_the_end(x: X):
    pk.shared(pk.st(f32, 16, 64))[0:16, 32:96].part(0, 48, 16, 32)  #!


def part_inside_a_vector(x: X):
    pk.shared(pk.st(bf16, 32, 64)).part(0, x.rows * 4, 16, 16)  #!


def mixed_dtypes(x: X):
    warp.zeros(f32, 16, 64) + warp.zeros(bf16, 16, 64)  #!


def mixed_shapes(x: X):
    warp.zeros(f32, 16, 64) + warp.zeros(f32, 16, 32)  #!


def mixed_layouts(x: X):
    warp.zeros(f32, 16, 64) + warp.zeros(f32, 16, 64, layout="col")  #!


def mixed_scopes(x: X):
    pk.group(2).zeros(f32, 32, 64) + warp.zeros(f32, 32, 64)  #!


def mixed_scopes_mma(x: X):
    a = pk.group(2).zeros(bf16, 32, 64)
    warp.mma_ABt(warp.zeros(f32, 32, 16), a, pk.shared(pk.st(bf16, 16, 64)))  #!


def accumulator_of_another_scope(x: X):
    acc = pk.group(2).zeros(f32, 32, 16)
    warp.mma_ABt(acc, pk.shared(pk.st(bf16, 32, 64)), pk.shared(pk.st(bf16, 16, 64)))  #!


def vector_of_the_wrong_length(x: X):
    warp.zeros(f32, 16, 64) * warp.zeros_col(f32, 32)  #!


def vector_of_the_wrong_layout(x: X):
    warp.zeros(f32, 16, 64) * warp.zeros_col(f32, 16, layout="col")  #!


def partial_in_a_product(x: X):
    warp.zeros(f32, 16, 64) * warp.zeros_col(f32, 16, partial=True)  #!


def exp_of_a_partial(x: X):
    pk.exp(warp.zeros_col(f32, 16, partial=True))  #!


def exp_of_integers(x: X):
    pk.exp(warp.zeros(i32, 16, 64))  #!


def divide_integers(x: X):
    warp.zeros(i32, 16, 64) / 2  #!


def float_with_integers(x: X):
    warp.zeros(i32, 16, 64) + 0.5  #!


def shift_floats(x: X):
    warp.zeros(f32, 16, 64) << 2  #!


def assign_misfit(x: X):
    t = warp.zeros(f32, 16, 64)
    t[:] = warp.zeros(f32, 32, 64)  #!


def assign_dtype(x: X):
    t = warp.zeros(bf16, 16, 64)
    t[:] = warp.zeros(f32, 16, 64)  #!


def choose_by_numbers(x: X):
    t = warp.zeros(f32, 16, 64)
    pk.where(t, t, 0.0)  #!


def mma_of_floats(x: X):
    t = warp.zeros(f32, 16, 64)
    warp.mma_ABt(warp.zeros(f32, 16, 16), t, t)  #!


def mma_layout(x: X):
    t = warp.zeros(bf16, 16, 64)
    warp.mma_AB(warp.zeros(f32, 16, 64), warp.zeros(bf16, 16, 16), t)  #!


def mma_shapes(x: X):
    warp.mma_ABt(warp.zeros(f32, 16, 16), warp.zeros(bf16, 16, 64), pk.shared(pk.st(bf16, 32, 64)))  #!


def mma_accumulator(x: X):
    warp.mma_ABt(warp.zeros(bf16, 16, 16), warp.zeros(bf16, 16, 64), pk.shared(pk.st(bf16, 16, 64)))  #!


def reduce_a_vector_by_rows(x: X):
    warp.zeros_col(f32, 16).row_sum()  #!


def terms_of_one_warp(x: X):
    warp.zeros(f32, 64, 64).col_sum(partial=True)  #!


def total_of_a_whole(x: X):
    warp.zeros_col(f32, 16).total()  #!


def convert_a_partial_vector(x: X):
    warp.zeros_col(f32, 16, partial=True).swap_layout("col")  #!


def convert_to_fp8(x: X):
    warp.zeros(f32, 16, 16).to(pk.e4m3)  #!


def scope_that_does_not_divide(x: X):
    pk.group(3).zeros(f32, 48, 16)  #!


def role_that_does_not_fit(x: X):
    with pk.role("a", warps=5):  #!
        pass


def role_in_a_branch(x: X):
    with pk.when(x.rows > 3), pk.role("a", warps=1):  #!
        pass


def budget_of_a_warp(x: X):
    with pk.role("a", warps=1, registers=40):  #!
        pass


def print_shared(x: X):
    pk.print(pk.shared(pk.st(f32, 16, 64)))  #!


def wait_for_a_traced_count(x: X):
    warp.wait_loads(x.rows)  #!


def float_into_an_integer_variable(x: X):
    v = pk.var(i32, 0)
    v[:] = 1.5  #!


def bits_of_a_float(x: X):
    n = x[0, 0]
    n & 3  #!


def inline_unknown(x: X):
    pk.cuda("{a} = {b};", writes={"a": pk.var(i32, 0)})  #!


def inline_number(x: X):
    pk.cuda("{a} = 3;", writes={"a": 4})  #!


def barrier_that_is_none(x: X):
    warp.sync_at(pk.shared(pk.st(f32, 16, 64)))  #!


@pytest.mark.parametrize(
    ("kernel", "fact", "fix"),
    [
        (store_wrong_shape, "where in x: gl<f32, N x 64>?", "give a coordinate"),
        (store_of_a_number, "store of 3.0", "takes a register or shared tile"),
        (store_shared_to_shared, "a store from b to a, both in shared memory", "load, then store"),
        (store_misfit, "store: a rt<f32, 16x64> does not fit 32 x 64 elements in memory", "shapes must agree"),
        (store_array_of_tiles, "store: tiles is an array of 2 st<f32, 16x64>", "index one: tiles[i]"),
        (store_to_registers, "store: rt<f32, 16x64> is rt<f32, 16x64>, not memory", ""),
        (store_partial, "store: a partial vector has no values yet", "x.total()"),
        (store_swapped, "store: rt<f32, 16x64> is rt<f32, 16x64>, not memory", "store(target, source)"),
        (load_without_rows, "load of x: gl<f32, N x 64> needs the size of the tile", "rows=16"),
        (load_without_coordinate, "where in x: gl<f32, N x 64>?", "coordinate"),
        (load_with_three_coordinates, "3 coordinates for x: gl<f32, N x 64>", "give 2"),
        (load_with_float_coordinate, "load: a coordinate is ", "pass an integer"),
        (load_past_the_columns, "warp.load: column 64 is past the 64 columns of x", "coordinates count tiles; pk.at"),
        (load_into_registers, "not memory", ""),
        (
            load_into_wrong_dtype,
            "load: st<bf16, 16x64> and x: gl<f32, N x 64> differ in dtype",
            "copies do not convert",
        ),
        (load_odd_rows, "a register tile of 20 x 64 f32 does not divide over 1 warps", "multiple of 16"),
        (load_a_vector_as_tile, "load makes a tile", "load_vec"),
        (load_vector_of_a_tile, "a vector is not loaded from st<f32, 16x64>", ""),
        (index_past_the_end, "index 2 of 2 items", "use 0 to 1"),
        (index_one_tile, "is one st<f32, 16x64>", "tile[row:row + 16, 0:64]"),
        (slice_an_array, "is 2 items", "index one first"),
        (part_past_the_end, "columns 48 to 80 of st<f32, 16x32>", "stay within its 32 columns"),
        (part_inside_a_vector, "begins at a column that may not be a multiple of 8", "16 bytes"),
        (mixed_dtypes, "add mixes bf16 and f32", "x.to(pk.f32)"),
        (mixed_shapes, "add: rt<f32, 16x32> does not fit rt<f32, 16x64>", "shapes must agree"),
        (mixed_layouts, "add: rt<f32, 16x64, col> does not fit rt<f32, 16x64>", "swap_layout"),
        (mixed_scopes, "add mixes scopes: rt<f32, 32x64> over 2 warps and rt<f32, 32x64>", "the same scope"),
        (mixed_scopes_mma, "mma_ABt mixes scopes: rt<bf16, 32x64> over 2 warps and rt<f32, 32x16>", "the same scope"),
        (accumulator_of_another_scope, "the accumulator rt<f32, 32x16> over 2 warps is not of this warp", "warp.zeros"),
        (vector_of_the_wrong_length, "mul: rv<f32, 32, col_vec> does not fit rt<f32, 16x64>", "one value per row"),
        (vector_of_the_wrong_layout, "mul: rv<f32, 16, col_vec, col> does not fit rt<f32, 16x64>", "layout"),
        (partial_in_a_product, "mul: rv<f32, 16, col_vec, partial> does not fit rt<f32, 16x64>", "x.total()"),
        (exp_of_a_partial, "exp of a partial vector would not be exp of its sum", "x.total()"),
        (exp_of_integers, "exp takes floats, not rt<i32, 16x64>", "x.to(pk.f32)"),
        (divide_integers, "/ takes floats, not i32", "x.to(pk.f32)"),
        (float_with_integers, "add mixes a i32 tile with the float 0.5", "x.to(pk.f32)"),
        (shift_floats, "shl takes integers and masks, not f32", ""),
        (assign_misfit, "x[:] = ...: rt<f32, 32x64> does not fit rt<f32, 16x64>", ""),
        (assign_dtype, "a rt<f32, 16x64> cannot be stored into a rt<bf16, 16x64>", "value.to(pk.bf16)"),
        (choose_by_numbers, "where chooses by a bool mask, not rt<f32, 16x64>", "compare first"),
        (mma_of_floats, "mma_ABt multiplies bf16 by bf16 or f16 by f16", "x.to(pk.bf16)"),
        (mma_layout, "in row layout, where the fragment is col layout", "layout='col'"),
        (mma_shapes, "shapes do not multiply: accumulator 16 x 16, A 16 x 64, B 64 x 32 (transposed)", "A is m x k"),
        (
            mma_accumulator,
            "accumulates into a row-layout float32 register tile, not rt<bf16, 16x16>",
            "warp.zeros(pk.f32, m, n)",
        ),
        (reduce_a_vector_by_rows, "row and column reductions take a tile, not rv<f32, 16, col_vec>", "v.sum()"),
        (
            terms_of_one_warp,
            "column sum of rt<f32, 64x64> with partial=True",
            "leave partial out",
        ),
        (total_of_a_whole, "total takes a partial vector, not rv<f32, 16, col_vec>", "complete already"),
        (convert_a_partial_vector, "swap_layout of rv<f32, 16, col_vec, partial>", "x.total()"),
        (convert_to_fp8, "registers cannot hold e4m3", "store the float32 tile"),
        (scope_that_does_not_divide, "a group(3) has 3 warps, the current role 4", "multiple of 3"),
        (role_that_does_not_fit, "role 'a' wants warps 0 to 4 of 4", "more warps"),
        (role_in_a_branch, "role 'a' begins inside a pk.when", "roles are static"),
        (budget_of_a_warp, "role 'a': 40 registers a thread for 1 warps", "whole warpgroups"),
        (print_shared, "pk.print shows scalars and register tiles, not st<f32, 16x64>", "load it"),
        (wait_for_a_traced_count, "cannot wait for", "Python int"),
        (float_into_an_integer_variable, "v is i32, the new value f32", "pk.cast"),
        (bits_of_a_float, "and takes integers, not f32", "pk.cast"),
        (inline_unknown, "pk.cuda: no operand is called b", "operands here: a"),
        (inline_number, "pk.cuda writes a, which is the number 4", "pk.var"),
        (barrier_that_is_none, "not a named barrier", "pk.named_barrier"),
    ],
)
def test_operands(kernel: Callable[..., Any], fact: str, fix: str) -> None:
    says(refused(kernel), fact, fix)


def test_strides_that_cp_async_cannot_take_are_fine_for_others() -> None:
    @pk.kernel
    def k(a: BF):
        s = pk.shared(pk.st(bf16, 16, 64))
        warp.load_into(s, a, (0, 0))

    k.cuda(pk.spec(bf16, (32, 64), strides=(65, 1), align=2))


REGISTER_DTYPES = [bf16, f16, f32, i32, pk.u32, pk.i64, pk.bool_]
MEMORY_DTYPES = [*REGISTER_DTYPES, pk.e4m3, pk.e5m2, pk.i8, pk.u8, pk.f64]


@pytest.mark.parametrize("dtype", MEMORY_DTYPES, ids=str)
def test_dtypes_that_registers_hold(dtype: pk.types.DType) -> None:
    @pk.kernel
    def k(x: X):
        warp.zeros(dtype, 16, 32)

    if dtype in REGISTER_DTYPES:
        k.program(x)
    else:
        with pytest.raises(pk.TypeRuleError, match=f"a register tile cannot hold {dtype}"):
            k.program(x)


UNARY = ["exp", "exp2", "log", "log2", "sqrt", "rsqrt", "rcp", "tanh", "sigmoid", "erf", "sin", "cos"]


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", [i32, pk.u32, pk.bool_], ids=str)
def test_maps_of_floats_refuse_the_rest(name: str, dtype: pk.types.DType) -> None:
    def k(x: X):
        getattr(pk, name)(warp.zeros(dtype, 16, 32))  #!

    says(refused(k), f"{name} takes floats, not rt<{dtype}, 16x32>", "x.to(pk.f32)")


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "max": pk.maximum,
    "min": pk.minimum,
    "and": lambda a, b: a & b,
    "shl": lambda a, b: a << b,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: (warp.zeros(f32, 16, 64), warp.zeros(f32, 32, 64)), "{}: rt<f32, 32x64> does not fit rt<f32, 16x64>"),
        (
            lambda: (warp.zeros(f32, 32, 64), pk.group(2).zeros(f32, 32, 64)),
            "{} mixes scopes: rt<f32, 32x64> and rt<f32, 32x64> over 2 warps",
        ),
        (lambda: (warp.zeros(f32, 16, 64), warp.zeros(i32, 16, 64)), "{} mixes f32 and i32"),
        (lambda: (warp.zeros(f32, 16, 64), "a"), "{} takes a register tile or vector, not 'a'"),
        (
            lambda: (warp.zeros(f32, 16, 64), pk.shared(pk.st(f32, 16, 64), count=2)),
            "{} takes a register tile or vector, not st<f32, 16x64>",
        ),
    ],
)
def test_pairs_that_do_not_go_together(name: str, make: Callable[[], Any], text: str) -> None:
    def k(x: X):
        a, b = make()
        OPERATORS[name](a, b)

    with pytest.raises(pk.TypeRuleError) as caught:
        pk.kernel(k).program(x)
    assert text.format(name) in caught.value.fact
