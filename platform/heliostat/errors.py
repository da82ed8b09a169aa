"""Every error that Heliostat raises, in one tree.

    HeliostatError
      UsageError           a value given by the caller is wrong (exit 2)
        DefinitionError    a cluster definition has mistakes, all of them listed (exit 2)
      SettingsError        no settings, or settings that cannot be read
      StoreError           the object store refused or failed
        StoreUnreachable   nothing answers at the endpoint
        ObjectMissing      there is no object under that key
        ObjectExists       a create found an object there already
        SwapLost           a swap found another object than the one it was to replace
      RegistryError
        UnknownModel  UnknownVersion  UnknownAlias
        AliasMoved         somebody else moved the alias first
        CorruptArtifact    bytes that are not the ones the manifest names
        UnsafeArtifact     a file that the registry does not take, such as a pickle
        VersionHeld        somebody uses the version, or is deleting it
      GateRefused          a candidate did not pass the gate of its application
      ReleaseConflict      another release of the application goes on, or was first
      ReleaseRolledBack    the platform took the version back; says why
      ClusterError
        PortInUse  ClusterNotUp  ClusterBusy  NodeFailed
        KubernetesError    the Kubernetes API server refused, or did not answer
          Forbidden          a permission (RBAC) is missing
          KindMissing        the server does not know a kind: its CRD is not installed
          FieldConflict      another manager owns a field that is to change
          NotOurs            an object of that name belongs to somebody else
          AdmissionRefused   a webhook, a quota or a policy said no
          NotReady           applied, but not ready within its time; says why
      JobError
        JobFailed
        TrainingSuperseded   another attempt of the run has taken over
        BudgetSpent          the team or the project has used what it may
      AppError
        AppNotReady

Each message has three parts: what was wrong with the value shown, where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar


class HeliostatError(Exception):
    """The root. `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        text = f"{self.what} ({self.where})" if self.where else self.what
        return f"{text}; {self.do}" if self.do else text

    def __reduce__(self) -> tuple[Any, ...]:  # Any: pickle's protocol. Errors cross processes in Ray.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(kind: type[HeliostatError], args: tuple[Any, ...], state: dict[str, Any]) -> HeliostatError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(HeliostatError, ValueError):
    """A value given by the caller is wrong. A ValueError too, so that pydantic collects it with the others."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a file. `line` counts from 1; None where the definition did not come from a file."""

    field: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f" ({self.file}, line {self.line})" if self.file and self.line else f" ({self.file})" * bool(self.file)
        return f"{self.field}: {self.message}{place}" if self.field else f"{self.message}{place}"


class DefinitionError(HeliostatError):
    """A definition has mistakes; `problems` holds all of them, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem], *, do: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 mistake" if count == 1 else f"{count} mistakes"
        super().__init__("\n  ".join([f"{head} in the definition:", *map(str, self.problems)]), do=do)

    def __str__(self) -> str:
        return f"{self.what}\n{self.do}" if self.do else self.what


class SettingsError(HeliostatError):
    """There are no settings for the cluster, or they cannot be read."""


class StoreError(HeliostatError):
    """The object store refused a request, or failed after all retries."""


class StoreUnreachable(StoreError):
    """Nothing answers at the store's endpoint."""


class ObjectMissing(StoreError):
    """There is no object under the key."""


class ObjectExists(StoreError):
    """A create found an object under its key. It may be the caller's own, when an answer was lost: read back."""


class SwapLost(StoreError):
    """A swap found another object than the one it was to replace, or none. Read back, as for ObjectExists."""


class RegistryError(HeliostatError):
    """The model registry cannot do what was asked."""


class UnknownModel(RegistryError):
    """No version of a model of that name was ever published."""


class UnknownVersion(RegistryError):
    """The model exists, that version of it does not."""


class UnknownAlias(RegistryError):
    """The model exists, that alias of it does not."""


class AliasMoved(RegistryError):
    """The alias does not stand where the caller expected it: somebody else moved it."""


class CorruptArtifact(RegistryError):
    """A file is missing, or its bytes are not the ones its manifest names."""


class UnsafeArtifact(RegistryError):
    """A file that could run code when loaded, or that is not what its name says."""

    exit_code = 2


class VersionHeld(RegistryError):
    """The version cannot be deleted, since it is in use; or not be used, since it is being deleted."""


class GateRefused(HeliostatError):
    """The candidate did not pass the gate; production was left as it is."""


class ReleaseConflict(HeliostatError):
    """Another release of the same application goes on, or its record was written by somebody else first."""


class ReleaseRolledBack(HeliostatError):
    """The version was taken back by itself: the one before answers, and the history has the reason."""


class ClusterError(HeliostatError):
    """A cluster did not do what was asked."""


class PortInUse(ClusterError):
    """A port that the definition names is taken by another process."""


class ClusterNotUp(ClusterError):
    """There is no such cluster, or it does not run."""


class ClusterBusy(ClusterError):
    """Another command works on the cluster, or it is up with another definition."""


class NodeFailed(ClusterError):
    """A worker node did not start, or ended by itself."""


class KubernetesError(ClusterError):
    """The Kubernetes API server refused a request, or did not answer after all retries."""


class Forbidden(KubernetesError):
    """The caller lacks a permission; `do` holds the RBAC rule that grants it."""


class KindMissing(KubernetesError):
    """The API server does not know a kind: its CRD is not installed."""


class FieldConflict(KubernetesError):
    """Another field manager owns fields that are to change; nothing was changed."""


class NotOurs(KubernetesError):
    """An object of that name exists and this cluster does not own it; nothing was changed."""


class AdmissionRefused(KubernetesError):
    """An admission webhook, a quota or a policy refused the object; its own words are passed on."""


class NotReady(KubernetesError):
    """Applied, but not ready within its time; the message lists the causes."""


class JobError(HeliostatError):
    """A job cannot be submitted, found or stopped."""


class JobFailed(JobError):
    """The job ran and ended without its result."""


class FabricTooSlow(JobError):
    """The network between a gang's nodes is far below what the definition says."""


class TrainingSuperseded(JobError):
    """Raised in a worker that was taken for dead: another attempt of its run goes on."""


class BudgetSpent(JobError):
    """The team's or the project's budget of this month is used up; nothing was submitted."""


class AppError(HeliostatError):
    """An application cannot be deployed, found or changed."""


class AppNotReady(AppError):
    """The application did not become ready within its time."""
