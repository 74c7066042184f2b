import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure.belief import INSTRUCTION, LEVELS, Belief, BeliefError, TextTokenizer, label_text
from pure.vocab import RELEASED_SIZE, Vocab
from tools.tiny_checkpoint import tokenizer, vocabulary


@pytest.fixture(scope="module")
def text(names, vocab):
    return TextTokenizer(tokenizer(names), vocab.text)


@pytest.mark.parametrize(
    ("written", "label", "caption", "blur", "noise"),
    [
        (
            "Medium blur, small noise. The image features a lion.",
            "Medium blur, small noise.",
            "The image features a lion.",
            "medium",
            "small",
        ),
        ("large BLUR,  Small  noise.", "large BLUR,  Small  noise.", "", "large", "small"),
        ("  Small blur.  A cat. A dog.\n", "Small blur.", "A cat. A dog.", "small", None),
        ("Small noise, large blur", "Small noise, large blur", "", "large", "small"),
        ("The image features a lion. Large blur.", "", None, None, None),
        ("Huge blur, no noise. A cat.", "", None, None, None),
        ("A smallish blur. A cat.", "", None, None, None),
        ("Small blur at 1.5 m. A cat.", "Small blur at 1.5 m.", "A cat.", "small", None),
        ("Large noise.A cat.", "Large noise.A cat.", "", None, "large"),
        ("", "", "", None, None),
        (".", "", ".", None, None),
    ],
)
def test_answers_are_read_tolerantly(written, label, caption, blur, noise):
    belief = Belief.parse(written)
    assert belief.label == label
    assert belief.caption == (written.strip() if caption is None else caption)
    assert (belief.blur, belief.noise) == (blur, noise)


@pytest.mark.parametrize("blur", LEVELS)
@pytest.mark.parametrize("noise", LEVELS)
def test_labels_are_written_and_read_alike(blur, noise):
    belief = Belief.parse(f"{label_text(blur, noise)} A cat.")
    assert (belief.blur, belief.noise, belief.caption) == (blur, noise, "A cat.")


def test_a_label_is_worded_as_in_the_paper():
    assert label_text("medium", "small") == "Medium blur, small noise."


@pytest.mark.parametrize(
    ("belief", "expected"),
    [
        (Belief("Small blur.", "A cat."), "Small blur. A cat."),
        (Belief("Small blur."), "Small blur."),
        (Belief("", "A cat."), "A cat."),
        (Belief(), ""),
    ],
)
def test_a_belief_stands_in_an_answer_with_one_space(belief, expected):
    assert belief.text == expected


@given(st.text())
def test_parsing_loses_nothing_but_blanks(written):
    assert "".join(Belief.parse(written).text.split()) == "".join(written.split())


def test_the_instruction_is_the_published_sentence(text):
    assert text.decode(text.instruction()) == (
        "Perceive the degradation level, understand the image content, "
        "and restore the high-quality image."
    )


def test_the_instruction_keeps_the_space_before_the_picture(names, text):
    assert text.instruction()[-1] == names["Ġ"]
    assert INSTRUCTION.endswith(". ")


def test_the_released_instruction_ends_before_the_placeholder():
    names = vocabulary(small=False)
    text_ids = Vocab.from_names(names, RELEASED_SIZE).text
    ids = TextTokenizer(tokenizer(names), text_ids).instruction()
    assert set(ids) <= set(text_ids)


@pytest.mark.parametrize(
    "written",
    [
        "Medium blur, small noise.",
        "Large blur, large noise. The image features a photo of an old red house.",
        "A naïve café, 5 °C — 漢字 🙂!",
        "the",
    ],
)
def test_texts_survive_their_tokens(text, written):
    ids = text.answer(written)
    assert text.decode(ids) == written


@given(st.text(st.characters(codec="utf-8", exclude_characters="<")))
def test_every_text_survives_a_byte_level_tokenizer(text, written):
    assert text.decode(text.answer(written)) == written.strip()


def test_an_answer_gets_no_space_before_its_first_word(names, text):
    assert text.answer("The image")[0] == names["The"]


def test_an_empty_text_has_no_ids(text):
    assert text.answer("") == []


def test_a_control_token_in_a_text_is_named(text):
    with pytest.raises(BeliefError, match="<racm3:break>") as error:
        text.answer("The image <racm3:break> house")
    assert "cannot be written with this checkpoint's words" in str(error.value)


def test_an_image_code_in_a_text_is_named(text):
    with pytest.raises(BeliefError, match="IMGIMGAZ"):
        text.answer("IMGIMGAZ")


def test_the_placeholder_is_no_text(text):
    with pytest.raises(BeliefError, match=r"<\|image\|>"):
        text.answer("a photo <|image|>")


def test_the_placeholder_lies_beyond_the_embedding(names):
    result = tokenizer(names)
    TextTokenizer(result, ())
    assert result.token_to_id("<|image|>") == len(names)
