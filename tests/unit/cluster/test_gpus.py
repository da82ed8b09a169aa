"""What the driver says of the GPUs, as it says it."""

from __future__ import annotations

from heliostat.cluster.gpus import parse_smi, with_xids
from heliostat.plan.sick import GpuHealth

SMI = """\
0, 00000000:3B:00.0, 0, 0
1, 00000000:86:00.0, 3, 1
2, 00000000:AF:00.0, [N/A], [N/A]
Unable to determine the device handle for GPU3: 0000:D8:00.0: Unknown Error
"""


def test_each_gpu_is_a_line_and_what_is_not_counted_is_not_known() -> None:
    assert parse_smi(SMI) == [
        GpuHealth(0, "00000000:3B:00.0", 0),
        GpuHealth(1, "00000000:86:00.0", 3, True),
        GpuHealth(2, "00000000:AF:00.0"),
    ]
    assert parse_smi("No devices were found\n") == []


def test_an_xid_is_the_gpu_s_whose_address_it_has() -> None:
    log = [
        "6,1234,99,-;NVRM: Xid (PCI:0000:86:00): 79, pid=1, name=python, GPU has fallen off the bus.",
        "6,1235,99,-;NVRM: loading driver",
    ]
    first, second, _ = with_xids(parse_smi(SMI), log)
    assert (first.xids, second.xids) == ((), (79,))
