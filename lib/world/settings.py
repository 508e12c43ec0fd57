"""The settings of a world; a profile has one of each folder's settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """IconWorld's size; pictures of both splits come from disjoint colours and backgrounds."""

    seed: int = 0
    train_per_category: int = 120
    val_per_category: int = 16
    specificity_pictures: int = 96
