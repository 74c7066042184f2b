"""What is particular to PURE-nano: its vocabulary, its captions, its checkpoint folder.

Everything else about it is the released model's classes at another size. Its words are few, so
a caption has one fixed form, filled with what is known (the photo's content words) and what
can be measured in the crop (colours, brightness, texture).
"""

import colorsys
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from pure.belief import INSTRUCTION, LEVELS, TextTokenizer, label_text
from pure.data import Photo
from pure.model import TransformerConfig
from pure.start import Pointer
from pure.vocab import CONTROLS, UNK, code_name, grid_name
from pure.vq import VQConfig

LONGEST_SIDE = 16  # grid units: 512 px
COLOURS = (
    *("black", "white", "grey", "red", "orange", "yellow"),
    *("green", "cyan", "blue", "purple", "pink", "brown"),
)
BRIGHTNESS = ("dark", "moderate", "bright")
TEXTURE = ("smooth", "edged", "textured")
FORM = "From a photo of {kind}, {word}; {first} and {second}, {brightness}, {texture}."
UNKNOWN_KIND = "scene"  # of held-out photos of a kind that training never saw
EXAMPLE = FORM.format(
    kind=UNKNOWN_KIND,
    word=UNKNOWN_KIND,
    first="grey",
    second="grey",
    brightness="dark",
    texture="smooth",
)  # every caption has as many tokens
RARE = 3  # a word of fewer training photos cannot be learned: the next one is used


def single(word: str) -> str:
    """A content word as one token: "solar panel" becomes "solar-panel"."""
    return word.replace(" ", "-")


def frequent_words(photos: Iterable[Photo]) -> frozenset[str]:
    """Content words of at least `RARE` photos, and every kind."""
    photos = list(photos)
    counts = Counter(word for photo in photos for word in set(photo.words))
    return frozenset(w for w, n in counts.items() if n >= RARE) | {p.kind for p in photos}


def content(photo: Photo, known: frozenset[str]) -> str:
    """The most important known word besides the kind, or the kind again."""
    return next((w for w in photo.words if w in known and w != photo.kind), _kind(photo, known))


def _kind(photo: Photo, known: frozenset[str]) -> str:
    return photo.kind if photo.kind in known else UNKNOWN_KIND


def caption(photo: Photo, pixels: np.ndarray, known: frozenset[str]) -> str:
    """The caption of a crop, uint8 (H, W, 3), of a photo.

    The content words are of the photo, as the form says; the rest is measured in the crop.
    """
    first, second = dominant_colours(pixels)
    return FORM.format(
        kind=single(_kind(photo, known)),
        word=single(content(photo, known)),
        first=first,
        second=second,
        brightness=BRIGHTNESS[int(np.digitize(pixels.mean(), (85, 150)))],
        texture=texture(pixels),
    )


def dominant_colours(pixels: np.ndarray) -> tuple[str, str]:
    """The two most frequent colour names of a picture; the same one twice if over 90 %."""
    small = pixels[::4, ::4].reshape(-1, 3)
    counts = Counter(_colour(*(int(c) >> 3 << 3 for c in p)) for p in small)
    ranked = [name for name, _ in counts.most_common()]
    if len(ranked) == 1 or counts[ranked[0]] > 0.9 * len(small):
        return ranked[0], ranked[0]
    return ranked[0], ranked[1]


def _colour(r: int, g: int, b: int) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
    hue *= 360
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.82 else "grey"
    if 15 <= hue < 50 and value < 0.65:
        return "brown"
    if hue >= 330 or hue < 15:
        return "pink" if value > 0.7 and saturation < 0.5 else "red"
    limits = ((45, "orange"), (70, "yellow"), (165, "green"), (195, "cyan"), (260, "blue"))
    return next((name for limit, name in limits if hue < limit), "purple")


def texture(pixels: np.ndarray) -> str:
    """Smooth, edged (little of it strong) or textured (much of it), from luma differences."""
    luma = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    steep = np.hypot(np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1])
    if steep.mean() < 5:
        return "smooth"
    return "edged" if np.mean(steep > 12) < 0.3 else "textured"


def token_names(words: Iterable[str], codes: int) -> dict[str, int]:
    """Name to id: controls, side tokens, codes, then text pieces, Chameleon's names throughout."""
    names = [*CONTROLS, *(grid_name(n) for n in range(1, LONGEST_SIDE + 1))]
    names += [code_name(code) for code in range(codes)]
    vocabulary = _fixed_words() | {UNKNOWN_KIND, *COLOURS, *BRIGHTNESS, *TEXTURE}
    vocabulary |= {single(w) for w in words}
    names += [",", ";", ".", "▁", *sorted(f"▁{w}" for w in vocabulary)]
    return {name: i for i, name in enumerate(names)}


