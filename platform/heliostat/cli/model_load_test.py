"""`heliostat model load-test`: load a version as a replica would, and say where the time went."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.registry.loading import Phases

MIB, GIB = 2**20, 2**30


def load_test(
    reference: Annotated[str, typer.Argument(help="name@alias or name:v3")],
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; where a replica would put it if not given.")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Through the node cache, as replicas load.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, max=64, help="Requests in flight.")] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Which cluster; the current one if not given.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Load a version's tensors, verified, and print the phases: connect, read, verify, to device."""
    from heliostat.inference.device import pick_device
    from heliostat.registry import load_tensors, node_cache
    from heliostat.sdk import Platform

    platform = Platform.connect(cluster)
    artifact = platform.models.get(reference)
    place = str(pick_device()) if device is None else device
    _check_device(place)
    loaded = load_tensors(
        platform.store,
        artifact,
        device=place,
        cache=node_cache(platform.settings.state_dir) if cache else None,
        threads=threads,
        progress=_Progress(),
    )
    if json:
        print_json(
            {
                "model": artifact.name,
                "version": f"v{artifact.version}",
                "digest": artifact.digest,
                "device": place,
                "tensors": len(loaded.tensors),
                "gib_per_s": loaded.phases.bytes / GIB / loaded.phases.wall_s,
                "phases": loaded.phases,
            }
        )
        return
    print_table(("phase", "thread-seconds", "what it is"), _rows(loaded.phases))
    took_s, size = loaded.phases.wall_s, loaded.phases.bytes
    print_progress(
        f"{artifact.name} v{artifact.version}: {len(loaded.tensors)} tensors, {size / MIB:,.1f} MiB, on {place} in "
        f"{took_s:.2f} s ({size / GIB / took_s:.2f} GiB/s), every digest right"
    )


def _rows(phases: Phases) -> list[tuple[str, str, str]]:
    source = "the node cache" if phases.bytes_from_cache == phases.bytes else "the store"
    return [
        ("connect", f"{phases.connect_s:.3f}", "to the first byte"),
        ("read", f"{phases.read_s:.3f}", f"from {source}, in {phases.threads} threads"),
        ("verify", f"{phases.verify_s:.3f}", "digests, while other threads read"),
        ("to device", f"{phases.to_device_s:.3f}", "waiting for copies; none where the memory is the device's"),
        ("wall", f"{phases.wall_s:.3f}", "all of it, by the clock"),
    ]


def _check_device(device: str) -> None:
    import torch

    from heliostat.errors import UsageError

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"{device!r} is no device", where="--device", do="write cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA device", where="--device", do="write cpu")
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"{kind} devices are not served here", where="--device", do="write cpu or cuda")


class _Progress:
    """One line on stderr that is written anew, four times a second; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._begun = self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self._told < 0.25 and done < total):
            return
        self._told = now
        rate = done / MIB / max(now - self._begun, 1e-6)
        end = "\n" if done >= total else ""
        line = f"\r{done / MIB:,.0f} of {total / MIB:,.0f} MiB, {rate:,.0f} MiB/s "
        print(line, end=end, file=sys.stderr, flush=True)  # noqa: T201
