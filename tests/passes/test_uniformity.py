"""Collectives where only a part of their scope may come."""

from collections.abc import Callable
from typing import Any

import pytest

import pykittens as pk
from pykittens import block, f32, i32, warp
from tests.expecting import X, refused, says, x


def sync_under_warp(x: X):
    with pk.when(warp.index == 0):
        block.sync()  #!


def sync_under_variable(x: X):
    v = pk.var(i32, 0)
    with pk.when(warp.index == 1):
        v[:] = 1
    with pk.when(v == 1):
        pk.group(2).sync()  #!


def tile_in_a_divergent_loop(x: X):
    for _ in pk.range(warp.index):
        block.zeros(f32, 64, 64)  #!


def sync_in_a_divergent_while(x: X):
    v = pk.var(i32, 0)
    for _ in pk.loop():
        block.sync()  #!
        v += warp.index
        pk.break_if(v > 6)


def sync_under_a_break_under_a_branch(x: X):
    v = pk.var(i32, 0)
    for _ in pk.loop():
        block.sync()  #!
        v += 1
        with pk.when(warp.index == 1):
            pk.break_if(v > 6)
        pk.break_if(v > 9)


def sync_under_what_a_warp_found(x: X):
    peak = warp.load(x, (warp.index, 0), rows=16).row_max().max()
    with pk.when(peak > 1.0):
        block.sync()  #!


def sync_under_a_loaded_number(x: X):
    n = x[warp.index, 3]
    with pk.when(n > 1.0):
        block.load_into(pk.shared(pk.st(f32, 16, 64)), x, (0, 0))  #!


def sync_in_a_role(x: X):
    with pk.role("a", warps=4), pk.when(warp.index == 1):
        block.sync()  #!


def sync_misaligned(x: X):
    with pk.when(pk.group(2).index == 0):
        block.sync()  #!


@pytest.mark.parametrize(
    "kernel",
    [
        sync_under_warp,
        sync_under_variable,
        tile_in_a_divergent_loop,
        sync_in_a_divergent_while,
        sync_under_a_break_under_a_branch,
        sync_under_what_a_warp_found,
        sync_under_a_loaded_number,
        sync_in_a_role,
        sync_misaligned,
    ],
)
def test_collectives_under_a_divergent_branch(kernel: Callable[..., Any]) -> None:
    error = refused(kernel)
    says(error, "which may differ between the warps of a", "move it out of there")
    assert "the condition is at" in error.also and error.also["the condition is at"]


def test_the_cluster_meets_in_all_of_its_blocks() -> None:
    def k(x: X):
        with pk.when(pk.block_index.x == 0):
            pk.cluster.sync()  #!

    says(refused(k), "inside a branch on block_index.x == 0, which may differ between the blocks of its cluster")


def test_collectives_where_all_come() -> None:
    @pk.kernel(warps=8)
    def k(x: X, n: i32):
        v, total = pk.var(i32, 0), pk.var(f32, 0.0)
        with pk.when(pk.block_index.x * 3 + x.rows > n):
            block.sync()
        with pk.when(pk.group(4).index == 1):
            pk.group(4).sync()
            pk.group(2).sync()
        for i in pk.range(n):
            v += i
            total += warp.load(x, (i, 0), rows=16).row_max().max()  # every warp loads the same
        with pk.when(v > 4):
            block.sync()
        with pk.when(total > 4.0):
            block.sync()
        with pk.when(x[0, n] > 4.0):
            block.sync()
        for _ in pk.loop():
            block.sync()
            v += 1
            pk.break_if(v > n)
        with pk.when(warp.index == 0):
            warp.sync()
            v[:] = 0  # from here on it differs

    k.program(x, 3)


def test_collectives_in_roles() -> None:
    @pk.kernel(warps=8)
    def k(x: X):
        with pk.role("a", warps=2):
            block.sync()
        with pk.role("b", warps=6):
            with pk.when(pk.group(2).index == 0):
                pk.group(2).sync()
            with pk.when(pk.group(3).index == 0):
                pk.group(3).sync()
            with pk.when(pk.group(6).index == 0):  # the whole role: always 0
                block.sync()

    k.program(x)
