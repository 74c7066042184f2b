import json
import sys

import numpy as np
import pytest
from PIL import Image

from pure import captions
from pure.captions import CaptionError, LlavaCaptioner, read_captions, write_captions
from pure.data import Crop, Photo
from pure.pairs import PhotoFile


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "gt"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (8 + i, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    return [PhotoFile(f"gt/{i}.png", folder / f"{i}.png") for i in range(5)]


class Fake:
    """Says how wide and how red a picture is; dies after some calls."""

    model, question = "fake", "How red?"

    def __init__(self, lives=1000):
        self.lives = lives
        self.seen = 0

    def captions(self, pictures):
        if not self.lives:
            raise KeyboardInterrupt
        self.lives -= 1
        self.seen += len(pictures)
        return [f"{p.shape[1]} wide,\n red {p[0, 0, 0]}." for p in pictures]


def crop(photo):
    pixels = np.zeros((4, 4, 3), np.uint8)
    return Crop(Photo(photo, "", (), False, pixels), pixels)


def test_every_photo_gets_its_caption_with_model_and_question(files, tmp_path):
    write_captions(Fake(), files, tmp_path / "out", batch=2)
    table = read_captions(tmp_path / "out")
    assert table.captions == {f"gt/{i}.png": f"{8 + i} wide, red {40 * i}." for i in range(5)}
    assert table.caption(crop("gt/3.png")) == "11 wide, red 120."
    assert table.source == {
        "files": ["00000.jsonl"],
        "captions": 5,
        "models": [{"model": "fake", "question": "How red?"}],
    }


def test_an_interrupted_run_goes_on_where_it_stopped(files, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_captions(Fake(lives=1), files, out, batch=2)
    with (out / "00000.jsonl").open("a") as file:
        file.write('{"photo": "gt/2.png", "capt')  # killed while writing
    rest = Fake()
    write_captions(rest, files, out, batch=2)
    assert rest.seen == 3
    assert len(read_captions(out).captions) == 5


def test_processes_share_the_photos_and_know_of_each_others(files, tmp_path):
    out = tmp_path / "out"
    for rank in (0, 1):
        write_captions(Fake(), files, out, rank=rank, ranks=2)
    assert sorted(p.name for p in out.iterdir()) == ["00000.jsonl", "00001.jsonl"]
    assert len(read_captions(out).captions) == 5
    alone = Fake()
    write_captions(alone, files, out)  # now by one process
    assert alone.seen == 0


def test_captions_by_another_model_are_not_mixed_in(files, tmp_path):
    write_captions(Fake(), files, tmp_path / "out")
    other = Fake()
    other.question = "How blue?"
    with pytest.raises(CaptionError, match="How blue"):
        write_captions(other, files, tmp_path / "out")


def test_a_csv_is_read_too(tmp_path, files):
    path = tmp_path / "captions.csv"
    path.write_text('photo,caption\ngt/0.png,"A lion,  in  grass."\n')
    table = read_captions(path)
    assert table.of("gt/0.png") == "A lion, in grass."
    assert table.source == {"files": ["captions.csv"], "captions": 1}
    with pytest.raises(CaptionError, match=r"4 of 5 photographs have no caption, gt/1\.png first"):
        table.check(files)
    with pytest.raises(CaptionError, match=r"no caption of gt/1\.png"):
        table.caption(crop("gt/1.png"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "file,text\nx,y\n"),
        ("a.jsonl", '{"photo": "x"}\n'),
        ("a.jsonl", "{"),
        ("a.jsonl", "[1]\n"),
        ("a.csv", "photo,caption\nx\n"),
    ],
)
def test_a_file_without_the_columns_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(CaptionError, match="cannot be read as captions"):
        read_captions(tmp_path / name)


def test_a_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(CaptionError, match=r"no \.csv or \.jsonl"):
        read_captions(tmp_path)


def test_the_command_line_captions_a_folder(files, tmp_path, monkeypatch):
    asked = []

    def make(model, question, *, device):
        asked.append((model, question, device))
        return Fake()

    monkeypatch.setattr(captions, "LlavaCaptioner", make)
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys,
        "argv",
        ["captions", "--gt", f"{tmp_path / 'gt'}:3", "--out", str(out), "--device", "cpu"],
    )
    captions.main()
    assert asked == [(captions.LLAVA, captions.QUESTION, "cpu")]
    assert len(read_captions(out).captions) == 3
    header = json.loads((out / "00000.jsonl").read_text().splitlines()[0])
    assert header == {"model": "fake", "question": "How red?"}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder with a tiny LLaVA of random weights, as the hub has large ones."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("llava")
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:"]
    words += [*captions.QUESTION.split(), *(f"word{i}" for i in range(40))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
        text = LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=1.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_llava_answers_a_batch_as_one_by_one(llava):
    captioner = LlavaCaptioner(str(llava), device="cpu", most_tokens=6)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20, 30 + i, 3), dtype=np.uint8) for i in range(3)]
    together = captioner.captions(pictures)
    assert together == [captioner.captions([picture])[0] for picture in pictures]
    assert captioner.captions(pictures) == together
    assert all(0 < len(text.split()) <= 6 for text in together)
    assert not any("USER" in text or "<image>" in text for text in together)
    assert (captioner.model, captioner.question) == (str(llava), captions.QUESTION)
