"""Every rule, and its words. A rule arrives with its layer: what budgets and quotas refuse is not here yet."""

from __future__ import annotations

from heliostat.errors import UsageError
from heliostat.plan.check import markets, models, pods, safety, scaling
from heliostat.plan.check.rule import SEVERITIES, Rule

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (*scaling.RULES, *markets.RULES, *pods.RULES, *models.RULES, *safety.RULES),
        key=lambda rule: (SEVERITIES.index(rule.severity), rule.id),
    )
)

EXIT_WARNINGS, EXIT_ERRORS = 3, 4

_HEAD = f"""# Rules of `heliostat check`

Made from the code: `heliostat check --explain all`. The file is a definition of ours, or a manifest with RayClusters,
RayServices or RayJobs, whoever wrote it; neither a cluster nor CRDs are needed. What a file does not say is not guessed
at. What budgets and quotas refuse is not among the rules yet.

Exit codes: 0 notes at most, {EXIT_WARNINGS} warnings, {EXIT_ERRORS} errors, 2 the file cannot be read. `--json` and
`--sarif` (SARIF 2.1.0) are for programs.

A finding that is wanted is allowed where it stands, with its reason, by a comment on its line or above it:
`# heliostat: allow on-demand-training because the deadline leaves no room`. Above a group, it covers the whole group.

The role of a group is its label heliostat.io/role; else a RayService's groups serve and a RayJob's train; else words
such as `serve` or `train` in its name decide, and without one neither kind of rule is asked.
"""


def rule(rule_id: str) -> Rule:
    """Raises UsageError with the ids that there are."""
    for one in RULES:
        if one.id == rule_id:
            return one
    raise UsageError(f"there is no rule {rule_id!r}", do=f"one of: {', '.join(one.id for one in RULES)}")


def explain(rule_id: str) -> str:
    """One rule as Markdown; all of them, with what holds for all, under the name "all"."""
    if rule_id == "all":
        return "\n".join([_HEAD, *(_section(one) for one in RULES)])
    return _section(rule(rule_id))


def _section(one: Rule) -> str:
    return f"## {one.id}\n**{one.title}** ({one.severity})\n\n{one.reason}\n\nCure: {one.cure}\n"
