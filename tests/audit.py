"""Known vulnerabilities of what the locks hold, by pip-audit: the last step of `make check`.

Ends with 1 where there are any. Where the service that knows them does not answer, or does not know the packages, it
says that nothing was audited and ends with 0: a check without a network must not fail, and not pass in silence.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"]
PROBE_S, LIMIT_S = 15, 300


def ask(locks: list[Path], limit_s: float) -> list[dict[str, Any]] | None:  # Any: JSON
    """What is known of each package; None where nobody answered."""
    files = [word for lock in locks for word in ("-r", str(lock))]
    command = [sys.executable, "-m", "pip_audit", *files, "--disable-pip", "--no-deps", "-f", "json", "--timeout", "5"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=limit_s, check=False
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return found if any("skip_reason" not in one for one in found) else None


def probe() -> bool:
    """Whether the service answers at all, from one package: two hundred would each wait in vain."""
    pin = re.search(r"^pip==\S+", LOCKS[0].read_text(), re.MULTILINE)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as one:
        one.write(pin[0] if pin else "pip==26.3")
        one.flush()
        return ask([Path(one.name)], PROBE_S) is not None


def report(found: list[dict[str, Any]] | None) -> tuple[list[str], int]:
    """Lines for a person, and the exit code."""
    if found is None:
        return ["not audited: the service of known vulnerabilities cannot be reached"], 0
    bad = [(one, each) for one in found for each in one.get("vulns", ())]
    lines = [
        f"{one['name']} {one['version']}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'no version'}"
        for one, each in bad
    ]
    skipped = [one["name"] for one in found if "skip_reason" in one]
    if skipped:
        lines.append(f"not audited: {', '.join(skipped)}")
    return [*lines, f"{len(found) - len(skipped)} packages audited, {len(bad)} known vulnerabilities"], int(bool(bad))


def main() -> int:
    lines, code = report(ask(LOCKS, LIMIT_S) if probe() else None)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
