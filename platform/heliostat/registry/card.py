"""A model card in Markdown, from what the manifest knows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from heliostat.registry.aliases import Alias
from heliostat.registry.artifacts import Artifact
from heliostat.units import human_bytes, human_seconds


def model_card(artifact: Artifact, aliases: Iterable[Alias] = ()) -> str:
    """Front matter as Hugging Face reads it, then sections. What is not known is left out."""
    about, lineage = artifact.metadata, artifact.metadata.lineage
    pointing = ", ".join(sorted(alias.alias for alias in aliases if alias.version == artifact.version))
    facts = [
        ("Aliases", pointing),
        ("Digest", f"`{artifact.digest}`"),
        ("Framework", about.framework),
        ("Format", about.format),
        ("Parameters", f"{about.parameters:,}" if about.parameters else ""),
        ("Type of most of them", about.dtype),
        ("Weights on the device", human_bytes(about.vram_bytes) if about.vram_bytes else ""),
        ("Licence", about.licence),
        *((f"Tag {key}", value) for key, value in sorted(about.tags.items())),
    ]
    origin = [
        ("Job", lineage.job),
        ("Code", lineage.code_version),
        ("Data", lineage.dataset_digest),
        ("Parent", lineage.parent or ""),
        ("Hardware", lineage.hardware),
        ("GPU time spent", human_seconds(lineage.gpu_seconds) if lineage.gpu_seconds else ""),
    ]
    metrics = [(name, f"{value:.6g}") for name, value in sorted(about.metrics.items())]
    files = [
        (f"`{path}`", human_bytes(entry.size), f"`{entry.sha256[:12]}`")
        for path, entry in sorted(artifact.manifest.files.items())
    ]
    sections = [
        f"---\nlicense: {_cell(about.licence).lower() or 'other'}\n---\n\n# {artifact.name} v{artifact.version}\n",
        _table(("", ""), facts),
        _section("Metrics", _table(("metric", "value"), metrics)),
        _section("Where it comes from", _table(("", ""), origin)),
        _section(f"Files ({human_bytes(artifact.manifest.size)})", _table(("path", "size", "sha256"), files)),
    ]
    return "\n".join(section for section in sections if section)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    known = [row for row in rows if row[1]]
    if not known:
        return ""
    lines = [columns, ("---",) * len(columns), *known]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """What people wrote must not break the table, nor start HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
