"""The API server: what the operator reads, applies and reports there. Server-side apply under one field manager."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml
from kubernetes.aio import client, config
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError, NotFoundError, ResourceNotFoundError

from reasonscale.api import constants as c

ABSENT_S: Final = 4.0  # a kind that is missing is looked for again after this time


class KubeError(RuntimeError):
    """The API server refused something; the message has what it said."""


class NoCluster(KubeError):
    """Nobody answers at the API server's address."""


class KindMissing(KubeError):
    """The cluster does not know a kind: its operator is not installed."""


class NotLeading(KubeError):
    """Another operator acts: nothing is written."""


class Kube:
    """A client of one API server. `may_act` is asked before each write."""

    def __init__(self, api: Any, dynamic: Any) -> None:
        self.api, self._dynamic = api, dynamic
        self._kinds: dict[tuple[str, str], Any] = {}
        self._absent: dict[tuple[str, str], float] = {}  # when a kind was last not found
        self._discovery = asyncio.Lock()
        self.writes = 0
        self.may_act: Callable[[], bool] = lambda: True

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None) -> Kube:
        """Connect by a kubeconfig file, else as the pod's service account; ValueError where that is none."""
        settings = client.Configuration()
        try:
            if kubeconfig is not None:
                await config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
            else:
                config.load_incluster_config(client_configuration=settings)
        except (
            config.ConfigException,
            yaml.YAMLError,
            ValueError,
            TypeError,
            KeyError,
        ) as error:  # as they come for any other file
            named = (
                f"--kubeconfig was {kubeconfig}; it must be a kubeconfig file" if kubeconfig else "no service account"
            )
            raise ValueError(f"{named}: {' '.join(str(error).split())}") from None
        api = client.ApiClient(configuration=settings)
        try:
            return cls(api, await DynamicClient(api))
        except BaseException as error:
            await api.close()
            if isinstance(error, aiohttp.ClientError):
                raise NoCluster(f"no API server answers at {settings.host}: {error}") from None
            raise

    async def close(self) -> None:
        await self.api.close()

    async def _resource(self, api_version: str, kind: str) -> Any:
        """Return how to ask for a kind; KindMissing where the cluster does not know it.

        The dynamic client throws its cache away and asks for every group again whenever a kind is missing, and two that do so
        at once break it: a cluster without PodMonitors cost a discovery a model, and a KeyError where turns ran side by side.
        """
        key, missing = (api_version, kind), f"this cluster has no {kind} ({api_version})"
        if key in self._kinds:
            return self._kinds[key]
        async with self._discovery:
            if key not in self._kinds:
                if time.monotonic() - self._absent.get(key, -ABSENT_S) < ABSENT_S:
                    raise KindMissing(missing)
                try:
                    self._kinds[key] = await self._dynamic.resources.get(api_version=api_version, kind=kind)
                except ResourceNotFoundError:
                    self._absent[key] = time.monotonic()
                    raise KindMissing(missing) from None
            return self._kinds[key]

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

    def _lead(self) -> None:
        if not self.may_act():
            raise NotLeading("the lease is not ours: nothing is written")

    async def list(self, api_version: str, kind: str, selector: str | None, namespace: str | None) -> dict[str, Any]:
        """Return a kind's objects with a label selector, of one namespace or of all."""
        resource = await self._resource(api_version, kind)
        try:
            answer = await self._dynamic.request(
                "get", resource.path(namespace=namespace), label_selector=selector, serialize=False
            )
            found: dict[str, Any] = json.loads(await answer.read())
        except NotFoundError:
            raise KindMissing(f"this cluster has no {kind} ({api_version})") from None
        except DynamicApiError as error:
            raise KubeError(f"{kind}: {_words(error)}") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise KubeError(f"{kind}: {error}") from None
        return found

    async def watch(
        self, api_version: str, kind: str, selector: str | None, namespace: str | None, version: str, timeout_s: int
    ) -> AsyncIterator[dict[str, Any]]:
        """Return a watch's events until it ends, bookmarks among them."""
        resource = await self._resource(api_version, kind)
        try:
            answer = await self._dynamic.request(
                "get", resource.path(namespace=namespace), label_selector=selector, resource_version=version, watch="true",
                timeout_seconds=timeout_s, query_params=[("allowWatchBookmarks", "true")], serialize=False,
                _request_timeout=timeout_s + 10,
            )  # fmt: skip
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)
        except NotFoundError:
            raise KindMissing(f"this cluster has no {kind} ({api_version})") from None
        except DynamicApiError as error:
            raise KubeError(f"{kind}: {_words(error)}") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise KubeError(f"{kind}: {error}") from None

    async def delete(self, api_version: str, kind: str, namespace: str, name: str) -> None:
        """Delete an object and what it owns; one that is gone already is none the worse."""
        self._lead()
        resource = await self._resource(api_version, kind)
        try:
            await resource.delete(name=name, namespace=namespace, body={"propagationPolicy": "Background"})
        except NotFoundError:
            return
        except DynamicApiError as error:
            raise KubeError(f"{kind} {name}: {_words(error)}") from None
        self.writes += 1

    async def remove_fields(
        self, api_version: str, kind: str, namespace: str, name: str, patch: dict[str, Any]
    ) -> None:
        """Merge a patch, whose nulls take fields away."""
        self._lead()
        resource = await self._resource(api_version, kind)
        try:
            await resource.patch(
                body=patch,
                name=name,
                namespace=namespace,
                content_type="application/merge-patch+json",
                field_manager=c.FIELD_MANAGER,
            )
        except DynamicApiError as error:
            raise KubeError(f"{kind} {name}: {_words(error)}") from None
        self.writes += 1

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Bring an object to what the manifest says and return it; what others set beside it stays."""
        self._lead()
        resource = await self._resource(manifest["apiVersion"], manifest["kind"])
        try:
            answer = await resource.server_side_apply(
                body=manifest, field_manager=c.FIELD_MANAGER, force_conflicts=True
            )
        except DynamicApiError as error:
            raise KubeError(f"{manifest['kind']} {manifest['metadata']['name']}: {_words(error)}") from None
        self.writes += 1
        found: dict[str, Any] = answer.to_dict()
        return found

    async def patch_status(self, namespace: str, name: str, status: dict[str, Any]) -> None:
        """Set a ReasoningModel's status."""
        self._lead()
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
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]  # a Status: its message is for people
    return str(text)[:500]
