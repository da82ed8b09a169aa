"""Checks of cluster definitions and of Ray manifests: what will cost, hang or break, before anything is started.

`check_file(path)` reads our definitions and the RayCluster, RayService and RayJob manifests of others. Pure but for
reading the file: no cluster, no CRDs, no network. The rules stand in `rules.RULES`; docs/rules.md is made from them.
"""

from heliostat.plan.check.report import Finding, Report, check_definition, check_file, check_folder, check_text
from heliostat.plan.check.rule import Rule, Severity
from heliostat.plan.check.rules import RULES, explain, rule
from heliostat.plan.check.sarif import as_sarif

__all__ = [
    "check_file",
    "check_folder",
    "check_text",
    "check_definition",
    "Finding",
    "Report",
    "Rule",
    "Severity",
    "RULES",
    "rule",
    "explain",
    "as_sarif",
]
