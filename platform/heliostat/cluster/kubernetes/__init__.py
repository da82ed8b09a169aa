"""A cluster on Kubernetes: rendered manifests go in, by server-side apply, and come out.

    objects   what the objects are, whose, and in which order           pure
    diff      what an apply would change, in words                      pure
    api       one API server: requests, retries, watches, refusals      the seam to the `kubernetes` client
    refusal   the server's refusals in words, with a cure               pure
    scale     what belongs to the Ray autoscaler                        pure
    applying  plan, apply, remove
    leftovers what of ours is no longer wanted
    ready     is it up
    why       and if not, why not                                       pure

Nothing is remembered between two commands: what is there is read from the server each time, so a command that was
killed is finished by running it again.
"""

from heliostat.cluster.kubernetes.api import Api
from heliostat.cluster.kubernetes.applying import Plan, apply, plan, plan_removal, remove
from heliostat.cluster.kubernetes.objects import Object, cluster_of, load
from heliostat.cluster.kubernetes.ready import wait_ready

__all__ = ["Api", "Object", "Plan", "load", "cluster_of", "plan", "apply", "plan_removal", "remove", "wait_ready"]
