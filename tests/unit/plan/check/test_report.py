"""Findings with their lines, comments that allow them, exit codes, SARIF, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.cli.render import as_yaml, chosen
from heliostat.definition import load
from heliostat.errors import DefinitionError, UsageError
from heliostat.plan.check import RULES, as_sarif, check_file, check_text, explain
from heliostat.plan.params import shape_of_size

ROOT = Path(__file__).parents[4]
BAD = ROOT / "tests" / "manifests" / "bad-training-nodes.yaml"

DEFINITION = """\
name: voice
platform: eks
ray:
  image: registry.example/heliostat:1
groups:
  serve:
    role: serving
    market: on-demand
    accelerator: L4
    cpus: 4
    memory: 16GiB
    gpus: 1
    nodes: 1..2
  train:
    role: training
    market: on-demand
    instance: p5.48xlarge
    accelerator: H100-80GB
    cpus: 200
    memory: 1900GiB
    gpus: 8
    nodes: 1..4
    idle_timeout: 8h
store:
  kind: s3
  bucket: models
applications:
  chat:
    recipe: apps.chat:Chat
    model: chat@production
    group: serve
    route: /chat
    replicas: 1..2
tags:
  team: speech
  project: voice
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def found(path: Path, **models: str) -> dict[str, int | None]:
    shapes = {name: shape_of_size(size) for name, size in models.items()}
    return {finding.rule: finding.line for finding in check_file(path, models=shapes).findings}


def test_a_definition_gets_findings_at_its_fields(tmp_path: Path) -> None:
    assert found(written(tmp_path, DEFINITION)) == {
        "pod-not-on-instance": 21,
        "no-gcs-fault-tolerance": 1,
        "idle-gpus": 22,
        "on-demand-training": 16,
        "training-across-zones": 16,
        "training-without-fabric": 21,
    }


def test_an_idle_timeout_of_hours_keeps_gpus(tmp_path: Path) -> None:
    lazy = DEFINITION.replace("nodes: 1..4", "nodes: 0..4")
    assert found(written(tmp_path, lazy))["idle-gpus"] == 23


@pytest.mark.parametrize(("size", "rule"), [("70B", "model-too-large"), ("22M", "gpu-oversized"), ("3B", None)])
def test_a_model_is_held_against_its_card(tmp_path: Path, size: str, rule: str | None) -> None:
    about_models = {"model-too-large", "gpu-oversized"} & set(found(written(tmp_path, DEFINITION), chat=size))
    assert about_models == ({rule} if rule else set())


def test_half_a_gpu_for_a_small_model_is_not_too_much(tmp_path: Path) -> None:
    halved = DEFINITION.replace("replicas: 1..2", "replicas: 1..2\n    gpus_per_replica: 0.5")
    assert "gpu-oversized" not in found(written(tmp_path, halved), chat="22M")


@pytest.mark.parametrize(
    ("line", "comment"),
    [
        ("    market: on-demand\n    instance", "    # heliostat: allow on-demand-training because of a deadline\n"),
        ("  train:\n", "  # heliostat: allow on-demand-training, the deadline leaves no room\n"),
    ],
)
def test_a_comment_with_a_reason_allows_a_finding_at_its_line_or_group(tmp_path: Path, line: str, comment: str) -> None:
    report = check_file(written(tmp_path, DEFINITION.replace(line, comment + line)))
    assert "on-demand-training" not in {finding.rule for finding in report.findings}
    assert [(f.allowed or "").endswith(("a deadline", "leaves no room")) for f in report.allowed] == [True]
    assert "training-across-zones" in {finding.rule for finding in report.findings}


