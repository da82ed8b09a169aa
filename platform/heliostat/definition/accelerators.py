"""What a definition must know of an accelerator to ask for one: its names in Kubernetes, in the clouds and in Ray.

Memory, speed and price are not here; they are facts for a planner. Ray's names are those of `ray.util.accelerators` in
Ray 2.60; the product names are values of `nvidia.com/gpu.product` seen on nodes; the clouds' names are the values of
their node labels (Karpenter's instance-types reference, GKE's gke-accelerator).

Recalled rather than read, so to be looked at before they are relied on: the products of T4G, A100 PCIe 40 GB and H100
PCIe, GKE's name of the RTX PRO 6000 and of the TPUs, the MIG profiles of the H100 NVL, and how many NeuronCores a chip
shows. `node_selector` gets round each.
"""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.errors import UsageError


@dataclass(frozen=True)
class Accelerator:
    name: str
    ray_type: str | None
    """The value of ray.io/accelerator-type; None where Ray has no name for it."""
    products: tuple[str, ...] = ()
    """Every spelling of nvidia.com/gpu.product. Compared whole: NVIDIA-L4 is a prefix of NVIDIA-L40S."""
    karpenter: str | None = None
    karpenter_memory_mib: int | None = None
    """Only where one Karpenter name covers two memory sizes."""
    gke: str | None = None
    resource: str = "nvidia.com/gpu"
    """The extended resource of one device."""
    ray_resource: str = "GPU"
    ray_units: int = 1
    """How many of `ray_resource` one device is: Ray counts NeuronCores, Kubernetes counts chips."""
    mig: tuple[str, ...] = ()

    @property
    def is_tpu(self) -> bool:
        return self.ray_resource == "TPU"

    @property
    def is_neuron(self) -> bool:
        return self.ray_resource == "neuron_cores"


def _mig(memory: int, *, half: int, whole: int) -> tuple[str, ...]:
    """The profiles of a card with seven compute slices: `memory` GB in one memory slice, `half` in four."""
    names = [f"1g.{memory}gb", f"1g.{half // 2}gb", f"2g.{half // 2}gb", f"3g.{half}gb", f"4g.{half}gb"]
    return (*names, f"7g.{whole}gb")


_A100_40, _80GB = _mig(5, half=20, whole=40), _mig(10, half=40, whole=80)
_H200, _B200 = _mig(18, half=71, whole=141), _mig(23, half=90, whole=180)
_B300 = _mig(34, half=135, whole=269)
_TPU = {"resource": "google.com/tpu", "ray_resource": "TPU"}
_NEURON = {"resource": "aws.amazon.com/neuron", "ray_resource": "neuron_cores", "ray_type": "aws-neuron-core"}

_ALL = (
    Accelerator("T4", "T4", ("Tesla-T4",), "t4", gke="nvidia-tesla-t4"),
    Accelerator("T4G", None, ("NVIDIA-T4G",), "t4g"),
    Accelerator("V100-16GB", "V100", ("Tesla-V100-SXM2-16GB",), "v100", 16_384, "nvidia-tesla-v100"),
    Accelerator("V100-32GB", "V100", ("Tesla-V100-SXM2-32GB",), "v100", 32_768),
    Accelerator("A10", None, ("NVIDIA-A10", "NVIDIA-A10-24Q")),
    Accelerator("A10G", "A10G", ("NVIDIA-A10G",), "a10g"),
    Accelerator("L4", "L4", ("NVIDIA-L4",), "l4", gke="nvidia-l4"),
    Accelerator("L40S", "L40S", ("NVIDIA-L40S",), "l40s"),
    Accelerator(
        "RTX-PRO-6000-BSE",
        "RTX-PRO-6000",
        ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition",),
        "rtx-pro-server-6000",
        gke="nvidia-rtx-pro-6000",
        mig=("1g.24gb", "2g.48gb", "4g.96gb"),
    ),
    Accelerator(
        "A100-40GB",
        "A100",
        ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
        "a100",
        40_960,
        "nvidia-tesla-a100",
        mig=_A100_40,
    ),
    Accelerator(
        "A100-80GB",
        "A100",
        ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-PCIE-80GB", "NVIDIA-A100-80GB-PCIe"),
        "a100",
        81_920,
        "nvidia-a100-80gb",
        mig=_80GB,
    ),
    Accelerator(
        "H100-80GB",
        "H100",
        ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe"),
        "h100",
        gke="nvidia-h100-80gb",
        mig=_80GB,
    ),
    Accelerator(
        "H100-NVL-94GB",
        "H100",
        ("NVIDIA-H100-NVL",),
        mig=("1g.12gb", "1g.24gb", "2g.24gb", "3g.47gb", "4g.47gb", "7g.94gb"),
    ),
    Accelerator("H200-141GB", "H200", ("NVIDIA-H200",), "h200", gke="nvidia-h200-141gb", mig=_H200),
    Accelerator("B200-180GB", "B200", ("NVIDIA-B200",), "b200", gke="nvidia-b200", mig=_B200),
    Accelerator("B300-270GB", "B300", ("NVIDIA-B300-SXM6-AC",), "b300", mig=_B300),
    Accelerator("GB200-186GB", "GB200", ("NVIDIA-GB200",)),
    Accelerator("MI300X-192GB", "AMD-Instinct-MI300X-OAM", resource="amd.com/gpu"),
    # Cores a chip: Trainium and Inferentia2 have two; a Trainium2 shows four where logical cores join two physical.
    Accelerator("Inferentia2", ray_units=2, **_NEURON),  # type: ignore[arg-type]
    Accelerator("Trainium1", ray_units=2, **_NEURON),  # type: ignore[arg-type]
    Accelerator("Trainium2", ray_units=4, **_NEURON),  # type: ignore[arg-type]
    Accelerator("TPU-v5e", "TPU-V5LITEPOD", gke="tpu-v5-lite-podslice", **_TPU),  # type: ignore[arg-type]
    Accelerator("TPU-v5p", "TPU-V5P", gke="tpu-v5p-slice", **_TPU),  # type: ignore[arg-type]
    Accelerator("TPU-v6e", "TPU-V6E", gke="tpu-v6e-slice", **_TPU),  # type: ignore[arg-type]
)

ACCELERATORS = {accelerator.name: accelerator for accelerator in _ALL}
UNNAMED = Accelerator("", None)
"""GPUs whose kind the definition leaves open: an instance type decides, or the machine at hand."""


def check_accelerator(name: str) -> str:
    """`name` if it is in the table. Raises UsageError with those that are."""
    if name not in ACCELERATORS:
        raise UsageError(f"{name!r} is not a known accelerator", do=f"write one of: {', '.join(ACCELERATORS)}")
    return name
