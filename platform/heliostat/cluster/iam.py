"""The least that the parts may be allowed, as documents to give to whoever grants rights. Pure.

What Heliostat calls is listed here once, beside what must be granted for it; `tests/unit/cluster/test_iam.py` reads the
calls out of the package and fails where one is missing or granted for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliostat.cluster.kubernetes.objects import OWNED_KINDS
from heliostat.cluster.manifests import render
from heliostat.definition import ClusterDefinition
from heliostat.errors import UsageError

Document = dict[str, Any]  # Any: JSON

S3_OBJECTS: Mapping[str, tuple[str, ...]] = {
    "get": ("s3:GetObject",),
    "get_range": ("s3:GetObject",),
    "head": ("s3:GetObject",),
    "sign": ("s3:GetObject",),
    "put": ("s3:PutObject", "s3:AbortMultipartUpload"),
    "abort_multipart_upload": ("s3:AbortMultipartUpload",),
    "delete": ("s3:DeleteObject",),
}
"""What the calls of obstore and boto3 ask of S3, for an object."""
S3_BUCKET: Mapping[str, tuple[str, ...]] = {
    "list": ("s3:ListBucket",),
    "list_with_delimiter": ("s3:ListBucket",),
    "list_multipart_uploads": ("s3:ListBucketMultipartUploads",),
}
"""Of the bucket. It is made by whoever owns the account, so nothing here may make or delete one."""
PLANNER: Mapping[str, str] = {
    "describe_instance_types": "ec2:DescribeInstanceTypes",
    "describe_spot_price_history": "ec2:DescribeSpotPriceHistory",
    "describe_instances": "ec2:DescribeInstances",
    "describe_reserved_instances_offerings": "ec2:DescribeReservedInstancesOfferings",
    "describe_capacity_block_offerings": "ec2:DescribeCapacityBlockOfferings",
    "list_service_quotas": "servicequotas:ListServiceQuotas",
    "list_aws_default_service_quotas": "servicequotas:ListAWSDefaultServiceQuotas",
}
"""What `heliostat plan --live` reads of AWS; it changes nothing there."""
APPLY_VERBS = ("create", "delete", "get", "list", "patch", "watch")


def documents(definition: ClusterDefinition) -> dict[str, Document]:
    """By name: `store` for the cluster's own identity, `planner` for who plans, `apply` for who applies manifests.

    Raises UsageError where the definition is of no platform, as an embedded cluster's is.
    """
    if definition.platform is None:
        raise UsageError(f"{definition.name} names no platform", do="an embedded cluster asks nobody for rights")
    found = {"apply": _role(definition)}
    if definition.store.endpoint is None:  # AWS's own S3
        found |= {"store": _store(definition), "planner": _planner()}
    return found


def _store(definition: ClusterDefinition) -> Document:
    bucket = f"arn:aws:s3:::{definition.store.bucket}"
    plain = {"Bool": {"aws:SecureTransport": "false"}}
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": "Objects", "Effect": "Allow", "Action": _actions(S3_OBJECTS), "Resource": f"{bucket}/*"},
            {"Sid": "Bucket", "Effect": "Allow", "Action": _actions(S3_BUCKET), "Resource": bucket},
            {"Sid": "OnlyByTls", "Effect": "Deny", "Action": "s3:*", "Resource": [bucket, f"{bucket}/*"],
             "Condition": plain},
        ],
    }  # fmt: skip


def _actions(table: Mapping[str, tuple[str, ...]]) -> list[str]:
    return sorted({action for actions in table.values() for action in actions})


def _planner() -> Document:
    """Descriptions have no resource to narrow them to."""
    actions = sorted(PLANNER.values())
    return {
        "Version": "2012-10-17",
        "Statement": [{"Sid": "Read", "Effect": "Allow", "Action": actions, "Resource": "*"}],
    }


def _role(definition: ClusterDefinition) -> Document:
    """A ClusterRole: some of the objects, such as node pools, lie in no namespace."""
    kinds: dict[str, set[str]] = {"": {"pods", "events", "namespaces"}}
    rendered = [(item["apiVersion"], item["kind"]) for item in render(definition)]
    for version, kind in (*rendered, *OWNED_KINDS):  # also those that a change of the definition leaves behind
        kinds.setdefault(version.rpartition("/")[0], set()).add(_plural(kind))
    rules = [
        {"apiGroups": [group], "resources": sorted(names), "verbs": list(APPLY_VERBS)}
        for group, names in sorted(kinds.items())
    ]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": f"{definition.name}-apply"},
        "rules": rules,
    }


def _plural(kind: str) -> str:
    name = kind.lower()
    if name.endswith(("s", "x")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
