"""Who of several controllers acts: one object in the store, taken by swap-if-unchanged."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.errors import ObjectExists, ObjectMissing, SwapLost
from heliostat.store import Store

LEASE_KEY = "controller/lease.json"
LEASE_S = 10.0


class Lease(BaseModel):
    model_config = ConfigDict(frozen=True)

    holder: str
    expires_at: float  # seconds since the epoch
    generation: int


def read_lease(store: Store) -> Lease | None:
    """The lease as it is; None where no controller ever took it, or it cannot be read."""
    try:
        return Lease.model_validate_json(store.get(LEASE_KEY).data)
    except (ObjectMissing, ValidationError):
        return None


def take_lease(store: Store, holder: str, now: float) -> bool:
    """Hold, renew or take over the lease. One swap; True if this holder has it afterwards."""
    try:
        blob = store.get(LEASE_KEY)
    except ObjectMissing:
        return _create_lease(store, Lease(holder=holder, expires_at=now + LEASE_S, generation=1))
    try:
        lease = Lease.model_validate_json(blob.data)
    except ValidationError:
        lease = Lease(holder="", expires_at=0, generation=0)  # unreadable: as good as expired
    if lease.holder != holder and lease.expires_at > now:
        return False
    mine = Lease(holder=holder, expires_at=now + LEASE_S, generation=lease.generation + 1)
    try:
        store.swap(LEASE_KEY, mine.model_dump_json().encode(), blob.etag)
    except SwapLost:
        return False
    return True


def _create_lease(store: Store, lease: Lease) -> bool:
    try:
        store.create(LEASE_KEY, lease.model_dump_json().encode())
    except ObjectExists:
        return False
    return True
