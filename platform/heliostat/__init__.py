"""Heliostat: one Ray cluster as a GPU platform.

Importing this package is cheap: ray, torch, boto3 and kubernetes are imported by the functions that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heliostat.version import VERSION

__version__ = VERSION
__all__ = ["Platform", "__version__"]

if TYPE_CHECKING:
    from heliostat.sdk import Platform


def __getattr__(name: str) -> Any:  # Any: the protocol of module attributes
    if name == "Platform":
        from heliostat.sdk import Platform

        return Platform
    raise AttributeError(f"module 'heliostat' has no attribute {name!r}")
