"""RayService and RayJob: other renderings of the same definition, for those who work with these objects.

They are not part of the standing set: a RayService starts a second cluster, and applying a RayJob runs it.
"""

from __future__ import annotations

import json
import shlex

from heliostat.cluster.manifests.meta import Manifest, manifest, object_name
from heliostat.cluster.manifests.raycluster import RAY_API, ray_cluster_spec
from heliostat.definition import ClusterDefinition, JobSpec
from heliostat.plan import fabric

# After the end of a job's own cluster's work: time to read its logs.
_LINGER_S = 300


def ray_service(definition: ClusterDefinition, serve_config: Manifest) -> Manifest:
    """The serving groups with their applications. `serve_config` is the goal state of Serve's REST API."""
    serving = [name for name, group in definition.groups.items() if group.role == "serving"]
    spec = {
        # JSON is YAML; sorted, so that equal configurations are equal strings.
        "serveConfigV2": json.dumps(serve_config, indent=1, sort_keys=True),
        "upgradeStrategy": {"type": "NewCluster"},
        "excludeHeadPodFromServeSvc": True,
        "rayClusterConfig": ray_cluster_spec(definition, serving),
    }
    return manifest(definition, RAY_API, "RayService", definition.name, {"spec": spec})


def ray_jobs(definition: ClusterDefinition) -> list[Manifest]:
    return [ray_job(definition, name, job) for name, job in definition.jobs.items()]


def ray_job(definition: ClusterDefinition, name: str, job: JobSpec) -> Manifest:
    labels = {"kueue.x-k8s.io/queue-name": job.queue} if job.queue else {}
    spec: Manifest = {
        "entrypoint": shlex.join(shlex.split(job.entrypoint)),
        # The operator submits: no pod with the token, and the driver outlives whoever waits for it.
        "submissionMode": "HTTPMode",
        "backoffLimit": job.retries,
        # JSON is YAML. The image holds the recipes; heliostat.train.job reads these.
        "runtimeEnvYAML": json.dumps({"env_vars": {**job.environment(), **_more(definition, job)}}),
        "metadata": {"job": name, "publishes": job.publishes},
        **(_own_cluster(definition, job) if job.cluster == "own" else _shared_cluster(definition)),
    }
    if job.time_limit:
        spec["activeDeadlineSeconds"] = max(1, round(job.time_limit.seconds))
    return manifest(definition, RAY_API, "RayJob", object_name(definition, name), {"spec": spec}, labels=labels)


def _more(definition: ClusterDefinition, job: JobSpec) -> dict[str, str]:
    """Read by heliostat.train.job and heliostat.train.fabric."""
    group = definition.groups.get(job.group)
    if group is None:  # a preview changes one field at a time
        return {}
    fallback = definition.fallback_of(job)
    found = {"HELIOSTAT_FALLBACK": fallback} if fallback else {}
    if (workers := definition.workers_a_node(job)) is not None:
        found["HELIOSTAT_NODE_WORKERS"] = json.dumps(workers, sort_keys=True)
    return found | fabric.environment(group)


def _shared_cluster(definition: ClusterDefinition) -> Manifest:
    return {"clusterSelector": {"ray.io/cluster": definition.name}, "shutdownAfterJobFinishes": False}


def _own_cluster(definition: ClusterDefinition, job: JobSpec) -> Manifest:
    return {
        # Kueue admits a cluster whole, and takes none that scales by itself.
        "rayClusterSpec": ray_cluster_spec(definition, list(job.groups), fixed=job.queue is not None),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _LINGER_S,
    }
