"""Ray's dashboard over HTTP: the controller does not import Ray."""

from __future__ import annotations

from typing import Any

from heliostat.errors import ClusterError, ClusterNotUp
from heliostat.settings import Settings


def ask(settings: Settings, verb: str, path: str, body: Any = None) -> Any:  # Any: JSON
    """Raises ClusterNotUp where nothing answers, ClusterError with its words where it refuses."""
    import httpx

    url, headers = settings.dashboard_url + path, settings.token_header()
    try:
        answer = httpx.request(verb, url, json=body, headers=headers, timeout=30)
    except httpx.HTTPError as error:
        raise ClusterNotUp(f"the dashboard does not answer: {error}", where=settings.dashboard_url) from error
    if answer.status_code >= 400:
        raise ClusterError(f"the dashboard refused: {answer.text[:300]}", where=url)
    return answer.json()
