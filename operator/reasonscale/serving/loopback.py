"""Keeps Serve's calls between replicas on loopback, where all of them are on one machine.

Serve binds a gRPC server of each replica to all interfaces, and has no setting for it. Importing this module in a
replica, with REASONSCALE_LOOPBACK=1, binds it to 127.0.0.1; the name it replaces is looked up when the replica starts.
"""

from __future__ import annotations

import os
from typing import Any

ENV = "REASONSCALE_LOOPBACK"


def apply() -> None:
    """Replace the address of a replica's gRPC server where the environment asks for it."""
    if os.environ.get(ENV) != "1":
        return
    from ray.serve._private import replica

    plain = replica.add_port_to_grpc_server
    if getattr(plain, "_reasonscale", False):
        return

    def on_loopback(server: Any, address: str) -> Any:
        return plain(server, address.replace("[::]", "127.0.0.1"))

    on_loopback._reasonscale = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = on_loopback
