"""Options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Cluster = Annotated[str | None, typer.Option("--cluster", help="Which cluster; the current one if not given.")]
