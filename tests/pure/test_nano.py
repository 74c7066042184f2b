import itertools
import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imaging.degrade import Level
from pure import nano
from pure.belief import INSTRUCTION, LEVELS, BeliefError, TextTokenizer, label_text
from pure.checkpoint import CheckpointError, load
from pure.data import Photo
from pure.grammar import Phase
from pure.model import Transformer, TransformerConfig
from pure.vocab import GRID_PIXELS, Vocab
from pure.vq import CONFIGS, VQModel

CODES = 16
WORDS = ["animal", "solar panel", "grass", "koala", "red panda"]


def photo(kind, *words):
    return Photo("id", kind, words, False, np.zeros((8, 8, 3), np.uint8))


def plain(*colour, size=64):
    return np.full((size, size, 3), colour, np.uint8)


@pytest.fixture(scope="module")
def names():
    return nano.token_names(WORDS, CODES)


@pytest.fixture(scope="module")
def vocab(names):
    return Vocab.from_names(names, len(names))


@pytest.fixture(scope="module")
def text(names, vocab):
    return TextTokenizer(nano.tokenizer(names), vocab.text)


def test_every_id_has_one_name(names):
    assert sorted(names.values()) == list(range(len(names)))


def test_a_word_that_is_in_the_form_already_is_no_second_token():
    assert nano.token_names(["photo", "red", "small"], CODES) == nano.token_names([], CODES)


def test_the_vocabulary_has_its_codes_and_side_tokens(vocab):
    assert len(vocab.codes) == CODES
    assert len(vocab.grids) * GRID_PIXELS == 512
    assert len(vocab.sentence_ends) == 1


def test_the_instruction_has_a_token_for_every_word(names, text, vocab):
    ids = text.instruction()
    assert set(ids) <= set(vocab.text)
    assert text.decode(ids) == INSTRUCTION.strip()


def captions():
    """Every form of caption: kinds and words, colours, brightness, texture."""
    kinds = [nano.single(word) for word in WORDS]
    for kind, (first, second), brightness, texture in itertools.product(
        kinds,
        [("red", "blue"), ("black", "black"), ("white", "grey")],
        nano.BRIGHTNESS,
        nano.TEXTURE,
    ):
        yield nano.FORM.format(
            kind=kind,
            word="koala",
            first=first,
            second=second,
            brightness=brightness,
            texture=texture,
        )


def test_answers_survive_their_tokens(text):
    for blur, noise in itertools.product(LEVELS, LEVELS):
        label = label_text(blur, noise)
        for caption in captions():
            written = f"{label} {caption}"
            assert text.decode(text.answer(written)) == written


def test_label_and_caption_are_written_apart_or_together_alike(text):
    label, caption = label_text("medium", "small"), next(captions())
    assert text.answer(label) + text.answer(caption) == text.answer(f"{label} {caption}")


def test_a_caption_fits_the_default_text_limit(text):
    longest = max(len(text.answer(f"Medium blur, small noise. {c}")) for c in captions())
    assert longest < 48


def test_an_unknown_word_is_named(text):
    with pytest.raises(BeliefError, match="'<unk>'"):
        text.answer("From a photo of zebra")


@given(st.data())
def test_whatever_the_model_writes_can_be_written_again(text, vocab, data):
    """The caption is, where the label is left out."""
    ids = data.draw(st.lists(st.sampled_from(vocab.text), max_size=12))
    assert set(text.answer(text.decode(ids))) <= set(vocab.text)


def test_the_levels_are_those_of_the_degradation():
    assert get_args(Level) == LEVELS


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((255, 0, 0), "red"),
        ((250, 130, 0), "orange"),
        ((250, 250, 0), "yellow"),
        ((0, 200, 0), "green"),
        ((0, 220, 220), "cyan"),
        ((0, 0, 255), "blue"),
        ((150, 0, 200), "purple"),
        ((255, 180, 200), "pink"),
        ((110, 70, 30), "brown"),
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
    ],
)
def test_a_plain_picture_has_one_colour(colour, name):
    assert nano.dominant_colours(plain(*colour)) == (name, name)


def test_every_colour_a_picture_can_have_is_a_word():
    steps = range(0, 256, 15)
    seen = {
        name
        for r, g, b in itertools.product(steps, steps, steps)
        for name in nano.dominant_colours(plain(r, g, b, size=1))
    }
    assert seen == set(nano.COLOURS)


def test_two_colours_come_in_order_of_their_share():
    pixels = plain(255, 0, 0)
    pixels[:, :20] = (0, 0, 255)
    assert nano.dominant_colours(pixels) == ("red", "blue")


def test_a_colour_of_less_than_a_tenth_is_not_named():
    pixels = plain(255, 0, 0)
    pixels[:, :4] = (0, 0, 255)
    assert nano.dominant_colours(pixels) == ("red", "red")


@pytest.mark.parametrize(
    ("level", "word"), [(20, "dark"), (84, "dark"), (120, "moderate"), (151, "bright")]
)
def test_brightness_is_measured(level, word):
    written = nano.caption(photo("animal"), plain(level, level, level), frozenset())
    assert f", {word}, smooth." in written


