"""The command line: exit codes 0, 1 and 2, and words instead of traces."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from reasonscale.cli.main import COMMANDS, run
from reasonscale.load.trace import read_trace

EXAMPLE = Path(__file__).parents[3] / "examples" / "micro-reasoner.yaml"


IMAGES = ("--image", "i", "--code-image", "j")
# Ports of the system's choice: what is wrong is said before either is listened on, or after.
OPERATOR = ("operator", *IMAGES, "--health-port", "0", "--metrics-port", "0")


def output(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_alone_it_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    text = output(capsys)
    assert all(name in text for name in COMMANDS)


def test_a_misspelt_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["vlidate"]) == 2
    assert "'vlidate' is no command; did you mean validate?" in output(capsys)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert "Usage: reasonscale" in output(capsys)


def test_an_unknown_option_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "--nonsense"]) == 2
    assert "nonsense" in output(capsys)


def test_validate_shows_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(EXAMPLE)]) == 0
    said = output(capsys)
    assert "micro-reasoner is valid" in said
    assert "max_num_seqs 8, max_num_batched_tokens" in said
    assert "start within 900 s, drain up to 600 s, rollout InPlace" in said
    assert "1 GPU each" in said


def test_validate_reads_what_is_piped_in() -> None:
    code = "from reasonscale.cli.main import run; raise SystemExit(run(['validate', '-']))"
    piped = (EXAMPLE.parent / "qwq-32b.yaml").read_bytes()
    done = subprocess.run([sys.executable, "-c", code], input=piped, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"qwq-32b is valid" in done.stdout


def test_validate_names_file_field_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(
        "apiVersion: reasonscale.io/v1alpha1\nkind: ReasoningModel\nmetadata: {name: m}\nspec: {model: {uri: 'hf://a/b'}, scaling: {minReplicas: 2}}\n"
    )
    assert run(["validate", str(file)]) == 2
    assert f"{file}: spec.scaling.minReplicas: was 2; it exceeds maxReplicas 1" in output(capsys)


def test_validate_and_up_want_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate"]) == 2
    assert run(["up"]) == 2
    assert "name at least one file" in output(capsys)


def test_up_says_at_once_that_its_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert run(["up", str(EXAMPLE), "--port", str(port), "--status-port", "0"]) == 2
        assert f"port {port} is taken already" in output(capsys)
        assert run(["demo", "--port", str(port)]) == 2


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["load", "--workload", "nonsense"], 2, "there are sums, collatz, mixed, cot-shift"),
        (["load", "--rate", "0"], 2, "must be greater than 0"),
        (["load", "--rate", "nan"], 2, "must be greater than 0"),
        (["load", "--duration", "inf"], 2, "must be greater than 0"),
        (["load", "--rate", "1e9"], 2, "at most 1,000,000"),
        (["load", "--workload", "[/a]"], 2, "--workload was '[/a]'; there are sums"),
        (["load", "--trace", "/tmp/[/x].jsonl"], 2, "/tmp/[/x].jsonl: there is no such file"),
        (["load", "--url", "http://127.0.0.1:9/[/a]"], 1, "answers at http://127.0.0.1:9/[/a]"),
        (["top", "--url", "http://127.0.0.1:9/[/a]"], 1, "answers at http://127.0.0.1:9/[/a]"),
        (["record", "--log", "[/x].jsonl", "-o", "x"], 2, "[/x].jsonl: there is no such file"),
        (["load", "--trace", "none.jsonl"], 2, "none.jsonl: there is no such file"),
        (["load", "--url", "http://127.0.0.1:9"], 1, "no OpenAI endpoint answers at http://127.0.0.1:9"),
        (["top", "--url", "http://127.0.0.1:9"], 1, "nothing answers at http://127.0.0.1:9"),
        (["chat", "hello", "--url", "http://127.0.0.1:9"], 1, "nothing answers at http://127.0.0.1:9"),
        (["record", "--log", "none.jsonl", "-o", "x"], 2, "none.jsonl: there is no such file"),
        (["demo", "--seconds", "3"], 2, "at least 60 are needed"),
        (["demo", "--seconds", "nan"], 2, "at least 60 are needed"),
        (["demo", "--port", "70000"], 2, "--port was 70000; must lie between 1 and 65535"),
        (["top", "--url", "foo"], 2, "--url was 'foo'; it must be http://host:port"),
        (["load", "--url", "nonsense"], 2, "--url was 'nonsense'; it must be http://host:port"),
        (["chat", "hi", "--url", "ftp://x"], 2, "--url was 'ftp://x'; it must be http://host:port"),
        (["chat", "hi", "--effort", "hihg"], 2, "--effort was 'hihg'; did you mean high? there are none, minimal"),
        (["chat", "hi", "--budget", "-5"], 2, "--budget was -5; it must be 0 or more"),
        (["load", "--report", "/nodir/x"], 2, "--report was /nodir/x; there is no folder /nodir"),
        (["plan", str(EXAMPLE), "--cold-start", "-3"], 2, "--cold-start was -3; it must be from 0 to 86400"),
        (["plan", str(EXAMPLE), "--json", "/nodir/x"], 2, "--json was /nodir/x; there is no folder /nodir"),
        (["plan", str(EXAMPLE), "--json", str(EXAMPLE)], 2, "it is what is read"),
        (["profile", "fit", str(EXAMPLE), "--out", "/nodir/x"], 2, "--out was /nodir/x; there is no folder /nodir"),
        (["crds", "--out", "/proc/x"], 2, "--out was /proc/x; it can't be written to"),
        ([*OPERATOR, "--kubeconfig", str(EXAMPLE)], 2, f"--kubeconfig was {EXAMPLE}; it must be a kubeconfig file"),
        (
            [*OPERATOR, "--prometheus-url", "prometheus:9090"],
            2,
            "--prometheus-url was 'prometheus:9090'; it must be http",
        ),
        ([*OPERATOR, "--namespace", "B@D"], 2, "--namespace was 'B@D'; it must be at most 63 of a-z"),
        (["render", str(EXAMPLE), *IMAGES, "--namespace", "B@D"], 2, "--namespace was 'B@D'; it must be at most 63"),
        (
            ["render", str(EXAMPLE), *IMAGES, "--redis-address", "foo"],
            2,
            "--redis-address was 'foo'; it must be host:port",
        ),
        (["render", str(EXAMPLE), "--image=", "--code-image", "j"], 2, "--image was ''; it must be an image's name"),
        (["render", str(EXAMPLE), str(EXAMPLE), *IMAGES], 2, "metadata.name was micro-reasoner"),
        (["validate", str(EXAMPLE.parent)], 2, f"{EXAMPLE.parent}: is a folder; name the files in it"),
    ],
)
def test_what_can_not_be_is_said_in_words(
    argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == code
    assert message in output(capsys)


def test_the_operator_says_that_no_api_server_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, named = tmp_path / "config", {"cluster": "c", "user": "u"}
    file.write_text(
        json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "a", "contexts": [{"name": "a", "context": named}],
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}], "users": [{"name": "u", "user": {}}],
        })
    )  # fmt: skip
    assert run([*OPERATOR, "--kubeconfig", str(file)]) == 1
    said = output(capsys)
    assert "operator: no API server answers at http://127.0.0.1:9" in said
    assert "fault of ours" not in said


def test_record_makes_a_trace_without_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "access.jsonl", tmp_path / "t.jsonl.gz"
    row = {
        "time": 100.0,
        "prompt_tokens": 5,
        "reasoning_tokens": 7,
        "answer_tokens": 2,
        "status": 200,
        "cls": "low",
        "id": "x",
    }
    rows = [row | {"time": 103.5}, row, row | {"status": 429}]
    log.write_text("".join(json.dumps(r) + "\n" for r in rows) + "not json\n")
    assert run(["record", "--log", str(log), "-o", str(out)]) == 1
    assert "line 4: is no JSON object; left out" in output(capsys)
    made = [json.loads(line) for line in gzip.decompress(out.read_bytes()).splitlines()]
    assert made == [
        {"t": 0.0, "input": 5, "reasoning": 7, "answer": 2, "cls": "low"},
        {"t": 3.5, "input": 5, "reasoning": 7, "answer": 2, "cls": "low"},
    ]


def test_record_says_of_a_binary_file_that_it_is_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "access.jsonl"
    log.write_bytes(b'{"time": 1}\n\xff\xfe')
    assert run(["record", "--log", str(log), "-o", str(tmp_path / "t")]) == 2
    assert f"{log}: can't be read: it is not UTF-8: invalid start byte" in output(capsys)


def test_record_leaves_out_what_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "access.jsonl"
    log.write_text(
        '{"time": 1, "prompt_tokens": 1e999, "reasoning_tokens": 1, "answer_tokens": 1, "status": 200}\n'
        '{"time": 1, "prompt_tokens": 1, "reasoning_tokens": 1, "answer_tokens": 1, "status": 200}\n'
    )
    assert run(["record", "--log", str(log), "-o", str(tmp_path / "t")]) == 1
    assert "line 1: prompt_tokens was inf; must be a whole number from 0 to 10,000,000; left out" in output(capsys)


ENTRY = {"time": 1.0, "prompt_tokens": 5, "reasoning_tokens": 7, "answer_tokens": 2, "status": 200, "model": "a"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_tokens": -10}, "prompt_tokens was -10; must be a whole number from 0 to 10,000,000"),
        ({"reasoning_tokens": 1.5}, "reasoning_tokens was 1.5; must be a whole number"),
        ({"answer_tokens": True}, "answer_tokens was True; must be a whole number"),
        ({"time": None}, "time is missing; there are time, prompt_tokens"),
        ({"time": "noon"}, "time was 'noon'; must be seconds since 1970"),
    ],
)
def test_record_writes_no_row_that_a_reader_refuses(
    change: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, made = tmp_path / "access.jsonl", tmp_path / "t.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in (ENTRY | change, ENTRY)))
    assert run(["record", "--log", str(log), "-o", str(made)]) == 1
    assert f"{log}: line 1: {said}" in output(capsys)
    assert len(read_trace(made)) == 1


def test_record_never_overwrites_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, link = tmp_path / "access.jsonl", tmp_path / "link"
    log.write_text(json.dumps(ENTRY) + "\n")
    link.symlink_to(log)
    for out in (log, link):
        assert run(["record", "--log", str(log), "-o", str(out)]) == 2
        assert f"--output was {out}; it is what is read" in output(capsys)
    assert log.read_text() == json.dumps(ENTRY) + "\n"


def test_record_takes_one_model_of_a_log_that_several_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, made = tmp_path / "access.jsonl", tmp_path / "t.jsonl"
    rows = [ENTRY, ENTRY | {"model": "b", "prompt_tokens": 9}, ENTRY]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["record", "--log", str(log), "-o", str(made)]
    assert run(argv) == 2
    assert "--model is missing; the log has requests to a (2), b (1)" in output(capsys)
    assert not made.exists()
    assert run([*argv, "--model", "c"]) == 2
    assert "--model was 'c'; there are a, b" in output(capsys)
    assert run([*argv, "--model", "b"]) == 0
    assert "2 of other models" in output(capsys)
    assert [row[1] for row in read_trace(made)] == [9]


def test_demo_without_its_example_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REASONSCALE_EXAMPLES", str(tmp_path))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert run(["demo", "--port", str(port)]) == 2
    assert f"{tmp_path / 'micro-reasoner.yaml'}: there is no such file" in output(capsys)


def test_validate_imports_no_engine() -> None:
    code = "import sys; from reasonscale.cli.main import run; run(['validate', sys.argv[1]]); print([m for m in ('ray', 'vllm', 'torch', 'numba') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code, str(EXAMPLE)], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_relative_path_of_a_resource_that_is_piped_in_starts_from_the_current_folder(
    command: str, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}')
    text = """apiVersion: reasonscale.io/v1alpha1
kind: ReasoningModel
metadata: {name: piped}
spec:
  model: {uri: "file://weights"}
"""
    (tmp_path / "m.yaml").write_text(text)

    def said(name: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "reasonscale.cli.main", command, name], input=text, text=True, capture_output=True, cwd=tmp_path
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).replace("/dev/stdin", "m.yaml")

    piped = said("-")
    assert piped == said("m.yaml")
    assert command == "plan" or (str(weights) in piped[1] and "parser qwen3" in piped[1])
