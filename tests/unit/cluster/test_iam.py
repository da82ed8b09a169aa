"""The documents grant what the package calls, and nothing else: the calls are read out of its source."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from heliostat import store
from heliostat.cluster import iam
from heliostat.cluster.kubernetes import api
from heliostat.cluster.manifests import render
from heliostat.definition import load
from heliostat.errors import UsageError
from heliostat.plan import live

CLUSTER = Path(__file__).parents[3] / "cluster"


def calls(module: object, pattern: str) -> set[str]:
    return set(re.findall(pattern, inspect.getsource(module)))  # type: ignore[arg-type]


def test_every_call_of_the_store_is_granted_and_nothing_more() -> None:
    tree = ast.parse(inspect.getsource(store))
    asked = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("obstore", "client")
    }
    asked |= calls(store, r'get_paginator\("(\w+)"\)')
    # Of the embedded cluster's own bucket, which it makes for itself.
    asked -= {"get_paginator", "create_bucket"}
    assert asked == set(iam.S3_OBJECTS) | set(iam.S3_BUCKET)


def test_every_call_of_the_planner_is_granted_and_nothing_more() -> None:
    asked = calls(live, r'"((?:describe|list)_\w+)"') | calls(live, r"\.((?:describe|list|get)_\w+)\(")
    assert asked - {"get_paginator", "get_credentials"} == set(iam.PLANNER)
    assert all(re.search(":(Describe|List)", action) for action in iam.PLANNER.values())


def test_every_verb_of_apply_is_granted_and_nothing_more() -> None:
    asked = calls(api, r'_asked\("(\w+)"')
    assert asked | {"create"} == set(iam.APPLY_VERBS)  # an applied patch creates what is not there


@pytest.mark.parametrize("name", ["aws", "azure", "gcp", "onprem"])
def test_every_rendered_kind_may_be_applied(name: str) -> None:
    definition = load(CLUSTER / f"{name}.yaml")
    found = iam.documents(definition)
    granted = {(group, plural) for rule in found["apply"]["rules"] for group in rule["apiGroups"]
               for plural in rule["resources"]}  # fmt: skip
    for item in render(definition):
        assert (item["apiVersion"].rpartition("/")[0], iam._plural(item["kind"])) in granted
    assert not any("*" in rule["resources"] or "*" in rule["verbs"] for rule in found["apply"]["rules"])


def test_the_stores_rights_end_at_its_bucket() -> None:
    definition = load(CLUSTER / "aws.yaml")
    found = iam.documents(definition)
    allowed = [one for one in found["store"]["Statement"] if one["Effect"] == "Allow"]
    assert {one["Resource"] for one in allowed} == {
        f"arn:aws:s3:::{definition.store.bucket}", f"arn:aws:s3:::{definition.store.bucket}/*"
    }  # fmt: skip
    assert not any("*" in action for one in allowed for action in one["Action"])


def test_an_embedded_cluster_asks_for_nothing() -> None:
    with pytest.raises(UsageError, match="names no platform"):
        iam.documents(load(CLUSTER / "laptop.yaml"))
