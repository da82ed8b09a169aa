"""From a file to its findings: read, ask every rule, set aside what a comment allows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from heliostat.definition import ClusterDefinition, load
from heliostat.errors import UsageError
from heliostat.plan.check.definitions import read_definition
from heliostat.plan.check.manifests import is_manifest, read_clusters
from heliostat.plan.check.model import Cluster
from heliostat.plan.check.rule import SEVERITIES, Severity
from heliostat.plan.check.rules import EXIT_ERRORS, EXIT_WARNINGS, RULES, rule
from heliostat.plan.check.yaml_file import Document, read_documents, read_text
from heliostat.plan.params import ModelShape

_WAIVER = re.compile(r"#\s*heliostat:\s*allow\s+(\S+?)[,:]?(?:\s+(?:because\s+)?(\S.*?))?\s*$")


@dataclass(frozen=True)
class Finding:
    """One rule's word about one place. `allowed`: the reason that a comment gives for leaving it so."""

    rule: str
    severity: Severity
    what: str
    do: str
    cluster: str
    at: str
    file: str | None = None
    line: int | None = None
    allowed: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.severity} {self.rule}: {self.what}; {self.do}"


@dataclass(frozen=True)
class Report:
    """Of one file. `findings` are those to act on, the worst first; `allowed` those that comments set aside."""

    file: str
    clusters: tuple[str, ...]
    findings: tuple[Finding, ...]
    allowed: tuple[Finding, ...] = ()

    @property
    def exit_code(self) -> int:
        found = {finding.severity for finding in self.findings}
        return EXIT_ERRORS if "error" in found else EXIT_WARNINGS if "warning" in found else 0


@dataclass(frozen=True)
class _Waiver:
    rule: str
    reason: str | None
    line: int
    """The line that it stands for: its own, or the next one that says something."""


def check_file(path: Path, *, models: Mapping[str, ModelShape] | None = None) -> Report:
    """A definition, or a file of manifests. `models`: shapes by name, of models that the registry knows and the file
    does not. Raises UsageError for a file that holds neither, DefinitionError for a definition with mistakes.
    """
    text = read_text(path)
    documents = read_documents(text, str(path))
    if any(is_manifest(document) for document in documents):
        return check_text(text, file=str(path))
    if not any("groups" in document.value or "extends" in document.value for document in documents):
        raise UsageError(
            "neither a cluster definition nor a Ray manifest is in it",
            where=str(path),
            do="give a definition (name:, groups:, ...) or a RayCluster, RayService or RayJob",
        )
    cluster = read_definition(load(path), models or {})
    return _report([(cluster, documents[0])], text, str(path))


def check_folder(path: Path, *, models: Mapping[str, ModelShape] | None = None) -> list[Report]:
    """Each definition in it, and each file of manifests that has a Ray object: of `heliostat render --out` most have
    none. Raises UsageError where there is nothing to check.
    """
    made = []
    for file in sorted(each for each in path.iterdir() if each.suffix in (".yaml", ".yml")):
        documents = read_documents(read_text(file), str(file))
        definition = any("groups" in document.value or "extends" in document.value for document in documents)
        if definition or read_clusters(documents):
            made.append(check_file(file, models=models))
    if not made:
        raise UsageError("no definition and no Ray object is in it", where=str(path), do="heliostat render DEFINITION")
    return made


def check_text(text: str, *, file: str = "text") -> Report:
    """Manifests as text, such as what `helm template` or `heliostat render` prints."""
    clusters = read_clusters(read_documents(text, file))
    if not clusters:
        raise UsageError("no RayCluster, RayService or RayJob is in it", where=file, do="give a file that has one")
    return _report(clusters, text, file)


def check_definition(definition: ClusterDefinition, *, models: Mapping[str, ModelShape] | None = None) -> Report:
    """A definition that is loaded already. Findings have no lines, and comments allow nothing."""
    cluster = read_definition(definition, models or {})
    return Report("", (cluster.name,), _sorted([finding for finding, _ in _findings(cluster, None)]))


def _report(clusters: Sequence[tuple[Cluster, Document]], text: str, file: str) -> Report:
    waivers = _waivers(text, file)
    kept: list[Finding] = []
    allowed: list[Finding] = []
    for cluster, document in clusters:
        for finding, lines in _findings(cluster, document):
            reason = next((w.reason for w in waivers if w.rule == finding.rule and w.reason and w.line in lines), None)
            if reason is None:
                kept.append(finding)
            else:
                allowed.append(Finding(**{**vars(finding), "allowed": reason}))
    return Report(file, tuple(cluster.name for cluster, _ in clusters), _sorted(kept), _sorted(allowed))


def _findings(cluster: Cluster, document: Document | None) -> list[tuple[Finding, set[int]]]:
    """Each with the lines that a comment may stand at."""
    found = []
    for one in RULES:
        for hit in one.find(cluster):
            file = document.file if document else None
            line = hit.line or (document.line(hit.at) if document else None)
            severity = hit.severity or one.severity
            finding = Finding(one.id, severity, hit.what, hit.do, cluster.name, hit.at, file, line)
            above = document.lines_above(hit.at) if document else set()
            found.append((finding, {hit.line} if hit.line else above))
    return found


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.line or 0, f.rule, f.what)))


def _waivers(text: str, file: str) -> list[_Waiver]:
    """Comments that allow a finding. Raises UsageError for one that names no rule, or gives no reason."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        match = _WAIVER.search(line)
        if match is None:
            continue
        where = f"{file}, line {number}"
        try:
            known = rule(match[1]).id
        except UsageError as error:
            raise UsageError(error.what, where=where, do=error.do) from error
        if match[2] is None or match[2] == "because":
            raise UsageError(f"allows {known} and gives no reason", where=where, do=f"allow {known} because ...")
        found.append(_Waiver(known, match[2], _stands_for(lines, number)))
    return found


def _stands_for(lines: Sequence[str], number: int) -> int:
    if lines[number - 1].split("#", 1)[0].strip():
        return number
    for later in range(number + 1, len(lines) + 1):
        if lines[later - 1].split("#", 1)[0].strip():
            return later
    return number
