"""The router as Serve ships it: its module is pickled by value, and what it writes must still be what its ingress reads."""

from __future__ import annotations

import base64
import subprocess
import sys
from types import SimpleNamespace

from ray import cloudpickle

from reasonscale.serving import router, shared

# In a process of its own, as Serve's controller is one: in this one cloudpickle would give the very class back.
SHIP = """
import base64
from ray.serve.config import RequestRouterConfig
from reasonscale.serving.config import ROUTER
config = RequestRouterConfig(request_router_class=ROUTER)
print(base64.b64encode(config._serialized_request_router_cls).decode())
"""


def test_the_router_that_serve_ships_writes_where_its_ingress_reads() -> None:
    done = subprocess.run([sys.executable, "-c", SHIP], capture_output=True, text=True, check=True)
    shipped = cloudpickle.loads(base64.b64decode(done.stdout.split()[-1]))
    assert shipped is not router.ExpectedWork, "Serve ships a copy: else this shows nothing"
    made = object.__new__(shipped)
    made._deployment_id = SimpleNamespace(name="a-deployment")
    made.initialize_state()
    try:
        assert shared.LOADS["a-deployment"] is made._loads
        shipped.choose_replicas.__globals__["_place"]("a-request", "a-replica")
        assert shared.PLACED["a-request"][0] == "a-replica"
    finally:
        shared.LOADS.pop("a-deployment", None)
        shared.PLACED.pop("a-request", None)
