import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from baselines.base import MethodUnavailableError
from baselines.diffusion.captioner import Captioner


@pytest.fixture(scope="module")
def captioner(weights):
    return Captioner.load(weights / "blip")


def test_the_full_size_has_the_released_number_of_parameters():
    """As LAVIS counts its base captioner: words in and out are one tensor."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    config = BlipConfig(text_config={"vocab_size": 30524}, vision_config={"image_size": 384})
    with torch.device("meta"):
        network = BlipForConditionalGeneration(config)
    assert sum(p.numel() for p in network.parameters()) == 223_971_644


def test_the_same_photo_gets_the_same_words(captioner, lq):
    caption = captioner(lq)
    assert caption == captioner(lq)
    assert set(caption.split()) <= set(captioner.tokenizer.get_vocab())
    assert "picture" not in caption  # what the sentence began with


def test_the_photo_is_made_square_and_normalised_as_clip_s(captioner):
    grey = Image.new("RGB", (30, 20), (255, 0, 51))
    prepared = captioner._prepare(grey)
    assert prepared.shape == (1, 3, 48, 48)
    expected = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258]
    expected.append((0.2 - 0.40821073) / 0.27577711)
    assert prepared[0, :, 7, 11].tolist() == pytest.approx(expected, abs=1e-4)


def test_words_follow_the_beginning_in_three_beams(captioner, lq):
    """A network that goes on with "dog": what it is asked for, and what becomes of its answer."""
    asked = {}
    names = captioner.tokenizer.get_vocab()

    def generate(pixels, *, input_ids, **settings):
        asked.update(settings, beginning=captioner.tokenizer.decode(input_ids[0]))
        kept = input_ids[0, :-1].tolist()  # BLIP takes the end mark away
        return torch.tensor([[*kept, names["a"], names["dog"], names["[SEP]"]]])

    network = torch.nn.Linear(1, 1)
    network.config = SimpleNamespace(vision_config=SimpleNamespace(image_size=48))
    network.generate = generate
    assert Captioner(captioner.tokenizer, network)(lq) == "a dog"
    assert asked == {
        "beginning": "[CLS] a picture of [SEP]",
        "num_beams": 3,
        "min_length": 10,
        "max_length": 30,
    }


def test_a_missing_tensor_is_named(weights, tmp_path):
    shutil.copytree(weights / "blip", tmp_path / "blip")
    file = tmp_path / "blip" / "pytorch_model.bin"
    state = torch.load(file)
    del state["vision_model.post_layernorm.bias"]
    torch.save(state, file)
    with pytest.raises(MethodUnavailableError, match=r"1 missing: vision_model\.post_layernorm\.b"):
        Captioner.load(tmp_path / "blip")


def test_a_folder_without_a_vocabulary_is_refused(weights, tmp_path):
    shutil.copytree(weights / "blip", tmp_path / "blip")
    (tmp_path / "blip" / "vocab.txt").unlink()
    with pytest.raises(
        MethodUnavailableError, match=r"vocabulary in .* has 5 words, the network 23"
    ):
        Captioner.load(tmp_path / "blip")
