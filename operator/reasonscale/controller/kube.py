"""The API server: what the operator reads, applies and reports there. Server-side apply under one field manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kubernetes.aio import client, config
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError, NotFoundError, ResourceNotFoundError

from reasonscale.api import constants as c


class KubeError(RuntimeError):
    """The API server refused something; the message has what it said."""


class KindMissing(KubeError):
    """The cluster does not know a kind: its operator is not installed."""


class Kube:
    """A client of one API server."""

    def __init__(self, api: Any, dynamic: Any) -> None:
        self._api, self._dynamic = api, dynamic
        self.writes = 0

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None) -> Kube:
        """Connect by a kubeconfig file, else as the pod's service account."""
        settings = client.Configuration()
        if kubeconfig is not None:
            await config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
        else:
            config.load_incluster_config(client_configuration=settings)
        api = client.ApiClient(configuration=settings)
        return cls(api, await DynamicClient(api))

    async def close(self) -> None:
        await self._api.close()

    async def _resource(self, api_version: str, kind: str) -> Any:
        try:
            return await self._dynamic.resources.get(api_version=api_version, kind=kind)
        except ResourceNotFoundError:
            raise KindMissing(f"this cluster has no {kind} ({api_version})") from None

    async def read(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Return an object; None where there is none."""
        resource = await self._resource(api_version, kind)
        try:
            found: dict[str, Any] = (await resource.get(name=name, namespace=namespace)).to_dict()
            return found
        except NotFoundError:
            return None
        except DynamicApiError as error:
            raise KubeError(_words(error)) from None

    async def apply(self, manifest: dict[str, Any]) -> None:
        """Bring an object to what the manifest says; what others set beside it stays."""
        resource = await self._resource(manifest["apiVersion"], manifest["kind"])
        try:
            await resource.server_side_apply(body=manifest, field_manager=c.FIELD_MANAGER, force_conflicts=True)
        except DynamicApiError as error:
            raise KubeError(f"{manifest['kind']} {manifest['metadata']['name']}: {_words(error)}") from None
        self.writes += 1

    async def patch_status(self, namespace: str, name: str, status: dict[str, Any]) -> None:
        """Set a ReasoningModel's status."""
        resource = await self._resource(c.API_VERSION, c.KIND)
        try:
            await resource.status.patch(
                body={"status": status}, name=name, namespace=namespace, content_type="application/merge-patch+json"
            )
        except NotFoundError:
            return  # deleted meanwhile
        except DynamicApiError as error:
            raise KubeError(f"status of {namespace}/{name}: {_words(error)}") from None
        self.writes += 1


def _words(error: Any) -> str:
    text = getattr(error, "body", None) or getattr(error, "reason", None) or error
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return str(text)[:500]
