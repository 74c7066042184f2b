"""What a photograph shows, in words, for training: from a vision-language model or from a file.

The paper had LLaVA caption its references; which LLaVA and with which question is not published,
so both are recorded with the captions. Writing them is a stage of its own, because it takes a
GPU and hours, and resumes:

    python -m pure.captions --gt LSDIR --gt FFHQ:10000 --out data/captions

PURE-nano's captions come from `pure.nano` instead.
"""

import argparse
import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pure.data import Crop
from pure.pairs import (
    PairsError,
    PhotoFile,
    add_rank_arguments,
    folder_argument,
    photo_files,
    read_upright,
)

log = logging.getLogger(__name__)

LLAVA = "llava-hf/llava-1.5-7b-hf"
QUESTION = "Describe this image in two or three sentences."


class CaptionError(ValueError):
    """A caption is missing, or a caption file cannot be used; the message says which."""


class Captions(Protocol):
    """Gives a crop's caption."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Where captions come from, for a data set's card."""
        ...

    def caption(self, crop: Crop) -> str:
        """The caption of a crop."""
        ...


class Captioner(Protocol):
    """A model that writes captions."""

    @property
    def model(self) -> str:
        """Its id."""
        ...

    @property
    def question(self) -> str:
        """What it is asked."""
        ...

    def captions(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """Captions of pictures, uint8 (H, W, 3) RGB."""
        ...


class LlavaCaptioner:
    """LLaVA, or another image-and-text model of `transformers`, answering one question.

    Args:
        model: hub id or folder.
        question: what it is asked about every picture.
        device: where it runs.
        most_tokens: longest answer.
    """

    def __init__(
        self,
        model: str = LLAVA,
        question: str = QUESTION,
        *,
        device: torch.device | str = "cuda",
        most_tokens: int = 128,
    ) -> None:
        import transformers

        self.model, self.question, self.most_tokens = model, question, most_tokens
        self.device = torch.device(device)
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        # Any: what class it is depends on the model
        network: Any = transformers.AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
        self._network = network.to(self.device).eval()
        self._processor: Any = transformers.AutoProcessor.from_pretrained(model)
        self._processor.tokenizer.padding_side = "left"  # answers start where questions end

    @torch.inference_mode()
    def captions(self, pictures: Sequence[np.ndarray]) -> list[str]:
        turn = [{"type": "image"}, {"type": "text", "text": self.question}]
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": turn}], add_generation_prompt=True
        )
        inputs = self._processor(
            images=list(pictures), text=[prompt] * len(pictures), return_tensors="pt", padding=True
        ).to(self.device, self._network.dtype)
        ids = self._network.generate(**inputs, max_new_tokens=self.most_tokens, do_sample=False)
        answers = ids[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [one_line(text) for text in texts]


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def write_captions(
    captioner: Captioner,
    files: Sequence[PhotoFile],
    out: Path,
    *,
    batch: int = 8,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Caption photographs into `out`/RANK.jsonl; those that any file in `out` has are left out.

    The whole photograph is captioned, not its crops. The first line of a file says which model
    was asked what.

    Raises:
        CaptionError: `out` holds captions by another model or question.
    """
    out.mkdir(parents=True, exist_ok=True)
    header = {"model": captioner.model, "question": captioner.question}
    path = out / f"{rank:05d}.jsonl"
    if path.exists():  # an interrupted write may have left half a line
        whole = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        path.write_text("".join(whole))
    done: set[str] = set()
    if list(out.glob("*.jsonl")):
        table = read_captions(out)
        if table.source.get("models") != [header]:
            raise CaptionError(
                f"{out} holds captions by {table.source.get('models')}, not {header}"
            )
        done = set(table.captions)
    if not path.exists() or not path.stat().st_size:
        path.write_text(json.dumps(header) + "\n")
    wanted = [file for file in files[rank::ranks] if file.id not in done]
    for start in range(0, len(wanted), batch):
        some = wanted[start : start + batch]
        texts = captioner.captions([read_upright(file.path) for file in some])
        lines = [
            json.dumps({"photo": file.id, "caption": text}, ensure_ascii=False)
            for file, text in zip(some, texts, strict=True)
        ]
        with path.open("a", encoding="utf-8") as sink:
            sink.write("\n".join(lines) + "\n")
        log.info("%d of %d", start + len(some), len(wanted))


@dataclass(frozen=True)
class CaptionTable:
    """Captions by photograph."""

    captions: Mapping[str, str]
    source: Mapping[str, Any]

    def caption(self, crop: Crop) -> str:
        """The caption of the photograph a crop is of.

        Raises:
            CaptionError: there is none.
        """
        return self.of(crop.photo.id)

    def of(self, photo: str) -> str:
        """The caption of the photograph with this id."""
        if photo not in self.captions:
            raise CaptionError(f"there is no caption of {photo} in {self.source['files']}")
        return self.captions[photo]

    def check(self, files: Sequence[PhotoFile]) -> None:
        """Raise CaptionError unless every file has a caption."""
        missing = [file.id for file in files if file.id not in self.captions]
        if missing:
            raise CaptionError(
                f"{len(missing)} of {len(files)} photographs have no caption, {missing[0]} first"
            )


def read_captions(path: Path) -> CaptionTable:
    """Captions from a file, or from every .csv and .jsonl file in a folder.

    A CSV has the columns photo and caption, JSON lines the same keys; a JSON line with a model
    and a question says who wrote the others.

    Raises:
        CaptionError: there is no such file, or it has other columns.
    """
    paths = [path]
    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix in (".csv", ".jsonl"))
    captions: dict[str, str] = {}
    models: list[dict[str, str]] = []
    try:
        for one in paths:
            for record in _records(one):
                if "model" in record:
                    if record not in models:
                        models.append(record)
                else:
                    captions[record["photo"]] = one_line(record["caption"])
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise CaptionError(f"{path} cannot be read as captions: {error!r}") from error
    if not paths:
        raise CaptionError(f"{path} holds no .csv or .jsonl file")
    source: dict[str, Any] = {"files": [p.name for p in paths], "captions": len(captions)}
    return CaptionTable(captions, source | ({"models": models} if models else {}))


def _records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file if line.strip()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--gt", type=folder_argument, action="append", required=True, help="PATH or PATH:FIRST_N"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=LLAVA, help="hub id or folder")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", help="by default a GPU of this process, if there is one")
    add_rank_arguments(parser)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    gpus = torch.cuda.device_count()
    device = arguments.device or (f"cuda:{arguments.rank % gpus}" if gpus else "cpu")
    try:
        files = photo_files(arguments.gt)
        write_captions(
            LlavaCaptioner(arguments.model, arguments.question, device=device),
            files,
            arguments.out,
            batch=arguments.batch,
            rank=arguments.rank,
            ranks=arguments.ranks,
        )
    except (CaptionError, PairsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