def test_a_comment_at_another_group_allows_nothing(tmp_path: Path) -> None:
    aside = DEFINITION.replace("  serve:\n", "  serve:  # heliostat: allow on-demand-training because of this\n")
    assert "on-demand-training" in found(written(tmp_path, aside))


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("# heliostat: allow on-demand-training", "gives no reason"),
        ("# heliostat: allow on-demand-training because", "gives no reason"),
        ("# heliostat: allow nonsense because of this", "there is no rule 'nonsense'"),
    ],
)
def test_a_comment_without_reason_or_rule_is_refused_with_its_line(tmp_path: Path, comment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        check_file(written(tmp_path, f"{comment}\n{DEFINITION}"))
    assert error.value.where.endswith("line 1")


def test_the_exit_code_is_that_of_the_worst_finding(tmp_path: Path) -> None:
    assert check_file(written(tmp_path, DEFINITION)).exit_code == 4
    right = DEFINITION.replace("cpus: 200", "cpus: 180")
    assert check_file(written(tmp_path, right)).exit_code == 3
    assert check_file(ROOT / "cluster" / "aws.yaml").exit_code == 0


def test_sarif_names_each_rule_and_each_place() -> None:
    log = as_sarif([check_file(BAD)], version="1.2.3")
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.id for rule in RULES]
    for result in run["results"]:
        rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
        assert rule["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["locations"][0]["physicalLocation"]["region"]["startLine"] > 1
        assert result["suppressions"] == []


def test_sarif_keeps_what_a_comment_allows_as_suppressed(tmp_path: Path) -> None:
    text = DEFINITION.replace("  train:\n", "  train:  # heliostat: allow on-demand-training because of a deadline\n")
    log = as_sarif([check_file(written(tmp_path, text))], version="1")
    aside = [result for result in log["runs"][0]["results"] if result["suppressions"]]
    assert [(result["ruleId"], result["suppressions"][0]["justification"]) for result in aside] == [
        ("on-demand-training", "of a deadline")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not YAML"),
        ("just words", "neither a cluster definition nor a Ray manifest"),
        ("", "neither a cluster definition nor a Ray manifest"),
        ("a: &x [*x]", "refers to itself"),
        ("apiVersion: v1\nkind: Pod\n", "no RayCluster, RayService or RayJob"),
        ("apiVersion: ray.io/v1\nkind: RayCluster\nspec: 5\n", "spec is 5"),
        ("apiVersion: ray.io/v1\nkind: RayCluster\nspec: {workerGroupSpecs: {}}\n", "write a list"),
        (
            "apiVersion: ray.io/v1\nkind: RayCluster\nspec:\n  workerGroupSpecs:\n  - minReplicas: two\n",
            r"workerGroupSpecs\[0\].minReplicas is \"two\"",
        ),
        ("{{- if .Values.ray }}\nkind: RayCluster\n", "Helm template"),
        ("apiVersion: ray.io/v1\nkind: RayService\nspec:\n  serveConfigV2: 'a: [1'\n", "serveConfigV2 holds not YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        check_file(written(tmp_path, text))
    assert "cluster.yaml" in error.value.where


def test_a_definition_with_mistakes_is_told_as_ever(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="market"):
        check_file(written(tmp_path, DEFINITION.replace("market: on-demand", "market: cheap", 1)))


def test_a_bare_manifest_has_no_findings_that_it_gives_no_ground_for() -> None:
    bare = "apiVersion: ray.io/v1\nkind: RayCluster\nmetadata: {name: a}\nspec: {}\n"
    assert {finding.rule for finding in check_text(bare).findings} <= {"missing-tags", "dashboard-without-auth"}


def test_the_items_of_a_list_are_objects_like_others() -> None:
    listed = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: ray.io/v1\n  kind: RayCluster\n  metadata: {name: a}\n"
    report = check_text(listed + "  spec:\n    headGroupSpec:\n      rayStartParams: {num-gpus: '1'}\n")
    assert ("head-takes-gpu-work", 9) in {(finding.rule, finding.line) for finding in report.findings}


def test_an_autoscaler_of_something_else_is_not_ours() -> None:
    text = (ROOT / "tests" / "manifests" / "bad-scaled-by-cpu.yaml").read_text()
    other = text.replace("    kind: RayService\n    name: small-chat\n", "    kind: Deployment\n    name: web\n")
    assert other != text
    assert "cpu-autoscaling" not in {finding.rule for finding in check_text(other).findings}


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", True),
        ("Qwen/Qwen2.5-32B-Instruct", False),
        ("Qwen/Qwen2.5-32B-Instruct-AWQ", True),
        ("mistralai/Mixtral-8x7B-v0.1", True),  # not known, so not blamed
        ("my/own-model", True),
    ],
)
def test_a_model_in_the_environment_is_sized_by_its_name(name: str, fits: bool) -> None:
    text = f"""
apiVersion: ray.io/v1
kind: RayService
metadata: {{name: llm}}
spec:
  serveConfigV2: |
    applications:
      - name: llm
        import_path: serve:model
        runtime_env:
          env_vars: {{MODEL_ID: {name}}}
  rayClusterConfig:
    workerGroupSpecs:
      - groupName: gpu
        template:
          spec:
            nodeSelector: {{cloud.google.com/gke-accelerator: nvidia-l4}}
            containers: [{{name: ray, image: "a:1", resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]
"""
    assert ("model-too-large" not in {finding.rule for finding in check_text(text).findings}) is fits


def test_time_slices_of_a_gpu_are_not_counted_as_gpus() -> None:
    text = (ROOT / "tests" / "manifests" / "bad-job-left-behind.yaml").read_text()
    shared = text.replace('{num-gpus: "4"}', "{}").replace("nvidia.com/gpu: 1}", "nvidia.com/gpu.shared: 4}")
    assert shared.count("gpu.shared") == 1
    told = [finding.what for finding in check_text(shared).findings if finding.rule == "pod-not-on-instance"]
    assert not [what for what in told if "GPUs" in what]


@pytest.mark.parametrize(("instance", "interfaces", "told"), [
    ("p5.48xlarge", 32, None),
    ("p5.48xlarge", 33, "33 EFA interfaces, and p5.48xlarge has 32"),
    ("g5.12xlarge", 32, "32 EFA interfaces, and g5.12xlarge has 1"),
    ("g5.2xlarge", 1, "1 EFA interfaces, and g5.2xlarge has none"),
])  # fmt: skip
def test_more_interfaces_than_the_instance_has_are_told_in_a_definition_and_in_its_manifests(
    tmp_path: Path, instance: str, interfaces: int, told: str | None
) -> None:
    fabric = f"    fabric:\n      kind: efa\n      interfaces: {interfaces}\n    idle_timeout: 8h\n"
    text = DEFINITION.replace("p5.48xlarge", instance).replace("    idle_timeout: 8h\n", fabric)
    for path in (written(tmp_path, text), rendered(tmp_path, text)):
        found = [each for each in check_file(path, models={}).findings if "EFA" in each.what]
        assert [each.what.partition("asks for ")[2] for each in found] == ([told] if told else [])
        assert all(
            str(interfaces) in path.read_text().splitlines()[each.line - 1] for each in found if each.line is not None
        )


def rendered(tmp_path: Path, text: str) -> Path:
    """The manifests of that definition."""
    path = tmp_path / "manifests.yaml"
    path.write_text(as_yaml(chosen(load(written(tmp_path, text)), "all")))
    return path


def test_the_page_of_rules_is_made_from_the_code() -> None:
    assert (ROOT / "docs" / "rules.md").read_text() == explain("all"), (
        "after a change of a rule: heliostat check --explain all > docs/rules.md"
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_explains_itself(rule: object) -> None:
    text = explain(rule.id)  # type: ignore[attr-defined]
    assert rule.reason in text and rule.cure in text  # type: ignore[attr-defined]  # noqa: PT018


def test_an_unknown_rule_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="idle-gpus"):
        explain("nothing")
