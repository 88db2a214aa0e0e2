"""Two resources of one name in a file are refused: in a cluster the last would replace the others."""

from __future__ import annotations

import pytest

from reasonscale.cli.main import run

ONE = """apiVersion: reasonscale.io/v1alpha1
kind: ReasoningModel
metadata: {name: twin}
spec:
  model: {uri: hf://Qwen/QwQ-32B}
  parallelism: {tensor: 2}
"""


@pytest.mark.parametrize("command", [("validate",), ("plan",), ("render", "--image", "i", "--code-image", "j")])
def test_a_name_that_stands_twice_in_a_file_is_refused_by_every_command(command, tmp_path, capsys):
    path = tmp_path / "two.yaml"
    path.write_text(ONE + "---\n" + ONE)
    assert run([*command, str(path)]) == 2
    said = capsys.readouterr()
    assert "metadata.name: twin stands 2 times" in said.err
    assert not said.out


def test_two_names_in_a_file_are_valid(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(ONE + "---\n" + ONE.replace("twin", "other"))
    assert run(["validate", str(path)]) == 0
