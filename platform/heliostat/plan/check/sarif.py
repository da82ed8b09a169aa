"""Reports in SARIF 2.1.0, which code hosts show beside the lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from heliostat.plan.check.report import Finding, Report
from heliostat.plan.check.rules import RULES

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
HELP = "docs/rules.md"


def as_sarif(reports: Sequence[Report], *, version: str) -> dict[str, Any]:  # Any: JSON
    """One run with all rules and findings. What a comment allows is in it as suppressed."""
    results = [_result(finding) for report in reports for finding in (*report.findings, *report.allowed)]
    driver = {
        "name": "heliostat",
        "version": version,
        "semanticVersion": version,
        "rules": [
            {
                "id": rule.id,
                "name": "".join(word.capitalize() for word in rule.id.split("-")),
                "shortDescription": {"text": rule.title},
                "fullDescription": {"text": rule.reason},
                "help": {"text": rule.cure, "markdown": f"{rule.cure}\n\nSee {HELP}, {rule.id}."},
                "defaultConfiguration": {"level": rule.severity},
            }
            for rule in RULES
        ],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _result(finding: Finding) -> dict[str, Any]:  # Any: JSON
    file = PurePath(finding.file or "text")
    uri = file.as_uri() if file.is_absolute() else file.as_posix()
    ids = [rule.id for rule in RULES]
    found: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": ids.index(finding.rule),
        "level": finding.severity,
        "message": {"text": f"{finding.what}; {finding.do}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": uri},
                    "region": {"startLine": finding.line or 1},
                },
                "logicalLocations": [{"fullyQualifiedName": f"{finding.cluster}/{finding.at}"}],
            }
        ],
        "suppressions": [],
    }
    if finding.allowed:
        found["suppressions"] = [{"kind": "inSource", "justification": finding.allowed}]
    return found
