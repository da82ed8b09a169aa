"""Ray's dashboard over HTTP: the controller does not import Ray."""

from __future__ import annotations

from typing import Any

from heliostat.errors import ClusterError, ClusterNotUp
from heliostat.settings import Settings


def ask(settings: Settings, verb: str, path: str, body: Any = None) -> Any:  # Any: JSON
    """Raises ClusterNotUp where nothing answers, ClusterError with its words where it refuses."""
    import httpx

    token = settings.token_path.read_text().strip() if settings.token_path else ""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.request(verb, settings.dashboard_url + path, json=body, headers=headers, timeout=30)
    except httpx.HTTPError as error:
        raise ClusterNotUp(f"the dashboard does not answer: {error}", where=settings.dashboard_url) from error
    if answer.status_code >= 400:
        raise ClusterError(f"the dashboard refused: {answer.text[:300]}", where=settings.dashboard_url + path)
    return answer.json()