def _fixed_words() -> set[str]:
    """Words of instruction, label and caption that say nothing of the photo."""
    form = FORM.format(kind="", word="", first="", second="", brightness="", texture="")
    fixed = f"{INSTRUCTION} {form} blur noise {' '.join(LEVELS)}"
    fixed += " ".join(["", *(level.capitalize() for level in LEVELS)])
    return {w.strip(",;.") for w in fixed.split()} - {""}


def tokenizer(names: dict[str, int]) -> Tokenizer:
    """A word tokenizer over `names`; a word carries the space before it."""
    result = Tokenizer(models.WordLevel(names, unk_token=UNK))
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex("[,;.]"), behavior="isolated"),
        ]
    )
    result.decoder = decoders.Metaspace(prepend_scheme="always")
    result.add_special_tokens([AddedToken(name, normalized=False) for name in CONTROLS])
    return result


def text_lengths(text: TextTokenizer) -> tuple[int, int]:
    """Tokens of a label and of the caption after it; every one of PURE-nano's has as many."""
    label = label_text("small", "small")
    first = len(text.answer(label))
    return first, len(text.answer(f"{label} {EXAMPLE}")) - first


def text_form(names: dict[str, int]) -> list[list[str]]:
    """Names of the tokens that may stand at each place of label and caption, in order.

    PURE-nano's pointed heads look a fixed way back: a caption that lacks a word would make every
    one of them miss.
    """
    other = {*_fixed_words(), *COLOURS, *BRIGHTNESS, *TEXTURE}
    words = [name.removeprefix("▁") for name in names if name.startswith("▁") and len(name) > 1]
    content_words = sorted(set(words) - other)
    fields = [
        [level.capitalize() for level in LEVELS],
        list(LEVELS),
        *[content_words] * 2,
        *[list(COLOURS)] * 2,
        list(BRIGHTNESS),
        list(TEXTURE),
    ]
    gap = "?"  # in no vocabulary, so one unknown token
    label = label_text("small", "small").replace("Small", gap).replace("small", gap)
    caption = FORM.format(
        **dict.fromkeys(("kind", "word", "first", "second"), gap), brightness=gap, texture=gap
    )
    tokens = tokenizer(names).encode(f"{label} {caption}", add_special_tokens=False).tokens
    remaining = iter(fields)
    return [
        [f"▁{word}" for word in next(remaining)] if token == UNK else [token] for token in tokens
    ]


def pointers(text: tuple[int, int]) -> list[Pointer]:
    """Where PURE-nano's heads look first, for label and caption of so many tokens.

    Twelve heads bring the 3 × 3 cells of the poor picture and the three finished ones above; the
    finished one on the left is the last token itself. Three more wait for answers that lack a
    text, and write nothing until training finds a use for them.
    """
    lq = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    above = [(-1, 0), (-1, 1), (-1, -1)]
    first = [Pointer(0, i, "lq", *cell) for i, cell in enumerate(lq[:5])]
    first += [Pointer(0, 5 + i, "answer", *cell) for i, cell in enumerate(above)]
    result = [replace(first[0], length=2.0), *first[1:]]
    result += [Pointer(1, i, "lq", *cell) for i, cell in enumerate(lq[5:])]
    label, caption = text
    for i, shorter in enumerate((0, label, caption)):
        result.append(Pointer(1, 4 + i, "lq", text=shorter, length=0.0))
    return result


def write_checkpoint(
    folder: Path,
    *,
    names: dict[str, int],
    config: TransformerConfig,
    transformer: dict[str, Tensor],
    vq_config: VQConfig,
    vq: dict[str, Tensor],
    native_pixels: int,
    text_limit: int = 48,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write a folder in the released format, with the VQ tokenizer beside the transformer."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "native_pixels": native_pixels,
        "text_limit": text_limit,
        "text_form": text_form(names),
    }
    settings |= notes or {}
    content = {"model_type": "chameleon"} | asdict(config)
    content |= {"pure": settings, "vocabulary_map": names}
    (folder / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    tokenizer(names).save(str(folder / "tokenizer.json"))
    save_file(transformer, folder / "model.safetensors", metadata={"format": "pt"})
    metadata = {"config": json.dumps(asdict(vq_config))}
    save_file(vq, folder / "vq.safetensors", metadata=metadata)
