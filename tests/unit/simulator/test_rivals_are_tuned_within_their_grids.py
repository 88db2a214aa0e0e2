"""What the benchmark says of its rivals' tuning is so."""

import json
from math import prod

import pytest
from bench.autoscalers import GRIDS, TUNED, ends

from reasonscale.simulator import policies

FOUND = json.loads(TUNED.read_text())


def test_every_rival_has_a_grid_and_is_tuned():
    assert set(GRIDS) == set(policies.names()) - {"reasonscale"} == set(FOUND["params"]) == set(FOUND["report"])


@pytest.mark.parametrize("rival", GRIDS)
def test_a_grid_has_twenty_points_and_the_chosen_one_is_of_them(rival):
    grid, point = GRIDS[rival], FOUND["params"][rival]
    assert prod(map(len, grid.values())) == FOUND["report"][rival]["points"] >= 20
    assert point.keys() == grid.keys()
    assert all(point[k] in grid[k] for k in grid)


@pytest.mark.parametrize("rival", GRIDS)
def test_an_optimum_at_its_grids_edge_is_named(rival):
    edge, limit = ends(rival, FOUND["params"][rival])
    assert (edge, limit) == (FOUND["report"][rival]["at_the_edge"], FOUND["report"][rival]["at_a_limit"])


def test_an_end_of_two_values_is_an_edge_and_a_limit_of_the_rule_is_none(monkeypatch):
    monkeypatch.setitem(GRIDS, "hpa", {"target": [16, 32], "down_window_s": [0.0, 15.0, 30.0]})
    assert ends("hpa", {"target": 16, "down_window_s": 15.0}) == (["target"], {})
    assert ends("hpa", {"target": 32, "down_window_s": 0.0}) == (["target"], {"down_window_s": "no window"})
