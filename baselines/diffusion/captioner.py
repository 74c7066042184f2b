"""What a photo shows, as a sentence: BLIP, which PASD puts into its prompt.

Source: Li et al., BLIP, ICML 2022; settings of salesforce/LAVIS, `blip_caption_base_coco`, through
which PASD's script calls it.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from baselines.base import MethodUnavailableError
from baselines.diffusion.sources import Hub, Part
from baselines.diffusion.state import Network, load_strict, read_json, read_pickle
from imaging.convert import resize, to_tensor

BLIP = Part(
    "blip",
    "BLIP, the captioner",
    (
        "config.json",
        "pytorch_model.bin",
        "vocab.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ),
    0.99,
    "BSD-3-Clause",
    "yes",
    hubs=(Hub("Salesforce/blip-image-captioning-base"),),
)
BEGINNING = "a picture of "
BEAMS = 3
LENGTHS = (10, 30)  # in word pieces, those of `BEGINNING` included
# of the photos CLIP was trained on, which BLIP takes over
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Captioner:
    """A loaded captioner; always float32."""

    def __init__(self, tokenizer: Any, network: Network) -> None:  # Any: as for `Network`
        self.tokenizer = tokenizer
        self.network = network

    @classmethod
    def load(cls, folder: Path) -> "Captioner":
        """BLIP from the files of `BLIP`, on the CPU.

        Raises:
            MethodUnavailableError: files cannot be read or tensors do not fit.
        """
        from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

        try:
            tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise MethodUnavailableError(f"{folder} has no tokenizer: {error}") from error
        config = BlipConfig.from_dict(read_json(folder / "config.json"))
        network: Network = BlipForConditionalGeneration(config)
        # transformers makes up a vocabulary where it finds none; BLIP's first mark comes after it
        words = network.config.text_config.bos_token_id
        if len(tokenizer) < words:
            raise MethodUnavailableError(
                f"The vocabulary in {folder} has {len(tokenizer)} words, the network {words}."
            )
        state = read_pickle(folder / BLIP.files[1])
        # positions follow from the length alone
        state = {k: v for k, v in state.items() if not k.endswith(".position_ids")}
        load_strict(network, state, str(folder))
        return cls(tokenizer, network)

    @torch.inference_mode()
    def __call__(self, photo: Image.Image) -> str:
        """A caption of an RGB photo of any size, by beam search: the same photo, the same words."""
        device = next(self.network.parameters()).device
        beginning = self.tokenizer(BEGINNING, return_tensors="pt").input_ids.to(device)
        shortest, longest = LENGTHS
        ids = self.network.generate(
            self._prepare(photo).to(device),
            input_ids=beginning,
            num_beams=BEAMS,
            min_length=shortest,
            max_length=longest,
        )
        # the network drops the end mark of the beginning and goes on from there
        said = ids[0, beginning.shape[1] - 1 :]
        return self.tokenizer.decode(said, skip_special_tokens=True).strip()

    def _prepare(self, photo: Image.Image) -> Tensor:
        """(1, 3, S, S), normalised; bicubic, the aspect ratio given up."""
        side = self.network.config.vision_config.image_size
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return (to_tensor(resize(photo, (side, side))) - mean) / std
