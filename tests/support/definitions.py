"""Valid definitions for property tests, for every platform, out towards the edges of what is allowed."""

from __future__ import annotations

from datetime import date
from typing import Any

from hypothesis import strategies as st

from heliostat.definition import ACCELERATORS, Accelerator

PLATFORMS = ("eks-karpenter", "eks", "gke", "aks", "on-premises")
IMAGE = "registry.example/heliostat:0.2.0"

names = st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True).filter(
    lambda name: name not in ("head", "null", "true", "false", "yes", "no", "on", "off")
)
label_values = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
label_keys = st.from_regex(r"([a-z0-9]{1,8}\.example/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
zones = st.from_regex(r"[a-z]{2,8}-[a-z]{4,8}-[1-9][a-d]?", fullmatch=True)
durations = st.one_of(
    st.integers(1, 86_400).map(lambda s: f"{s}s"), st.integers(1, 90).map(lambda m: f"{m}m"), st.just("1h30m")
)
ranges = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: f"{min(pair)}..{max(pair) or 1}")
sizes = st.one_of(
    st.integers(1, 4000).map(lambda n: f"{n}GiB"),
    st.integers(1024, 9000).map(lambda n: f"{n}MiB"),
    st.sampled_from(["1.5TB", "1TiB", "1000000000", "1.5GiB"]),
)
waste = st.fixed_dictionaries(
    {},
    optional={
        "after": durations,
        "act": st.sampled_from(["tell", "scale-to-zero", "stop"]),
        "warn": durations,
        "dry_run": st.booleans(),
        "quiet": st.lists(st.sampled_from(["Sat-Sun", "Mon-Fri 20:00-06:00", "Wed 00:00-23:59"]), max_size=2),
        "exempt": st.dictionaries(
            st.sampled_from(["nightly", "team:voice"]),
            st.dates(date(2020, 1, 1), date(2099, 12, 31)).map(str),
            max_size=2,
        ),
    },
)
small_sizes = st.integers(1, 64).map(lambda n: f"{n}MiB")


def _offered(platform: str) -> list[str]:
    def fits(device: Accelerator) -> bool:
        if device.is_tpu or platform == "gke":
            return platform == "gke" and device.gke is not None
        return not device.is_neuron or platform in ("eks-karpenter", "eks")

    return [name for name, device in ACCELERATORS.items() if fits(device)]


@st.composite
def groups(draw: st.DrawFn, platform: str, role: str) -> dict[str, Any]:
    markets = ["on-demand", "reserved"] + (["spot"] if role == "training" and platform != "on-premises" else [])
    group: dict[str, Any] = {
        "role": role,
        "market": draw(st.sampled_from(markets)),
        "cpus": draw(st.integers(1, 192)),
        "memory": draw(st.integers(1, 2000).map(lambda n: f"{n}GiB")),
        "gpus": 0,
        "nodes": draw(ranges),
    }
    if group["market"] == "reserved" and platform in ("eks-karpenter", "gke"):
        group["reservation"] = draw(st.from_regex(r"cr-[a-z0-9]{1,12}", fullmatch=True))
    if draw(st.booleans()):
        _add_accelerator(draw, group, platform)
    optional = {
        "idle_timeout": durations,
        "priority": st.integers(-1000, 1000),
        "node_selector": st.dictionaries(label_keys, label_values, max_size=2),
        "taints": st.lists(
            st.fixed_dictionaries(
                {"key": label_keys},
                optional={"value": label_values, "effect": st.sampled_from(["NoSchedule", "NoExecute"])},
            ),
            max_size=2,
        ),
        "tolerations": st.lists(st.fixed_dictionaries({"key": label_keys}), max_size=2),
        "shared_memory": small_sizes,
        "volumes": volumes(),
    }
    for key, strategy in optional.items():
        if draw(st.integers(0, 3)) == 0:
            group[key] = draw(strategy)
    placement = draw(st.sampled_from(["any", "compact" if role == "training" else "spread"]))
    group["placement"] = placement
    if placement != "spread" and draw(st.booleans()):
        group["zone"] = draw(zones)
    if role == "training" and platform != "gke" and draw(st.booleans()):
        kind = "efa" if platform.startswith("eks") else "infiniband"
        group["fabric"] = {"kind": kind, "interfaces": draw(st.integers(1, 32))}
    return group


