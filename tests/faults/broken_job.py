"""A job whose training function is wrong, for test_training.py. Run as a script: the function travels by value."""

from __future__ import annotations

import sys

from heliostat.errors import HeliostatError
from heliostat.train.context import TrainContext
from heliostat.train.job import run


def train(context: TrainContext, config: dict[str, str]) -> None:
    raise KeyError(f"there is no column {config['column']!r}")


if __name__ == "__main__":
    try:
        run(train, {"column": "label"}, name="broken", workers=2)
    except HeliostatError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # the job's log
        sys.exit(1)
