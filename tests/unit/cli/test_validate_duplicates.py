"""Two resources of one name in a file are refused: in a cluster the last would replace the others."""

from __future__ import annotations

from reasonscale.cli.main import run

ONE = """apiVersion: reasonscale.io/v1alpha1
kind: ReasoningModel
metadata: {name: twin}
spec:
  model: {uri: hf://Qwen/QwQ-32B}
  parallelism: {tensor: 2}
"""


def test_a_name_that_stands_twice_in_a_file_is_refused(tmp_path, capsys):
    path = tmp_path / "two.yaml"
    path.write_text(ONE + "---\n" + ONE)
    assert run(["validate", str(path)]) == 2
    assert "metadata.name: twin stands 2 times" in capsys.readouterr().err
    path.write_text(ONE + "---\n" + ONE.replace("twin", "other"))
    assert run(["validate", str(path)]) == 0