def _add_accelerator(draw: st.DrawFn, group: dict[str, Any], platform: str) -> None:
    device = ACCELERATORS[draw(st.sampled_from(_offered(platform)))]
    group |= {"accelerator": device.name, "gpus": draw(st.integers(1, 16))}
    if (platform == "eks-karpenter" and device.karpenter is None) or draw(st.booleans()):
        group["instance"] = draw(st.from_regex(r"[a-z][a-z0-9]{1,6}\.[a-z0-9]{2,8}", fullmatch=True))
    if device.is_tpu:
        group |= {"gpus": draw(st.sampled_from([1, 2, 4])), "topology": draw(st.sampled_from(["2x2", "2x4", "4x4x4"]))}
    elif device.mig and draw(st.booleans()):
        group["mig"] = draw(st.sampled_from(device.mig))


@st.composite
def volumes(draw: st.DrawFn) -> dict[str, Any]:
    found = {}
    for index, name in enumerate(draw(st.lists(names, unique=True, max_size=2))):
        kind = draw(st.sampled_from(["local-nvme", "memory", "claim"]))
        volume: dict[str, Any] = {"mount": f"/data/{index}", "kind": kind}
        if kind == "claim":
            volume |= {"claim": draw(names), "read_only": draw(st.booleans())}
        else:
            volume["size"] = draw(small_sizes if kind == "memory" else sizes)
        found[name] = volume
    return found


@st.composite
def definitions(draw: st.DrawFn, platform: str | None = None) -> dict[str, Any]:
    """Plain data, as a file would hold it."""
    platform = platform or draw(st.sampled_from(PLATFORMS))
    chosen = draw(st.lists(names, unique=True, min_size=2, max_size=4))
    roles = ["serving", "training", *(draw(st.sampled_from(["serving", "training"])) for _ in chosen[2:])]
    specs = {name: draw(groups(platform, role)) for name, role in zip(chosen, roles, strict=True)}
    data: dict[str, Any] = {
        "name": draw(names),
        "platform": platform,
        "ray": {"image": IMAGE},
        "groups": specs,
        "store": {"kind": "s3", "bucket": "some-bucket"},
        "tags": {"team": draw(names), "project": draw(names)},
        "applications": {
            draw(names): {
                "recipe": "serve_apps.some:Some",
                "model": "some@production",
                "group": chosen[0],
                "route": "/some",
                "replicas": draw(ranges),
                "gpus_per_replica": 0,
                "idle_timeout": draw(durations),
            }
        },
        "jobs": {draw(names): draw(jobs(chosen[1]))},
    }
    if platform == "eks-karpenter":
        data["karpenter"] = {"node_role": "Role", "discovery": "some"}
    if draw(st.booleans()):
        data["head"] = {"cpus": draw(st.integers(1, 64)), "memory": "16GiB", "state": {"redis": "redis.example:6379"}}
    if draw(st.booleans()):
        data["observability"] = {"metrics": True, "alerts": True, "interval": draw(durations)}
        data["budgets"] = {"max_gpus": 10**6, "gpu_hours_per_month": draw(st.integers(1, 10**6))}
        limits = {
            "gpu_hours": draw(st.floats(0.1, 1e6)),
            "at_limit": draw(st.sampled_from(["tell", "refuse", "pause"])),
        }
        data["budgets"] |= {"teams": {"voice": limits}, "projects": {"words": {"usd": draw(st.integers(1, 10**6))}}}
    if draw(st.booleans()):
        data["waste"] = draw(waste)
    if draw(st.booleans()):
        data["network"] = {"clients": draw(st.lists(names, max_size=3))}
    if draw(st.booleans()):
        data["auth"] = {"token_secret": draw(names)}
    return data


@st.composite
def jobs(draw: st.DrawFn, group: str) -> dict[str, Any]:
    job: dict[str, Any] = {"entrypoint": "python -m train_jobs.some --epochs 3", "group": group, "publishes": "some"}
    if draw(st.booleans()):
        job |= {"cluster": "own", "queue": draw(names)}
    if draw(st.booleans()):
        job |= {"time_limit": draw(durations), "retries": draw(st.integers(0, 100))}
    return job
