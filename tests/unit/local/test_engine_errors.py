"""An engine's own last error is found in its log: Serve only learns that the engine ended."""

from __future__ import annotations

from pathlib import Path

from reasonscale.local.ray_node import RayNode

LOG = """(EngineCore pid=1) ERROR 11-24 07:53:43 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=1) ERROR 11-24 07:53:43 [core.py:1510]     raise ValueError(
(EngineCore pid=1) ERROR 11-24 07:53:43 [core.py:1510] ValueError: 0.0 GiB KV cache is needed
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_cause_is_the_engines_own_error(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-a-1.err").write_text(LOG)
    (tmp_path / "logs" / "worker-b-2.out").write_text("all is well\n")
    node = RayNode("", (), None, True, str(tmp_path))
    assert node.engine_error(0.0) == "ValueError: 0.0 GiB KV cache is needed"
    assert node.engine_error(4e9) is None, "what was written before does not count"
    assert RayNode("", (), None, False, "").engine_error(0.0) is None
