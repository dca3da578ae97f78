"""In how many orders a program runs whose results depend on it."""

from __future__ import annotations

import pytest

from pykittens.sim.orders import FEWEST, LONG, left_to_run, run_orders


@pytest.mark.parametrize("seed", (None, 1, 4))
def test_long_runs_are_repeated_less_often(seed: int | None) -> None:
    """Backwards and by lot, and never in the order that has been run."""
    orders = run_orders(2, 100, True, False, seed)
    assert left_to_run(orders, LONG) == orders[1:]
    rest = left_to_run(orders, LONG + 1)
    assert set(map(id, rest)) <= set(map(id, orders[1:])) and len(rest) < len(orders) - 1
    assert any(x.descending for x in rest) and sum(x.shuffle is not None for x in rest) == FEWEST


def test_what_no_order_changes_runs_once() -> None:
    assert left_to_run(run_orders(200, 100, False, False, None), 10**9) == []
