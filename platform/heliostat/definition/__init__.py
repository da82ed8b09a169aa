"""The cluster definition: what a platform engineer writes and reviews, as one typed value.

`load(path)` reads the YAML. The types are in `model`, the rules between them in `checks`, the JSON Schema for editors
in `schema`.
"""

from heliostat.definition.accelerators import ACCELERATORS, Accelerator
from heliostat.definition.load import definition_files, load
from heliostat.definition.model import (
    Application,
    Budget,
    Budgets,
    ClusterDefinition,
    Fabric,
    GateRules,
    JobSpec,
    Karpenter,
    ReleaseRules,
    Retrain,
    Sharing,
    StoreSpec,
    Tags,
    Taint,
    Volume,
    WasteRules,
    WorkerGroup,
)

__all__ = [
    "load",
    "definition_files",
    "ClusterDefinition",
    "WorkerGroup",
    "Application",
    "JobSpec",
    "Karpenter",
    "Sharing",
    "StoreSpec",
    "GateRules",
    "ReleaseRules",
    "Retrain",
    "Tags",
    "WasteRules",
    "Budget",
    "Budgets",
    "Fabric",
    "Taint",
    "Volume",
    "Accelerator",
    "ACCELERATORS",
]
