"""Releases go on, or back, while nobody is logged in: each round one step of each, by `promote.release.step`."""

from __future__ import annotations

import logging

from heliostat.controller.duty import World
from heliostat.errors import AliasMoved, ReleaseConflict
from heliostat.promote.records import PRODUCTION, commit, read_release
from heliostat.promote.release import Observed, Release, step
from heliostat.registry import get_alias
from heliostat.serve.desired import DesiredApp, read_desired
from heliostat.serve.reports import ReplicaReport, living, read_reports

log = logging.getLogger(__name__)


class Releases:
    """It keeps nothing: the record, the alias and the replicas' reports are all there is to know."""

    period_s = 0.5

    def forget(self) -> None:
        """There is nothing to forget."""

    def act(self, world: World, now: float) -> None:
        for app in read_desired(world.store):
            found = read_release(world.store, app.name)
            if found is not None and found[0].is_under_way:
                self._step(world, app, *found, now)

    def _step(self, world: World, app: DesiredApp, record: Release, etag: str, now: float) -> None:
        reports = read_reports(world.store, app.name)
        alias = get_alias(world.store, record.model, PRODUCTION)
        after = step(
            record,
            observed(record, reports, now),
            production=None if alias is None else alias.version,
            rules=app.spec.release,
            now=now,
        )
        if after is record:
            return
        try:
            commit(world.store, record, after, etag=etag)
        except (ReleaseConflict, AliasMoved) as other:  # somebody acted by hand; the next round sees what they did
            log.info("%s: %s", app.name, other)
            return
        entry = after.last
        log.info("%s is %s: %s", app.name, after.state, entry.why)
        world.spool.emit(
            "release",
            app=app.name,
            release=after.id,
            state=after.state,
            from_version=entry.from_version,
            to_version=entry.to_version,
            why=entry.why,
        )


def observed(record: Release, reports: list[ReplicaReport], now: float) -> Observed:
    there = living(reports, now)
    last = max((report.last_request_at for report in there), default=float("-inf"))
    # A replica that ends as it should takes its report with it.
    gone = [each for each in reports if each not in there and each.reported_at > record.began_at]
    return Observed(tuple(report.trial for report in there), idle_s=now - last, vanished=len(gone))
