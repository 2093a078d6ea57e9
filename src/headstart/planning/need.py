"""The memory that training steps need, as a value."""

from __future__ import annotations

from dataclasses import dataclass

IN_FLIGHT = 3  # of the largest tensor per image: a layer's output, its gradient, and the convolution's scratch


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes that the steps take beyond the model itself."""

    gradients: int
    optimizer: int
    average: int
    retained: int
    """Bytes kept for the backward pass whatever the number of images."""
    retained_per_image: int
    largest_per_image: int

    def at_least(self, images: int) -> int:
        """Bytes that are alive at once when a forward pass of so many images ends, from the second step on."""
        return self.optimizer + self.average + self.retained + images * self.retained_per_image

    def about(self, images: int) -> int:
        """Bytes of a step of so many images, gradients and what a layer works with included."""
        return self.at_least(images) + self.gradients + images * IN_FLIGHT * self.largest_per_image

    def forward(self, images: int) -> int:
        """Bytes of an evaluation of so many images, which keeps nothing."""
        return images * IN_FLIGHT * self.largest_per_image
