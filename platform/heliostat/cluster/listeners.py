"""Which addresses the processes of a cluster listen on, read from /proc: the check that all is on loopback."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from heliostat.cluster.processes import Mark, owned

_LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    address: str
    port: int
    pid: int
    command: str

    @property
    def on_loopback(self) -> bool:
        found = ipaddress.ip_address(self.address)
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found).is_loopback


def listeners(mark: Mark) -> list[Listener]:
    """Every listening TCP socket of the cluster's processes, by port."""
    sockets = dict(_listening())
    found = {}
    for process in owned(mark):
        for inode in _socket_inodes(process.pid):
            if inode in sockets:
                address, port = sockets[inode]
                name = process.command.split(" ")[0].rsplit("/", 1)[-1]
                found[(address, port)] = Listener(address, port, process.pid, name)
    return sorted(found.values(), key=lambda listener: listener.port)


def _listening() -> Iterator[tuple[str, tuple[str, int]]]:
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path(f"/proc/net/{table}")
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN:
                host, port = fields[1].split(":")
                yield fields[9], (_address(host, family), int(port, 16))


def _address(text: str, family: socket.AddressFamily) -> str:
    """The kernel prints addresses as 32-bit words in the machine's byte order."""
    raw = b"".join(struct.pack("=I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8))
    return socket.inet_ntop(family, raw)


def _socket_inodes(pid: int) -> Iterator[str]:
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # gone
        return
    for entry in entries:
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]
