"""The page of what runs now: groups, waiting work, applications, jobs, releases, waste, and the time spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from heliostat.meter.waste import Finding
from heliostat.pages.html import Html, join, tag
from heliostat.pages.look import Family, family_sums, page
from heliostat.pages.plot import (
    Column,
    amount,
    empty,
    folded,
    legend,
    money,
    percent,
    slots,
    spark,
    stacked_columns,
    state,
    table,
    two_lines,
)
from heliostat.plan.why import Answer
from heliostat.units import human_seconds


@dataclass(frozen=True)
class GroupView:
    name: str
    role: str
    market: str
    low: int
    high: int
    ready: int
    starting: int
    gpus: int  # per node
    gpus_used: float
    machine: str = ""  # instance or accelerator


@dataclass(frozen=True)
class AppView:
    name: str
    status: str  # Serve's word, or "asleep"
    message: str
    replicas: int
    model: str  # name@alias
    version: int | None
    requests: int
    last_request_at: float | None
    url: str
    group: str


@dataclass(frozen=True)
class JobView:
    run: str
    job: str
    status: str  # Ray's word
    step: int = 0
    total: int = 0
    losses: tuple[float, ...] = ()
    started_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True)
class ReleaseView:
    """One move of an alias. `version` None: it was taken away."""

    model: str
    alias: str
    version: int | None
    at: float
    who: str
    why: str


@dataclass(frozen=True)
class StatusView:
    """Everything on the page; times in seconds since the epoch. `hours`: GPU-seconds by class of the last hours."""

    cluster: str
    up: bool
    at: float
    dashboard_url: str
    serve_url: str
    groups: Sequence[GroupView] = ()
    waiting: Sequence[Answer] = ()
    apps: Sequence[AppView] = ()
    jobs: Sequence[JobView] = ()
    releases: Sequence[ReleaseView] = ()
    waste: Sequence[Finding] = ()
    hours: Sequence[tuple[float, dict[str, float]]] = ()
    usd: float | None = None  # of those hours


_IN_TURN = ("node-starting", "queued")
"""Waits that end by themselves as others do: no work is blocked by them."""


def status_page(view: StatusView) -> str:
    """The document."""
    blocked = [answer for answer in view.waiting if not answer.cause.healthy and answer.cause.id not in _IN_TURN]
    sections = [
        ("groups", "Groups", _groups(view)),
        ("waiting", "Waiting", _waiting(blocked, view)),
        ("applications", "Applications", _apps(view)),
        ("jobs", "Jobs", _jobs(view)),
        ("releases", "Releases", _releases(view)),
        ("idle", "Idle and waste", waste_list(view.waste)),
        ("time", "GPU time", _hours(view)),
    ]
    return page(
        f"Cluster {view.cluster}",
        f"As it was on {_when(view.at)}.",
        sections,
        figures=_figures(view, blocked),
        foot=f"Made by heliostat status --html. Dashboard {view.dashboard_url}, applications {view.serve_url}.",
    )


def _figures(view: StatusView, blocked: Sequence[Answer]) -> list[tuple[str, str]]:
    held = sum(group.ready * group.gpus for group in view.groups)
    used = sum(group.gpus_used for group in view.groups)
    running = sum(job.status == "RUNNING" for job in view.jobs)
    serving = sum(app.replicas > 0 for app in view.apps)
    found = [
        (f"{amount(used)} of {held}" if held else "0", "GPUs in use"),
        (str(serving), "application awake" if serving == 1 else "applications awake"),
        (str(running), "job runs" if running == 1 else "jobs run"),
        (str(len(blocked)), "piece of work is blocked" if len(blocked) == 1 else "pieces of work are blocked"),
    ]
    if view.usd is not None:
        found.append((money(view.usd), f"in {len(view.hours)} hours"))
    return found if view.up else [("Down", "no head answers"), *found[1:]]


def _groups(view: StatusView) -> Html:
    if not view.groups:
        return empty("The cluster has no groups that are known here. Start it with", "heliostat up cluster/laptop.yaml")
    rows = []
    for group in view.groups:
        held = group.ready * group.gpus
        most = group.high * group.gpus
        coming = group.starting * group.gpus
        used = min(held, round(group.gpus_used))
        said = f"{amount(group.gpus_used)} of {held} GPUs in use, {coming} starting, {most} at most"
        squares = slots(used, held - used, coming, max(0, most - held - coming), label=said) if 0 < most <= 32 else None
        rows.append((
            two_lines(group.name, group.machine or None),
            two_lines(f"{group.role}", group.market),
            two_lines(_nodes(group), f"{group.low} to {group.high} allowed"),
            two_lines(squares, f"{amount(group.gpus_used)} of {held} in use" if held else "at zero")
            if squares else two_lines(f"{amount(group.gpus_used)} of {held}" if held else "at zero", f"{most} at most"),
        ))  # fmt: skip
    key = tag("p", "A filled square is a GPU in use, an outlined one is free, a dashed one starts; "
              "the faint ones could be had.", class_="note")  # fmt: skip
    return join(key, table(("Group", "For", "Nodes", "GPUs"), rows, caption="Worker groups"))


def _nodes(group: GroupView) -> str:
    return f"{group.ready} ready" + (f", {group.starting} starting" if group.starting else "")


def _waiting(blocked: Sequence[Answer], view: StatusView) -> Html:
    fine = [a for a in view.waiting if a not in blocked and a.cause.id not in ("running", "asleep", "ended")]
    if not blocked and not fine:
        return empty("Nothing waits. When something does, its cause and what to do about it stand here.")
    items = [
        tag(
            "li", state(answer.work, "bad" if answer in blocked else "open"),
            tag("span", f"{_sentence(answer.cause.what)} {_sentence(answer.cause.do)}", class_="sub"),
        )
        for answer in (*blocked, *fine)
    ]  # fmt: skip
    return tag("ul", *items, class_="plain")


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!")) else f"{text}."


_APP_STATES = {"RUNNING": "good", "DEPLOYING": "warn", "UNHEALTHY": "bad", "DEPLOY_FAILED": "bad", "DELETING": "warn"}


def _apps(view: StatusView) -> Html:
    if not view.apps:
        return empty("No application is deployed. Put a model behind an address with", "heliostat app deploy NAME")
    rows = []
    for app in view.apps:
        asleep = app.status == "RUNNING" and app.replicas == 0
        word = "asleep" if asleep else app.status.lower().replace("_", " ")
        kind = "open" if asleep or app.status == "asleep" else _APP_STATES.get(app.status, "open")
        last = None if app.last_request_at is None else f"last {_ago(view.at, app.last_request_at)}"
        rows.append((
            two_lines(app.name, app.url), two_lines(state(word, kind), app.message[:120] or None),
            str(app.replicas), two_lines(app.model, f"v{app.version}" if app.version else "no version live"),
            two_lines(f"{app.requests:,}", last),
        ))  # fmt: skip
    return table(
        ("Application", "State", "Replicas", "Model", "Requests"),
        rows,
        caption="Applications",
        numbers=(2, 4),
    )


_JOB_STATES = {"RUNNING": "good", "SUCCEEDED": "good", "PENDING": "warn", "FAILED": "bad", "STOPPED": "open"}


def _jobs(view: StatusView) -> Html:
    if not view.jobs:
        return empty("No job was submitted yet. Send one with", "heliostat job submit NAME")
    rows = [
        (two_lines(job.job or job.run, job.run if job.job != job.run else None),
         two_lines(state(job.status.lower(), _JOB_STATES.get(job.status, "open")), _lasted(view, job)),
         _progress(job),
         two_lines(spark(job.losses, label=_loss_words(job.losses)), _loss(job.losses)) if job.losses else "-")
        for job in view.jobs
    ]  # fmt: skip
    return table(("Job", "State", "Steps", "Loss"), rows, caption="Jobs")


def _progress(job: JobView) -> Html | str:
    if not job.total:
        return "-"
    done = tag("i", style=f"width:{100 * min(1, job.step / job.total):.1f}%")
    said = f"{job.step:,} of {job.total:,}"
    return join(said, tag("div", done, class_="meter", role="img", aria_label=f"{percent(job.step, job.total)} done"))


def _loss(losses: Sequence[float]) -> str:
    return f"{amount(losses[0])} to {amount(losses[-1])}" if len(losses) > 1 else amount(losses[-1])


def _loss_words(losses: Sequence[float]) -> str:
    return f"loss over the steps, from {amount(losses[0])} to {amount(losses[-1])}"


def _lasted(view: StatusView, job: JobView) -> str | None:
    if job.started_at is None:
        return None
    return f"for {_for(max(0.0, (job.ended_at or view.at) - job.started_at))}"


def _releases(view: StatusView) -> Html:
    if not view.releases:
        return empty("No version was released yet. The first goes out with", "heliostat app release NAME")
    rows = [
        (two_lines(move.model, f"@{move.alias}"), "taken away" if move.version is None else f"v{move.version}",
         two_lines(_when(move.at), _ago(view.at, move.at)), two_lines(move.why or "-", f"by {move.who}"))
        for move in view.releases
    ]  # fmt: skip
    return table(("Model", "Version", "When", "Why"), rows, caption="Releases, the newest first")


def waste_list(findings: Sequence[Finding]) -> Html:
    """What is held and does no useful work; for both pages."""
    if not findings:
        return empty("Every GPU that is held has done useful work lately. Look again with", "heliostat cost idle")
    rows = [
        (two_lines(each.name, each.kind.replace("-", " ")), two_lines(_sentence(each.evidence), each.group),
         amount(each.gpu_hours), money(each.usd), _fate(each))
        for each in findings
    ]  # fmt: skip
    return table(
        ("What", "Evidence", "GPU-hours", "Money", "By the rules"), rows, caption="Waste, the dearest first",
        numbers=(2, 3),
    )  # fmt: skip


def _fate(finding: Finding) -> str:
    if finding.exempt_until is not None:
        return f"left alone until {finding.exempt_until}"
    return {"tell": "told", "scale to zero": "goes to zero", "stop": "stopped after a warning"}[finding.act]


def _hours(view: StatusView) -> Html:
    columns = [
        Column(f"{_hour(at):%H}", f"the hour from {_hour(at):%H:%M} UTC", _in_hours(use)) for at, use in view.hours
    ]
    total: dict[str, float] = {}
    for _, use in view.hours:
        for name, seconds in use.items():
            total[name] = total.get(name, 0.0) + seconds
    held = sum(total.values())
    if not held:
        return empty(
            "No GPU time was counted in these hours. It is once a group has nodes; see", "heliostat cost report"
        )
    parts = _in_hours(total)
    rows = [
        (
            column.full.removeprefix("the hour from "),
            *(amount(value) for _, value in column.parts),
            amount(column.total),
        )
        for column in columns
    ]
    names = [family.name for family, _ in parts]
    figures = table(
        ("Hour", *names, "All"), rows, caption="GPU-hours by hour", numbers=range(1, len(names) + 2), plain=True
    )
    return join(
        tag("p", f"The last {len(columns)} hours, by the hour in UTC.", class_="note"),
        stacked_columns(columns, unit="GPU-hours", what="GPU time by the hour"),
        legend(parts, total=held / 3600),
        folded("The figures", figures),
    )


def _in_hours(gpu_seconds: dict[str, float]) -> list[tuple[Family, float]]:
    return [(family, seconds / 3600) for family, seconds in family_sums(gpu_seconds)]


def _hour(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _when(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _ago(now: float, at: float) -> str:
    return f"{_for(max(0.0, now - at))} ago"


def _for(seconds: float) -> str:
    """Seconds matter to a machine; to a reader two parts are enough."""
    if seconds < 1:
        return "a moment"
    return human_seconds(round(seconds)).replace(".0s", "s") if seconds < 86_400 else _days(round(seconds / 86_400))


def _days(count: int) -> str:
    return f"{count} day{'' if count == 1 else 's'}"
