"""Starts a Ray of our own on this machine, on loopback alone, and stops it again."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonscale.serving.config import OFFLINE_ENV, ROUTER_ENV

# Read by Ray when it is imported, so set before.
RAY_ENV: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray then binds to 127.0.0.1 instead of to all interfaces
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    # One well-formed id for each request, also in what the proxy itself answers.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "reasonscale.serving.proxy:middlewares",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_metrics_report_interval_ms": "1000",
    "RAY_SERVE_LLM_ROUTER_HTTP_TIMEOUT": "86400",
    "RAY_kill_idle_workers_interval_ms": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 starves engines beside any other process: a start of 50 s took ten minutes
    "VLLM_NO_USAGE_STATS": "1",
    **ROUTER_ENV,  # the proxy's
}


def _set_env(offline: bool) -> None:
    for name, value in {**RAY_ENV, **(OFFLINE_ENV if offline else {})}.items():
        os.environ.setdefault(name, value)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def port_taken(host: str, port: int) -> bool:
    """Tell whether somebody listens there already; at an address that is none, nobody does."""
    with socket.socket() as s:
        s.settimeout(1)
        try:
            return s.connect_ex(("127.0.0.1" if host == "0.0.0.0" else host, port)) == 0
        except (OSError, OverflowError, UnicodeError):
            return False


@contextmanager
def own_handlers() -> Iterator[None]:
    """Keep this process' handlers of SIGINT and SIGTERM: `ray.init` puts its own, which exits with 15, in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray sets none there either
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


_ENGINE_ERROR = re.compile(r"^\(EngineCore[^)]*\) ERROR [^]]*\] (\w+(?:Error|Exception): .+)$", re.MULTILINE)


@dataclass(slots=True)
class RayNode:
    """A Ray that runs here. `owned`: we started it, and stop it."""

    dashboard_url: str
    metrics_urls: tuple[str, ...]
    token: str | None
    owned: bool
    session_dir: str
    gpus: int = 0

    def engine_error(self, since: float) -> str | None:
        """Return the last error that an engine of this node wrote to its log since then (unix time); None where none did.

        An engine runs in a process of its own, and Serve only learns that it ended.
        """
        if not self.session_dir:
            return None
        found: list[tuple[float, str]] = []
        for path in Path(self.session_dir, "logs").glob("worker-*.*"):
            try:
                written = path.stat().st_mtime
                if written >= since:
                    lines = _ENGINE_ERROR.findall(path.read_text(errors="replace"))
                    found += [(written, line) for line in lines[-1:]]
            except OSError:
                continue
        return max(found)[1] if found else None

    def stop(self) -> None:
        """Stop Serve and Ray if they are ours; else only let go."""
        import ray
        from ray import serve

        if self.owned:
            try:
                serve.shutdown()
            except Exception:  # Ray may be gone already; what is left goes with shutdown below
                pass
        ray.shutdown()


def _token() -> str | None:
    """Return the token that Ray's dashboard wants, where it wants one."""
    text = os.environ.get("RAY_AUTH_TOKEN")
    if text:
        return text
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _gpus() -> int:
    """Return how many GPUs Ray has found."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def start_ray(*, num_cpus: int = 16, temp_dir: str | None = None, offline: bool = True) -> RayNode:
    """Start Ray on 127.0.0.1 with its dashboard and one metrics endpoint.

    `num_cpus` is logical: replicas of a small model ask for half a CPU each. `offline`: no model is to be fetched.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every engine would compile its imports again
    _set_env(offline)
    import ray

    metrics_port = free_port()
    context: Any
    with own_handlers():
        context = ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=free_port(),
            _node_ip_address="127.0.0.1",
            _metrics_export_port=metrics_port,
            object_store_memory=150_000_000,
            configure_logging=False,
            log_to_driver=False,
            _temp_dir=temp_dir or tempfile.gettempdir() + "/ray",
            _system_config={"metrics_report_interval_ms": 1000},
        )
    info = context.address_info
    return RayNode(
        dashboard_url=f"http://{info['webui_url']}", metrics_urls=(f"http://127.0.0.1:{metrics_port}/metrics",),
        token=_token(), owned=True, session_dir=info["session_dir"], gpus=_gpus(),
    )  # fmt: skip


def attach_ray(address: str, *, offline: bool = True) -> RayNode:
    """Attach to a Ray that runs already; nothing of it is stopped later. ConnectionError where there is none."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not port_taken(host, int(port)):
        # Ray itself would try for minutes.
        raise ConnectionError(
            f"no Ray answers at {address}; give the address that `ray start --head` printed, HOST:PORT"
        )
    _set_env(offline)
    import ray

    context: Any
    try:
        with own_handlers():
            context = ray.init(address=address, configure_logging=False, log_to_driver=False)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; if it wants a token, set RAY_AUTH_MODE=token as for the command `ray`"
        ) from None
    info = context.address_info
    urls = tuple(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node.get("Alive")
    )
    return RayNode(
        f"http://{info['webui_url']}",
        urls,
        _token(),
        owned=False,
        session_dir=info.get("session_dir", ""),
        gpus=_gpus(),
    )
