"""Photographs to training material: crops, and pairs of a crop and its degraded version.

Every draw is a pure function of a seed and an index, so a run that was interrupted continues
with exactly the data it would have seen. Knows the photo folder `python -m tools.photos` writes
(`pure.pairs` reads any other); knows nothing of networks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from imaging.degrade import (
    PRESETS,
    THRESHOLDS,
    DegradationParameters,
    DegradationScores,
    Thresholds,
    levels,
    scores,
    synthesise,
    usm_sharpen,
)
from pure.belief import label_text

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Photo:
    """One photograph and what is truthfully known about it."""

    id: str
    kind: str  # the one general class: "animal"
    words: tuple[str, ...]  # content words, most important first: ("koala", "animal")
    plain_background: bool
    pixels: np.ndarray  # uint8 (H, W, 3) RGB


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The records of `index.json` in `folder`.

    Raises:
        FileNotFoundError: the photographs have not been gathered.
    """
    path = folder / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `make data` to gather the photographs")
    return json.loads(path.read_text())


def load_photos(folder: Path, split: Split, *, min_side: int) -> list[Photo]:
    """The photographs of one split whose shorter side is at least `min_side`, in index order."""
    photos = []
    for record in read_index(folder):
        if record["split"] != split or min(record["width"], record["height"]) < min_side:
            continue
        with Image.open(folder / record["file"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        photos.append(
            Photo(
                record["id"],
                record["kind"],
                tuple(record["words"]),
                bool(record["plain_background"]),
                pixels,
            )
        )
    if not photos:
        raise ValueError(f"{folder} holds no {split} photograph of at least {min_side} pixels")
    return photos


@dataclass(frozen=True)
class Crop:
    """A square cut from a photo, scaled to the training size."""

    photo: Photo
    pixels: np.ndarray  # uint8 (size, size, 3) RGB


class CropSampler:
    """Draws random crops; crop i of seed s is always the same crop.

    Larger photos are drawn more often (by the square root of their area), those on a plain
    background a third as often. The region cut is 1 to `max_reduction` times the crop size,
    drawn log-uniformly, and reduced with an area filter, so textures come at many scales. A
    photo smaller than the crop gives its largest square, enlarged.
    """

    def __init__(
        self, photos: Sequence[Photo], size: int, *, seed: int, max_reduction: float = 4.0
    ) -> None:
        self.photos = photos
        self.size = size
        self.seed = seed
        self.max_reduction = max_reduction
        weights = np.array(
            [
                np.sqrt(p.pixels.shape[0] * p.pixels.shape[1]) / (3 if p.plain_background else 1)
                for p in photos
            ]
        )
        self._cumulative = np.cumsum(weights / weights.sum())

    def crop(self, index: int) -> Crop:
        """Crop number `index`."""
        rng = np.random.default_rng([self.seed, index])
        choice = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        photo = self.photos[min(choice, len(self.photos) - 1)]
        H, W = photo.pixels.shape[:2]
        largest = max(1.0, min(self.max_reduction, min(H, W) / self.size))
        region = min(round(self.size * np.exp(rng.uniform(0, np.log(largest)))), H, W)
        top = int(rng.integers(H - region + 1))
        left = int(rng.integers(W - region + 1))
        pixels = photo.pixels[top : top + region, left : left + region]
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if region != self.size:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            resample = Image.Resampling.BOX if region > self.size else Image.Resampling.BICUBIC
            pixels = np.asarray(image.resize((self.size, self.size), resample))
        return Crop(photo, np.ascontiguousarray(pixels))


@dataclass(frozen=True)
class Pair:
    """A crop and its degraded version.

    Attributes:
        crop: the reference, sharpened if the recipe says so.
        small: uint8 (size / 4, size / 4, 3) RGB, as degraded.
        parameters: what was done to get it.
    """

    crop: Crop
    small: np.ndarray
    parameters: DegradationParameters

    @property
    def lq(self) -> np.ndarray:
        """The degraded picture enlarged to the reference's size, uint8 (size, size, 3) RGB."""
        size = self.crop.pixels.shape[1::-1]
        enlarged = Image.fromarray(self.small).resize(size, Image.Resampling.BICUBIC)
        return np.asarray(enlarged)


def make_pair(crop: Crop, seed: int, preset: str, *, sharpen: bool = False) -> Pair:
    """Degrade a crop four times smaller by a preset of `imaging.degrade`.

    Args:
        crop: the reference.
        seed: of everything drawn.
        preset: a name in `imaging.degrade.PRESETS`.
        sharpen: sharpen the reference first where the preset expects that. SeeSR does, and
            trains towards the sharpened one.
    """
    if sharpen and PRESETS[preset].sharpen_gt:
        crop = Crop(crop.photo, usm_sharpen(crop.pixels))
    return Pair(crop, *synthesise(crop.pixels, preset, seed))


class Labeller(Protocol):
    """Says how strong a degradation is, and where small, medium and large part."""

    @property
    def source(self) -> str:
        """What the scores are, for a data set's card."""
        ...

    @property
    def thresholds(self) -> Thresholds:
        """In the scores' unit."""
        ...

    def scores(self, pair: Pair) -> DegradationScores:
        """Scores of a pair's degraded picture."""
        ...


class KnownLabels:
    """Labels from how the degradation was made; true by construction."""

    source = "the known degradation: width of its kernels, noise left in the picture"

    def __init__(self, thresholds: Thresholds = THRESHOLDS) -> None:
        self.thresholds = thresholds

    def scores(self, pair: Pair) -> DegradationScores:
        return scores(pair.crop.pixels, pair.small, pair.parameters)


def label(pair: Pair, labeller: Labeller) -> str:
    """The degradation label of a pair, in the paper's wording."""
    return label_text(*levels(labeller.scores(pair), labeller.thresholds))
