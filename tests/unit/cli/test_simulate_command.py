"""`reasonscale simulate`: its figures, and what it says of wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reasonscale.cli.main import run

GPU = ("--profile", "qwen2-32b-h200")


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "mine.csv"
    rows = [f"{i * 0.5},{50 + i % 7},{300 + 10 * (i % 40)},60" for i in range(400)]
    path.write_text("t,input,reasoning,answer\n" + "\n".join(rows) + "\n")
    return str(path)


def test_its_json_has_the_keys_that_scripts_read(trace, tmp_path, capsys):
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    assert run(["simulate", "--trace", trace, *GPU, "--json", str(out), "--plot", str(plot), "--gpu-price", "2"]) == 0
    found = json.loads(out.read_text())
    assert found["requests"] == 400
    for key in ("attainment", "attainment_ttft", "attainment_tpot", "attainment_ttfat", "attainment_e2e"):
        assert 0.0 <= found[key] <= 1.0
    for key in ("gpu_hours", "peak_replicas", "preempted", "scale_ups", "scale_downs", "wall_s"):
        assert found[key] >= 0
    for key in ("ttft_s", "tpot_ms", "e2e_s"):
        assert 0.0 < found[key]["p50"] <= found[key]["p95"] <= found[key]["p99"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "met every objective" in capsys.readouterr().out


def test_the_plot_s_legend_lies_beside_the_curves(trace, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    assert run(["simulate", "--trace", trace, *GPU, "--plot", str(tmp_path / "out.png")]) == 0
    monkeypatch.undo()
    (figure,) = drawn
    (legend,) = figure.legends
    assert all(axis.get_legend() is None for axis in figure.axes)
    assert not any(legend.get_window_extent().overlaps(axis.get_tightbbox()) for axis in figure.axes)
    assert figure.axes[1].get_xlabel() == "minutes"
    plt.close(figure)


@pytest.mark.parametrize("policy", ["static:2", "lower-bound", "ray-serve"])
def test_other_policies_and_the_bound(trace, policy, tmp_path):
    out = tmp_path / "out.json"
    assert run(["simulate", "--trace", trace, *GPU, "--policy", policy, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["gpu_hours"] > 0


def test_the_same_seed_writes_the_same_bytes(trace, tmp_path):
    texts = []
    for name in ("a", "b"):
        assert run(["simulate", "--trace", trace, *GPU, "--seed", "7", "--json", str(tmp_path / name)]) == 0
        found = json.loads((tmp_path / name).read_text())
        found.pop("wall_s")  # the one figure that is the machine's
        texts.append(json.dumps(found))
    assert texts[0] == texts[1]


def test_list_names_everything(capsys):
    assert run(["simulate", "--list"]) == 0
    said = capsys.readouterr().out
    for name in ("reasonscale", "knative-kpa", "qwen2-7b-h200", "cot-shift", "static:N", "clairvoyant", "informed"):
        assert name in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--trace is missing; built in are r1-day"),
        (("--trace", "rag"), "--profile is missing; there are qwen2"),
        (("--trace", "nothing.csv", *GPU), "trace 'nothing.csv': no such name"),
        (("--trace", "rag", "--profile", "a100"), "profile 'a100': no such name or file"),
        (("--trace", "rag", *GPU, "--policy", "best"), "policy 'best': no such name; there are reasonscale"),
        (("--trace", "rag", *GPU, "--replicas", "5:2"), "--replicas was '5:2'; it must be MIN:MAX"),
        (("--trace", "rag", *GPU, "--scrape", "0.1"), "--scrape was 0.1; it must be from 1 to 86400"),
        (("--trace", "rag", *GPU, "--scale", "0"), "--scale was 0; it must be greater than 0 and at most 1000"),
        (("--trace", "rag", *GPU, "--router", "best"), "--router was 'best'; there are least-kv"),
        (("--trace", "rag", *GPU, "--params", "none.json"), "none.json: there is no such file"),
        (("--trace", "rag", *GPU, "--time-scale", "nan"), "--time-scale was nan; it must be greater than 0"),
        (("--trace", "rag", *GPU, "--scale", "inf"), "--scale was inf; it must be greater than 0"),
        (("--trace", "rag", *GPU, "--seed", "-1"), "--seed was -1; it must be 0 or more"),
        (("--trace", "rag", *GPU, "--start", "9", "--end", "9"), "--end was 9; it must be greater than 9"),
        (("--trace", "rag", *GPU, "--gpu-price", "-2"), "--gpu-price was -2; it must be 0 or more"),
        (("--trace", "rag", *GPU, "--plot", "x.foo"), "--plot was x.foo; it must end with .png"),
        (("--trace", "rag", *GPU, "--plot", "/nodir/x.png"), "--plot was /nodir/x.png; there is no folder /nodir"),
        (("--trace", "rag", *GPU, "--json", "/nodir/x"), "--json was /nodir/x; there is no folder /nodir"),
        (("--trace", "rag", *GPU, "--json", "/proc/x"), "--json was /proc/x; it can't be written"),
    ],
)
def test_wrong_input_is_said_in_one_line(arguments, said, capsys):
    assert run(["simulate", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_bad_rows_are_counted_and_shown(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    good = "\n".join(json.dumps({"t": float(i), "input": 5, "reasoning": 9, "answer": 9}) for i in range(20))
    path.write_text(good + "\n" + "oops\n" * 8)
    out = tmp_path / "out.json"
    assert run(["simulate", "--trace", str(path), *GPU, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["rows_left_out"] == 8
    error = capsys.readouterr().err
    assert "line 21: is no JSON object; left out" in error
    assert "... 8 rows left out in all" in error


def test_the_chunk_of_a_step_is_the_one_asked_for_or_what_the_objectives_choose(tmp_path, capsys):
    path, out = tmp_path / "t.jsonl", tmp_path / "out.json"
    rows = [{"t": i, "input": 9000, "reasoning": 200, "answer": 20} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def played(*more: str) -> int:
        return run(["simulate", "--trace", str(path), *GPU, "--json", str(out), *more])

    assert played() == 0
    usual = json.loads(out.read_text())["tpot_ms"]["p95"]
    assert played("--max-num-batched-tokens", "objectives") == 0
    assert json.loads(out.read_text())["tpot_ms"]["p95"] < usual
    assert "max_num_batched_tokens 384" in capsys.readouterr().err
    assert played("--max-num-batched-tokens", "4k") == 2
    assert "--max-num-batched-tokens was '4k'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ('{"target": "x"}', "policy kubeai: target was 'x'; it must be a number, greater than 0, such as 100"),
        ('{"target": -1}', "policy kubeai: target was -1; it must be a number, greater than 0"),
        ('{"target": true}', "policy kubeai: target was True; it must be a number"),
        ('{"window_s": NaN}', "policy kubeai: window_s was nan; it must be a number, 0 or more"),
    ],
)
def test_a_parameter_that_can_not_be_is_refused_before_the_trace_is_read(params, said, tmp_path, capsys):
    path = tmp_path / "params.json"
    path.write_text(params)
    argv = ["simulate", "--trace", "rag", *GPU, "--policy", "kubeai", "--params", str(path)]
    assert run(argv) == 2
    assert said in capsys.readouterr().err


def test_the_trace_is_not_overwritten_by_the_figures_of_it(trace, capsys):
    before = Path(trace).read_text()
    assert run(["simulate", "--trace", trace, *GPU, "--json", trace]) == 2
    assert "it is what is read" in capsys.readouterr().err
    assert Path(trace).read_text() == before


def test_help_says_what_is_required(capsys):
    assert run(["simulate", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--trace STR Required:" in said
    assert "--profile STR Required:" in said


def test_who_is_too_long_and_who_came_too_late_are_told_apart(tmp_path, capsys):
    path, out = tmp_path / "t.jsonl", tmp_path / "out.json"
    # Seats for 256, and chains of more than a minute.
    crowd = [{"t": 0.1 * i, "input": 500, "reasoning": 2000, "answer": 20} for i in range(2000)]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [{"t": 0, "input": 300_000, "reasoning": 9, "answer": 9}, *crowd])
    )
    assert run(["simulate", "--trace", str(path), *GPU, "--replicas", "1:1", "--json", str(out)]) == 0
    figures, text = json.loads(out.read_text()), capsys.readouterr().out
    assert figures["refused_too_long"] == 1
    late = figures["refused"] - 1
    assert late > 100
    assert "refused 1 requests that are longer than a replica's KV cache" in text
    assert f"refused {late:,} requests that could not have started in time" in text
