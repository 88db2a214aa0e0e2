"""Traces are read or made; a bad row is named by file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.demo.tasks import answer_to
from reasonscale.load.rows import BadTrace
from reasonscale.load.trace import SHIFT_BACK, SHIFT_FROM, WORKLOADS, from_trace, read_trace, workload

ROW = '{"t": %s, "input": 10, "reasoning": 20, "answer": 3, "cls": "a"}\n'


def test_json_lines_csv_and_gz_read_alike(tmp_path: Path) -> None:
    plain, packed, table = tmp_path / "t.jsonl", tmp_path / "t.jsonl.gz", tmp_path / "t.csv"
    text = ROW % 0 + ROW % 1.5
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    table.write_text("t,input,reasoning,answer,cls\n0,10,20,3,a\n1.5,10,20,3,a\n")
    assert (
        read_trace(plain) == read_trace(packed) == read_trace(table) == [(0.0, 10, 20, 3, "a"), (1.5, 10, 20, 3, "a")]
    )
    assert [(p.t, p.max_tokens) for p in from_trace(plain)] == [(0.0, 23), (1.5, 23)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no request"),
        ("{", "line 1: is no JSON object"),
        ("3\n", "line 1: is no JSON object"),
        (ROW % 0 + '{"t": 1}\n', "line 2: input is missing; there are t"),
        (ROW % 5 + ROW % 1, "line 2: t goes back from 5 to 1"),
        (ROW.replace("20", "-1") % 0, "line 1: reasoning was -1; must be a whole number from 0 to 10,000,000"),
        (ROW % "1e999", "line 1: t was inf; must be a number of seconds"),
        (ROW % "NaN", "line 1: t was nan; must be a number of seconds"),
        (ROW.replace("20", "1e999") % 0, "line 1: reasoning was inf; must be a whole number"),
        ("[" * 100_000 + "\n", "line 1: is no JSON"),
        (ROW.replace("20", '"many"') % 0, "line 1: reasoning was 'many'; must be a whole number"),
        (ROW.replace("20", "1.5") % 0, "line 1: reasoning was 1.5; must be a whole number"),
    ],
)
def test_a_bad_trace_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(text)
    with pytest.raises(BadTrace) as caught:
        read_trace(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_a_packed_trace_that_is_damaged_is_said(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl.gz"
    packed = bytearray(gzip.compress(b"".join((ROW % i).encode() for i in range(200))))
    packed[40:60] = bytes(20)
    file.write_bytes(packed)
    with pytest.raises(BadTrace, match=r"can't be read|is no JSON"):
        read_trace(file)


def test_a_trace_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="there is no such file"):
        read_trace(tmp_path / "none.jsonl")


@given(st.sampled_from(sorted(WORKLOADS)), st.integers(0, 99))
def test_a_workload_is_in_order_and_knows_its_answers(name: str, seed: int) -> None:
    plans = workload(name, 0.5, 60, seed)
    assert len(plans) == 30
    assert plans == workload(name, 0.5, 60, seed)
    assert [p.t for p in plans] == sorted(p.t for p in plans)
    assert all(answer_to(p.question) == p.answer for p in plans)


def test_the_shifts_rate_stays_while_its_chains_grow() -> None:
    plans = workload("cot-shift", 1.0, 400, 3)
    long = [p.t / 400 for p in plans if p.question.startswith("collatz")]
    assert min(long) >= SHIFT_FROM
    assert max(long) <= SHIFT_BACK
    per_minute = [sum(1 for p in plans if i * 50 <= p.t < i * 50 + 50) for i in range(8)]
    assert max(per_minute) - min(per_minute) <= 2