def test_texture_is_measured():
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    edge = np.zeros((64, 64), int)
    edge[:, 32:] = 255
    blocks = np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((8, 8), int))
    for luma, word in (
        (checkerboard, "textured"),
        (blocks, "edged"),
        (edge, "smooth"),
        (np.full((64, 64), 90), "smooth"),
    ):
        assert nano.texture(np.stack([luma.astype(np.uint8)] * 3, -1)) == word


def test_a_caption_is_the_form_filled_in():
    known = frozenset({"red panda", "animal"})
    written = nano.caption(photo("animal", "red panda", "animal"), plain(255, 0, 0), known)
    assert written == "From a photo of animal, red-panda; red and red, moderate, smooth."


def test_the_caption_of_a_dark_picture_says_so():
    written = nano.caption(photo("animal"), plain(0, 0, 0), frozenset({"animal"}))
    assert written == "From a photo of animal, animal; black and black, dark, smooth."


@pytest.mark.parametrize(
    ("words", "expected"),
    [(("koala", "grass"), "koala"), (("lynx", "grass"), "grass"), (("animal", "lynx"), "animal")],
)
def test_the_first_known_word_besides_the_kind_is_used(words, expected):
    known = frozenset({"koala", "grass", "animal"})
    assert nano.content(photo("animal", *words), known) == expected


def test_words_of_fewer_than_three_photos_are_left_out_but_kinds_are_kept():
    photos = [photo("animal", "cat", "cat", "grass")] * 2 + [photo("plant", "grass")]
    assert nano.frequent_words(photos) == {"animal", "plant", "grass"}


@pytest.fixture
def written(tmp_path, names):
    """A folder `write_checkpoint` wrote, its configuration and its weights."""
    config = TransformerConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    vq_config = replace(CONFIGS["tiny"], codebook_size=CODES)
    transformer, vq = Transformer(config).state_dict(), VQModel(vq_config).state_dict()
    nano.write_checkpoint(
        tmp_path / "nano",
        names=names,
        config=config,
        transformer={key: value.bfloat16() for key, value in transformer.items()},
        vq_config=vq_config,
        vq=vq,
        native_pixels=64,
        notes={"name": "ours"},
    )
    return tmp_path / "nano", config, transformer, vq


def test_a_written_checkpoint_loads_back(written, names, vocab):
    folder, config, transformer, vq = written
    loaded = load(folder)
    assert (loaded.name, loaded.native, loaded.text_limit) == ("ours", 64, 48)
    assert loaded.model.config == config
    assert loaded.grammar.vocab == vocab
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, transformer[key].bfloat16().float())
    for key, value in loaded.vq.state_dict().items():
        assert torch.equal(value, vq[key])
    assert loaded.text.decode(loaded.text.answer(next(captions()))) == next(captions())


def test_a_folder_elsewhere_is_not_called_nano(written):
    assert not load(written[0]).is_nano


def test_nano_is_the_embedded_folder(written, monkeypatch):
    monkeypatch.setattr("pure.checkpoint.NANO", written[0])
    loaded = load("nano")
    assert loaded.is_nano
    assert loaded.name == "PURE-nano"


def test_a_label_ends_where_the_grammar_ends_it(written, text):
    """The full stop is a token of its own, so that the label is a sentence."""
    from pure.grammar import Answer, Grid

    answer = Answer(load(written[0]).grammar, Grid(4, 4), label_only=True)
    for token in text.answer(label_text("large", "medium")):
        assert answer.expected().phase is Phase.LABEL
        answer.push(token)
    assert answer.expected().phase is Phase.BEGIN_IMAGE


def test_the_models_own_text_has_the_length_its_heads_expect(written, names, text):
    form = load(written[0]).grammar.form
    assert len(form) == sum(nano.text_lengths(text))
    some, known = photo("animal", "koala", "grass"), frozenset({"animal", "koala", "grass"})
    for blur, noise in (("small", "large"), ("medium", "small")):
        label = label_text(blur, noise)
        ids = text.answer(f"{label} {nano.caption(some, plain(20, 200, 40), known)}")
        assert all(i in place for i, place in zip(ids, form, strict=True))


def test_the_form_lets_no_attribute_stand_for_a_content_word(names):
    form = nano.text_form(names)
    words = [place for place in form if "▁koala" in place]
    assert len(words) == 2
    assert not {"▁dark", "▁grey", "▁photo", "▁Small"} & set(words[0])


def test_a_form_of_unknown_tokens_is_refused(written):
    path = written[0] / "config.json"
    config = json.loads(path.read_text())
    config["pure"]["text_form"] = [["▁nothing-like-it"]]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="text_form cannot be used"):
        load(written[0])


def test_a_kind_training_never_saw_is_called_a_scene():
    written = nano.caption(photo("street"), plain(0, 0, 0), frozenset({"animal"}))
    assert written == "From a photo of scene, scene; black and black, dark, smooth."
