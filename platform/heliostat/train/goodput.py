"""Where a training's GPU time went."""

from dataclasses import dataclass


@dataclass
class Account:
    waiting: float = 0.0

    def waited(self, seconds: float, *, workers: int) -> None:
        self.waiting += seconds * workers
