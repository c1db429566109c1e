"""Tiles that are timed where the user asks for it: the search, the file, and a call that uses them."""

import json
import logging
import math
import os

import pytest
import torch

pytest.importorskip("triton")

from l2t_fast.ops.triton import launching, tuning
from l2t_fast.ops.triton.tiles import INTERPRETER, TABLES, Class, Tile
from tests.ops.problems import assert_accurate, draw, draw_directions, solve

WHICH = Class("gradients", False, 64, 1024)
TABLE = TABLES["tf32"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_TIMED", {})
    monkeypatch.setattr(launching, "_PLANS", type(launching._PLANS)())
    return tmp_path / "l2t_fast"


def best_is(wanted: Tile, calls: list[Tile]):
    """Seconds that fall with the number of sizes a tile shares with the wanted one; others do not compile."""

    def seconds(table):
        tile = table.timed[WHICH]
        calls.append(tile)
        if tile.rows * tile.columns > 128 * 64:
            return math.inf
        return 1 + sum(abs(math.log2(own / best)) for own, best in zip(tile, wanted, strict=True))

    return seconds


@pytest.mark.parametrize(
    "wanted", [Tile(128, 64, 64, 16, 8, 3), Tile(16, 128, 64, 32, 4, 2), Tile(64, 64, 32, 64, 4, 4)]
)
def test_the_search_finds_the_fastest_and_keeps_it(folder, wanted):
    calls: list[Tile] = []
    table = tuning.tuned(TABLE, "a GPU", [WHICH], best_is(wanted, calls))
    assert table.choose("gradients", False, 50, 900) == wanted
    assert table.choose("gradients", False, 50, 2000) == TABLE.choose("gradients", False, 50, 2000)  # another class
    assert len(calls) == len(set(calls)) < 30
    tuning._TIMED.clear()  # another process
    again = tuning.tuned(TABLE, "a GPU", [WHICH], lambda table: pytest.fail("it is timed already"))
    assert again.timed == {WHICH: wanted}
    tuning.tuned(TABLE, "another GPU", [WHICH], best_is(wanted, calls))
    assert len(json.loads((folder / "triton_tiles.json").read_text())) == 2


def test_noise_changes_nothing():
    """A gain of one in a hundred is no reason."""
    own = TABLE.choose("gradients", False, 64, 1024)
    table = tuning.tuned(TABLE, "a GPU", [WHICH], lambda t: 1.0 if t.timed[WHICH] == own else 0.99)
    assert table.timed[WHICH] in (own, TABLE.tiles["gradients", False][-1]._replace(channels=64))


@pytest.mark.parametrize("table", [*TABLES.values(), INTERPRETER])
@pytest.mark.parametrize("second", [False, True])
def test_where_E_is_made_columns_are_no_fewer_than_a_step_of_the_sums_over_them(table, second):
    columns = min(tile.columns for tile in table.tiles["differences", second])
    assert columns >= max(tile.step for tile in table.tiles["gradients", second])


def test_where_nothing_compiles_the_table_stays(folder):
    table = tuning.tuned(TABLE, "a GPU", [WHICH], lambda table: math.inf)
    assert table.timed == {}
    assert not folder.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "{",
        "[" * 100_000,
        '{"KEY": 3}',
        '{"KEY": {"gradients 1 64 1024": [1, 2]}}',
        '{"KEY": {"gradients 1 64 1024": [16, 16, 64, 16, 4, "x"]}}',
        '{"KEY": {"gradients 1 64 1024": [16, 16, 0, 16, 4, 1]}}',  # no tile of this kernel
        '{"KEY": {"gradients 1 64 1024": [48, 16, 64, 16, 4, 1]}}',
        '{"KEY": {"gradients 1 64 1024": [16, 16, 64, 16, 4, 99]}}',
        '{"KEY": {"gradients one 64 1024": [16, 16, 64, 16, 4, 1]}}',
        '{"KEY": {"differences 1 64 1024": [16, 8, 0, 16, 4, 1]}}',  # fewer columns than tensor cores take
    ],
)
def test_a_damaged_file_counts_as_none(folder, content):
    file = tuning.TileFile("a GPU")
    folder.mkdir()
    file.path.write_text(content.replace("KEY", file._key))
    assert file.read() == {}
    file.add(WHICH, Tile(16, 16, 64, 16, 4, 1))
    assert file.read() == {WHICH: Tile(16, 16, 64, 16, 4, 1)}


def test_a_folder_that_cannot_be_written_costs_only_the_next_process(folder, caplog):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        tuning.tuned(TABLE, "a GPU", [WHICH], best_is(Tile(64, 64, 64, 32, 4, 4), []))
    assert "cannot be written" in caplog.text
    tuning.tuned(TABLE, "a GPU", [WHICH], lambda table: pytest.fail("this process knows"))


def test_a_call_uses_what_was_timed(triton_backend, folder, monkeypatch):
    """Other tiles than the table's, the same results to rounding; another batch tries nothing."""
    times = []

    def falling(run):
        if not (times and launching.INTERPRETED):  # where it takes its time
            try:
                run()
            except tuning.TritonError:  # as on a GPU, which does not hold every tile
                return math.inf
        times.append(1.0 / (1 + len(times)) if len(times) < 8 else 1.0)
        return times[-1]

    monkeypatch.setattr(tuning, "seconds_of", falling)
    monkeypatch.setattr(tuning, "_CHANGES", tuning._CHANGES[:3])  # all that there are take a GPU a minute to compile
    for setting, batch in (("0", 2), ("1", 2), ("1", 3)):
        if os.environ.get(tuning.ENVIRONMENT_VARIABLE) != setting:
            monkeypatch.setenv(tuning.ENVIRONMENT_VARIABLE, setting)
            launching._PLANS.clear()  # as in another process
        before = len(times)
        problem = draw([(5, 2, 2)], [(9, 3, 3)], [(0, 0)], batch=batch, dtype=torch.float32)
        problem = problem.map(lambda t: t.to(triton_backend.device))
        directions = draw_directions(problem)
        assert_accurate(solve(triton_backend.matching_loss, problem, directions), problem, directions)
        assert (len(times) > before) == (setting == "1" and batch == 2)
    (timed,) = tuning._TIMED.values()
    assert {which.kernel for which in timed} == {"differences", "gradients"}
    assert any(tile not in launching.INTERPRETER.tiles[which.kernel, which.second] for which, tile in timed.items())
