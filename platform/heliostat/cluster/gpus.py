"""What the NVIDIA driver says of the health of this machine's GPUs: by nvidia-smi, and by the kernel's log.

Nothing is known, and nothing is said, on a machine without the driver.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace

from heliostat.plan.sick import GpuHealth

LIMIT_S = 20
_ASKED = "index,pci.bus_id,ecc.errors.uncorrected.volatile.total,remapped_rows.failure"
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")


def read_gpus() -> list[GpuHealth]:
    """[] without a driver. A driver that hangs or fails says that no GPU answers: [] too, as nobody knows which."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={_ASKED}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return []
    return with_xids(parse_smi(done.stdout), _kernel_log())


def parse_smi(text: str) -> list[GpuHealth]:
    """One line for each GPU: index, address, uncorrectable errors, whether remapping failed. Pure."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 4 or not parts[0].isdecimal():
            continue
        index, pci, errors, failed = parts
        lost = any("lost" in part.lower() or "err!" in part.lower() for part in parts)
        count = int(errors) if errors.isdecimal() else None
        found.append(GpuHealth(int(index), pci, count, failed.lower() in ("1", "yes"), lost))
    return found


def with_xids(gpus: Iterable[GpuHealth], log: Iterable[str]) -> list[GpuHealth]:
    """The GPUs with the numbers of the errors that the kernel's log has for them. Pure."""
    seen: dict[str, list[int]] = {}
    for line in log:
        if match := _XID.search(line):
            seen.setdefault(_address(match[1]), []).append(int(match[2]))
    return [replace(gpu, xids=tuple(seen.get(_address(gpu.pci), ()))) for gpu in gpus]


def _address(pci: str) -> str:
    """00000000:3B:00.0 and 0000:3b:00 are one card."""
    domain, bus, device = (["0", *pci.lower().split(":")])[-3:]
    return f"{int(domain, 16):x}:{bus}:{device.split('.')[0]}"


def _kernel_log() -> list[str]:
    """What can be read of /dev/kmsg without waiting; [] without the right to."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            with contextlib.suppress(BlockingIOError):
                while len(lines) < 100_000:
                    lines.append(os.read(handle, 8192).decode(errors="replace"))
        finally:
            os.close(handle)
    return lines
