"""The `heliostat` command: verbs for the platform, nouns for what lives on it.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 it failed, 2 the input was wrong, 130
interrupted; `check` has codes of its own, in its help.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    import typer

    from heliostat.cli.app import app
    from heliostat.cli.examples import attach
    from heliostat.errors import HeliostatError
    from heliostat.show import print_error

    debug = "--debug" in sys.argv
    try:
        attach(typer.main.get_command(app))()
    except HeliostatError as error:
        print_error(error)
        if debug:
            raise
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # a mistake of ours: people get a sentence, and the traceback if they ask for it
        if debug:
            raise
        print_error(
            HeliostatError(f"a mistake in Heliostat: {type(error).__name__}: {error}", do="see it with --debug")
        )
        sys.exit(1)
