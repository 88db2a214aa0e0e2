"""Traces of every kind become the same requests; what is wrong in them is named by file and line."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from reasonscale.simulator import servegen as from_servegen
from reasonscale.simulator import synthetic
from reasonscale.simulator.traces import load
from reasonscale.simulator.workload import BadWorkload, between, scaled


def test_our_own_format_as_lines_and_as_csv_zipped_or_not(tmp_path):
    rows = [
        {"t": 0.5, "input": 10, "reasoning": 20, "answer": 5, "cls": "a"},
        {"t": 2.0, "input": 1, "reasoning": 0, "answer": 7},
    ]
    lines = tmp_path / "x.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    table = tmp_path / "x.csv.gz"
    with gzip.open(table, "wt") as file:
        file.write("t,input,reasoning,answer,cls\n0.5,10,20,5,a\n2.0,1,0,7,\n")
    for path in (lines, table):
        found = load(str(path))
        assert found.arrival_s.tolist() == [0.5, 2.0]
        assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([10, 1], [25, 7])
        assert sorted(found.classes) == ["a", "default"]


def test_azure_s_and_mooncake_s_formats(tmp_path):
    azure = tmp_path / "azure.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    found = load(str(azure))
    assert found.arrival_s == pytest.approx([0.0, 4.314579])
    assert found.output_tokens.tolist() == [44, 109]
    mooncake = tmp_path / "m.jsonl"
    mooncake.write_text('{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46]}\n')
    found = load(str(mooncake))
    assert (found.arrival_s.tolist(), found.prompt_tokens.tolist(), found.output_tokens.tolist()) == (
        [27.482],
        [6955],
        [52],
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"t": 1, "input": 5, "reasoning": 1}', "answer is missing"),
        ("no json", "is no JSON object"),
        ('{"t": 0.1, "input": 5, "reasoning": 1, "answer": 1}', "t goes back from 1 to 0.1"),
        (
            '{"t": 2, "input": -5, "reasoning": 1, "answer": 1}',
            "input was -5; must be a whole number from 0 to 10,000,000",
        ),
        ('{"t": 2, "input": 99999999, "reasoning": 1, "answer": 1}', "input was 99999999; must be"),
        ('{"t": "soon", "input": 5, "reasoning": 1, "answer": 1}', "t was 'soon'; must be a number of seconds"),
        ('{"t": NaN, "input": 5, "reasoning": 1, "answer": 1}', "t was nan; must be a number of seconds"),
        ('{"t": 2, "input": 1.5, "reasoning": 1, "answer": 1}', "input was 1.5; must be a whole number"),
        ('{"t": 2, "input": [1], "reasoning": 1, "answer": 1}', "input was [1]; must be a whole number"),
        ('{"timestamp": "x", "input_length": 1, "output_length": 1}', "timestamp was 'x'; must be a number of mill"),
        (
            '{"TIMESTAMP": "x", "ContextTokens": 1, "GeneratedTokens": 1}',
            "TIMESTAMP was 'x'; must be a time such as 2023",
        ),
    ],
)
def test_a_bad_row_is_left_out_and_named(tmp_path, row, said):
    path = tmp_path / "x.jsonl"
    good = '{"t": 1, "input": 5, "reasoning": 1, "answer": 1}'
    path.write_text(f"{good}\n{row}\n")
    found = load(str(path))
    assert len(found.arrival_s) == 1
    (line,) = found.skipped
    assert line.startswith(f"{path}: line 2: ")
    assert said in line


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2,5,1,1,a,7,8", "has 7 columns; the header has 5"),
        ("2,1.5,1,1,a", "input was '1.5'; must be a whole number"),
        ("2,5,1", "answer is missing; there are t, input, reasoning, answer, cls"),
    ],
)
def test_a_bad_row_of_a_table_is_left_out_and_named(tmp_path, row, said):
    path = tmp_path / "x.csv"
    path.write_text(f"t,input,reasoning,answer,cls\n1,5,1,1,a\n{row}\n")
    found = load(str(path))
    assert len(found.arrival_s) == 1
    (line,) = found.skipped
    assert line.startswith(f"{path}: line 3: {said}")


def test_a_trace_with_other_columns_says_which_it_has_and_which_are_wanted(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("t,inputs,think,answer\n1,5,1,1\n2,5,1,1\n")
    with pytest.raises(BadWorkload) as caught:
        load(str(path))
    assert str(caught.value) == (
        f"{path}: no row could be read; wanted are t, input, reasoning, answer (or Azure's or Mooncake's); line 2: input"
        " is missing; there are t, inputs, think, answer; did you mean input by inputs?"
    )


def test_a_trace_without_a_good_row_or_a_wrong_name_is_an_error(tmp_path):
    (tmp_path / "x.jsonl").write_text("nothing\n")
    with pytest.raises(BadWorkload, match="line 1: is no JSON object"):
        load(str(tmp_path / "x.jsonl"))
    with pytest.raises(BadWorkload, match="there are r1-day, cot-shift"):
        load("r1day")
    with pytest.raises(BadWorkload, match="holds no chunk-N"):
        load(str(tmp_path))


def servegen(folder, clients=6):
    for n in range(clients):
        rows = [f"{600 * i},{0.5 + 0.1 * n},1.0,{'Gamma' if n % 2 else 'Weibull'},1.0,1.0" for i in range(6)]
        (folder / f"chunk-{n}-trace.csv").write_text("\n".join(rows) + "\n")
        lengths = {
            "input_tokens": "{10: 0.5, 30: 0.5}",
            "output_tokens": f"{{{100 * (n + 1)}: 1.0}}",
            "reason_ratio": "{0.5: 1.0}",
        }
        (folder / f"chunk-{n}-dataset.json").write_text(json.dumps({"0": lengths}))
    return folder


def test_servegen_keeps_its_rate_its_lengths_and_its_clients_apart(tmp_path):
    found = from_servegen.sample(servegen(tmp_path))
    assert len(found.arrival_s) == pytest.approx(3600 * sum(0.5 + 0.1 * n for n in range(6)), rel=0.1)
    assert found.classes == ("chunk-5", "chunk-4", "chunk-3", "other")
    assert set(found.output_tokens[found.cls == 0]) == {600}
    assert found.prompt_tokens.mean() == pytest.approx(20, rel=0.05)
    assert (found.reasoning_tokens == found.output_tokens // 2).all()
    again = from_servegen.sample(tmp_path)
    assert (again.arrival_s == found.arrival_s).all()


def test_lengths_may_come_from_another_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    servegen(tmp_path / "a", 2)
    for path in (tmp_path / "a").glob("*.json"):
        path.unlink()
    with pytest.raises(BadWorkload, match=r"chunk-0-dataset\.json is missing"):
        from_servegen.sample(tmp_path / "a")
    found = from_servegen.sample(tmp_path / "a", lengths=servegen(tmp_path / "b"))
    weights = np.array([0.5 + 0.1 * n for n in range(6)])
    assert found.output_tokens.mean() == pytest.approx((weights * 100 * np.arange(1, 7)).sum() / weights.sum(), rel=0.1)


@pytest.mark.parametrize("name", [n for n in synthetic.BUILT_IN if n != "r1-day"])
def test_built_in_workloads_are_the_same_for_a_seed_and_in_order(name):
    one, two, other = load(name), load(name), load(name, seed=2)
    known = one.arrival_s >= 0
    assert (np.diff(one.arrival_s[known]) >= 0).all()
    assert (one.arrival_s == two.arrival_s).all()
    assert (one.output_tokens >= 1).all()
    assert (one.prompt_tokens >= 1).all()
    assert len(other.arrival_s) != len(one.arrival_s) or (other.prompt_tokens != one.prompt_tokens).any()


def test_the_shift_keeps_the_rate_and_makes_chains_four_times_as_long():
    found = load("cot-shift")
    early, late = found.arrival_s < 3600.0, found.arrival_s > 3900.0
    assert early.sum() / 3600.0 == pytest.approx(late.sum() / 3300.0, rel=0.03)
    assert found.output_tokens[late].mean() == pytest.approx(4 * found.output_tokens[early].mean(), rel=0.05)


def test_agents_wait_for_their_answers():
    found = load("agents")
    starts = found.arrival_s >= 0
    assert starts.sum() == 900
    assert sorted(found.follower[found.follower >= 0]) == list(range(900, len(found.arrival_s)))


def test_scale_and_time_scale_and_a_stretch_of_time():
    found = load("rag")
    twice, half = scaled(found, rate=2.0), scaled(found, rate=0.5)
    assert len(twice.arrival_s) == 2 * len(found.arrival_s)
    assert len(half.arrival_s) == pytest.approx(0.5 * len(found.arrival_s), rel=0.1)
    assert scaled(found, time=3.0).arrival_s[-1] == pytest.approx(3.0 * found.arrival_s[-1])
    part = between(found, 600.0, 1200.0)
    assert part.arrival_s[0] >= 0.0
    assert part.arrival_s[-1] < 600.0
    with pytest.raises(BadWorkload, match="holds no request from"):
        between(found, 1e6, 2e6)


def _steps(work):
    """Return what each user sends: prompts and outputs of the steps, with what is thought between them."""
    users = []
    for first in np.flatnonzero(work.arrival_s >= 0.0):
        r, steps = int(first), []
        while r >= 0:
            steps.append((int(work.prompt_tokens[r]), int(work.output_tokens[r]), float(work.think_s[r])))
            r = int(work.follower[r])
        users.append(tuple(steps))
    return users


def test_a_closed_loop_is_scaled_and_cut_by_whole_users():
    found = load("agents")
    users = _steps(found)
    for times in (0.4, 1.0, 2.0, 2.5):
        some = scaled(found, rate=times)
        assert len(some.arrival_s) == sum(len(steps) for steps in _steps(some))
        assert set(_steps(some)) <= set(users)
        assert len(_steps(some)) == pytest.approx(times * 900, rel=0.1)
        known = some.arrival_s[some.arrival_s >= 0.0]
        assert (np.diff(known) >= 0.0).all()
        assert (some.arrival_s[: len(known)] >= 0.0).all()
    part = between(found, 600.0, 1200.0)
    assert _steps(part) == [steps for steps, t in zip(users, found.arrival_s, strict=False) if 600.0 <= t < 1200.0]
    whole = between(found, 0.0, float("inf"))
    for field in ("arrival_s", "prompt_tokens", "follower", "think_s"):
        assert (getattr(whole, field) == getattr(found, field)).all()
