"""The plots of one or several simulations as one HTML page: inline SVG, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from heliostat.simulate.result import Result

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 860, 220, 60, 24, 8
COLOURS = ("#1b6ca8", "#c2571a", "#3d8b37", "#8e44ad", "#7f6a00", "#b3305c", "#2f7f86", "#555555")
MOST_LINES = 8
"""Of a plot: more cannot be told apart; the largest are drawn."""

Series = Mapping[str, Sequence[float]]


def write_page(path: Path, results: Mapping[str, Result]) -> None:
    """By the name of the definition."""
    path.write_text(page(results), encoding="utf-8")


def page(results: Mapping[str, Result]) -> str:
    parts = [_costs(results)]
    for name, result in results.items():
        parts.append(f"<h2>{escape(name)}: {result.usd:,.2f} USD in {result.days:g} days</h2>")
        times = [point.at_s / 86400 for point in result.points]
        groups = [group.group for group in result.groups]
        apps = [app.app for app in result.apps]
        parts += [
            _plot("Nodes", times, {one: [float(p.nodes[one]) for p in result.points] for one in groups}),
            _plot(
                "Replicas that answer", times, {one: [float(p.replicas[one]) for p in result.points] for one in apps}
            ),
        ]
        if result.jobs.submitted:
            jobs = {
                "running": [float(point.running_jobs) for point in result.points],
                "waiting": [float(point.waiting_jobs) for point in result.points],
            }
            parts.append(_plot("Jobs", times, jobs))
    style = "body{font:14px sans-serif;margin:2em;max-width:900px}td,th{padding:.2em .8em;text-align:right}"
    head = f"<!doctype html><meta charset=utf-8><title>heliostat simulate</title><style>{style}</style>"
    return f"{head}<h1>heliostat simulate</h1>{''.join(parts)}\n"


def _costs(results: Mapping[str, Result]) -> str:
    """Definitions side by side: money, GPU-hours by use, and each application's p99."""
    names = ("definition", "USD", "GPU-h", "starting", "loading", "working", "idle", "answered", "worst p99 s")
    rows = []
    for name, result in results.items():
        groups, apps = result.groups, result.apps
        offered = sum(app.offered for app in apps)
        late = max((app.latency_p99_s for app in apps if app.latency_p99_s is not None), default=None)
        cells = [
            escape(name),
            f"{result.usd:,.2f}",
            *(
                f"{sum(getattr(group, part) for group in groups):,.1f}"
                for part in ("held_gpu_h", "starting_gpu_h", "loading_gpu_h", "working_gpu_h", "idle_gpu_h")
            ),
            f"{sum(app.answered for app in apps) / offered:.3%}" if offered else "-",
            "-" if late is None else f"{late:.3f}",
        ]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{''.join(rows)}</table>"


def _plot(title: str, times: Sequence[float], series: Series) -> str:
    """Lines over days."""
    shown = sorted(series, key=lambda name: -max(series[name], default=0.0))[:MOST_LINES]
    if not shown or not times:
        return ""
    top = max(1.0, max(max(series[name]) for name in shown))
    width, height = WIDTH - LEFT - 8, HEIGHT - BOTTOM - TOP

    def x(day: float) -> float:
        return LEFT + day / times[-1] * width

    def y(value: float) -> float:
        return TOP + height * (1 - value / top)

    lines, legend = [], []
    for index, name in enumerate(shown):
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in zip(times, series[name], strict=True))
        colour = COLOURS[index % len(COLOURS)]
        lines.append(f'<polyline fill="none" stroke="{colour}" points="{points}"/>')
        legend.append(f'<span style="color:{colour}">&#9632; {escape(name)}</span>')
    marks = "".join(
        f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" font-size="11">{value:,.4g}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        for value in (0.0, top / 2, top)
    )
    days = "".join(
        f'<text x="{x(day):.1f}" y="{HEIGHT - 6}" text-anchor="middle" font-size="11">{day:.3g} d</text>'
        for day in (times[-1] * part / 4 for part in range(5))
    )
    left_out = f" (the {MOST_LINES} largest of {len(series)})" if len(series) > MOST_LINES else ""
    return (
        f"<h3>{escape(title)}{left_out}</h3><p>{' '.join(legend)}</p>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img">{marks}{days}{"".join(lines)}</svg>'
    )
