"""How training images are changed at random: a function of the seed, the image and the epoch."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.data.randomness import derive_seed


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What makes a dataset a training one.

    Attributes:
        ``seed``: The number of which the order and every random change are a function.
        ``mixup``, ``cutmix``: The alphas with which the images of a batch are mixed; 0: they are not.
        ``random``: Whether images are changed at random at all.
        ``alternating``: Whether each image is mirrored in every other epoch, whatever else happens to it.
        ``distinct``: How many forms of an image there are in all; 0: no end of them.
        ``views``: After so many epochs, counted from ``first_epoch``, an image's changes come again; 0: they are
            always new.
        ``first_epoch``: Where ``views`` are counted from.
    """

    seed: int
    mixup: float = 0.0
    cutmix: float = 0.0
    random: bool = True
    alternating: bool = False
    distinct: int = 0
    views: int = 0
    first_epoch: int = 0

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with one another."""
        return self.mixup > 0 or self.cutmix > 0

    def mirrors(self, index: int, epoch: int) -> bool:
        """Whether ``alternating`` mirrors this image in this epoch."""
        return self.alternating and (derive_seed("flip", self.seed, index) + self.epoch_of_draws(epoch)) % 2 == 1

    def epoch_of_draws(self, epoch: int) -> int:
        """The epoch whose random changes are made in this one."""
        return self.first_epoch + (epoch - self.first_epoch) % self.views if self.views else epoch
