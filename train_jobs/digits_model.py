"""The network that reads handwritten digits: shared by its training and its serving, which need nothing else of each
other.

Shapes: B images of 8 by 8, C = 10 classes.
"""

from __future__ import annotations

from torch import Tensor, nn


class DigitNet(nn.Module):
    """Two convolutions and two linear layers, 40 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # [B, 32, 4, 4]
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, 8, 8], 0 to 1 -> [B, C] logits."""
        logits: Tensor = self.layers(images)
        return logits
