"""Serve's REST API on the dashboard's port: the goal state in, what runs out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from heliostat.errors import ClusterError, ClusterNotUp
from heliostat.settings import Settings

_PATH = "/api/serve/applications/"


@dataclass(frozen=True)
class AppStatus:
    name: str
    status: str  # Ray's word: DEPLOYING, RUNNING, DEPLOY_FAILED, UNHEALTHY, DELETING, NOT_STARTED
    message: str
    replicas: int  # running ones


class ServeClient:
    def __init__(self, settings: Settings) -> None:
        self._url = settings.dashboard_url + _PATH
        self._headers = settings.token_header()

    def put(self, config: dict[str, Any]) -> None:
        """Make `config` the whole goal state. Raises ClusterError with Serve's words when it refuses."""
        answer = self._send("PUT", config)
        if answer.status_code != 200:
            last = answer.text.strip().splitlines()[-1:] or [f"HTTP {answer.status_code}"]
            raise ClusterError(f"Serve refused the configuration: {last[0][-500:]}", where=self._url)

    def statuses(self) -> dict[str, AppStatus]:
        """Every application Serve knows; {} while Serve has not been started."""
        answer = self._send("GET", None)
        if answer.status_code != 200:
            return {}
        return {name: _status(name, app) for name, app in answer.json().get("applications", {}).items()}

    def replicas(self) -> set[str]:
        """The ids of all replicas that Serve knows, whatever their state. Raises ClusterError where it cannot tell."""
        answer = self._send("GET", None)
        if answer.status_code != 200:
            raise ClusterError(f"Serve does not tell its replicas: HTTP {answer.status_code}", where=self._url)
        return {
            str(replica["replica_id"])
            for app in answer.json().get("applications", {}).values()
            for deployment in app.get("deployments", {}).values()
            for replica in deployment.get("replicas", [])
        }

    def _send(self, method: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            return httpx.request(method, self._url, json=body, headers=self._headers, timeout=30)
        except httpx.TransportError as error:
            raise ClusterNotUp(
                f"the cluster does not answer: {error}", where=self._url, do="heliostat status, then heliostat up"
            ) from error


def _status(name: str, app: dict[str, Any]) -> AppStatus:
    replicas = [
        replica
        for deployment in app.get("deployments", {}).values()
        for replica in deployment.get("replicas", [])
        if replica.get("state") == "RUNNING"
    ]
    return AppStatus(name, app.get("status", "UNKNOWN"), app.get("message", ""), len(replicas))
