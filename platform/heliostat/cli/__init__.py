"""The `heliostat` command: verbs for the platform, nouns for what lives on it.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 it failed, 2 the input was wrong.
"""

from __future__ import annotations

import sys


def main() -> None:
    from heliostat.cli.app import app
    from heliostat.errors import HeliostatError
    from heliostat.show import print_error

    try:
        app()
    except HeliostatError as error:
        print_error(error)
        if "--debug" in sys.argv:
            raise
        sys.exit(error.exit_code)
