from __future__ import annotations

import logging

from heliostat.controller.loop import Controller
from heliostat.settings import load


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    Controller(load()).run()


if __name__ == "__main__":
    main()
