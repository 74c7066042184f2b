import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pure.vocab import (
    CONTROLS,
    NEWLINE,
    RELEASED_CODES,
    RELEASED_SIZE,
    Vocab,
    VocabularyError,
    code_name,
    code_of,
    grid_name,
    released_ids,
)
from tools.tiny_checkpoint import vocabulary


@pytest.fixture(scope="module")
def released_names():
    return vocabulary(small=False)


@pytest.fixture(scope="module")
def released(released_names):
    return Vocab.from_names(released_names, RELEASED_SIZE)


@pytest.mark.parametrize(
    ("code", "name"),
    [(0, "IMGIMGAZ"), (9, "IMGIMGJZ"), (10, "IMGIMGBAZ"), (8192, "IMGIMGIBJCZ")],
)
def test_a_code_is_named_by_its_digits_as_letters(code, name):
    assert code_name(code) == name
    assert code_of(name) == code


@given(st.integers(0, 10**6))
def test_a_code_is_read_back_from_its_name(code):
    assert code_of(code_name(code)) == code


@pytest.mark.parametrize("name", ["IMGIMGZ", "IMGIMGKZ", "IMGIMGA", "xIMGIMGAZ", "<s>", ""])
def test_other_names_are_no_code(name):
    assert code_of(name) is None


# The published table of ids.
@pytest.mark.parametrize(
    ("name", "i"),
    [
        ("<s>", 0),
        ("<pad>", 1),
        ("</s>", 2),
        ("<unk>", 3),
        ("IMGIMGAZ", 4),
        ("IMGIMGIBJBZ", 8195),
        ("<eoss>", 8196),
        ("<racm3:break>", 8197),
        ("<reserved08706>", 8710),
        ("<reserved08799>", 8803),
        ("<reserved08816>", 8820),
        ("IMGIMGIBJCZ", 65536),
        ("IMGIMGBGDIDZ", 73727),
    ],
)
def test_the_released_arithmetic_gives_the_published_ids(name, i):
    assert released_ids()[name] == i


def test_the_released_vocabulary_fills_its_table(released_names):
    assert sorted(released_names.values()) == list(range(RELEASED_SIZE))


def test_released_roles_have_the_published_ids(released):
    roles = (released.bos, released.pad, released.end_image, released.begin_image)
    assert roles == (0, 1, 8196, 8197)
    assert (released.end_turn, released.newline) == (8710, 8803)
    assert released.grids[16 - 1] == 8820  # 16 units are 512 px
    assert released.codes == (*range(4, 8196), *range(65536, 73728))
    assert released.text == tuple(range(16384, 65536))


def test_released_codes_and_ids_are_inverse(released):
    codes = torch.arange(RELEASED_CODES)
    assert torch.equal(released.to_codes(released.to_ids(codes)), codes)


def test_ids_that_are_no_code_give_minus_one(released):
    every = released.to_codes(torch.arange(RELEASED_SIZE))
    assert int((every >= 0).sum()) == RELEASED_CODES
    assert (every[[0, 8196, 8197, 8710, 8803, 8820, 16384, 65535]] == -1).all()


def test_conversion_keeps_the_shape(vocab):
    codes = torch.arange(24).view(2, 3, 4)
    assert torch.equal(vocab.to_codes(vocab.to_ids(codes)), codes)


def test_ids_follow_the_names_in_any_order(names):
    shuffled = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    moved = dict(zip(names, shuffled, strict=True))
    vocab = Vocab.from_names(moved, len(names))
    assert vocab.codes == tuple(moved[code_name(code)] for code in range(64))
    assert vocab.newline == moved[NEWLINE]


def test_sentences_end_with_pieces_that_hold_a_full_stop(names, vocab):
    assert vocab.sentence_ends == {names["."]}


def test_text_pieces_are_all_that_has_no_other_role(names, vocab):
    roles = {*CONTROLS, *(grid_name(n) for n in range(1, 33)), *(code_name(c) for c in range(64))}
    assert set(vocab.text) == {i for name, i in names.items() if name not in roles}


def test_the_placeholder_beyond_the_table_is_no_text(names, vocab):
    assert Vocab.from_names(names | {"<|image|>": len(names)}, len(names)) == vocab


@pytest.mark.parametrize("name", CONTROLS)
def test_a_missing_control_is_named(names, name):
    rest = {n: i for n, i in names.items() if n != name}
    with pytest.raises(VocabularyError, match=f"lacks {name}"):
        Vocab.from_names(rest, len(names))


def test_a_gap_in_the_codes_is_refused(names):
    rest = {n: i for n, i in names.items() if n != code_name(7)}
    with pytest.raises(VocabularyError, match="63 image codes have gaps"):
        Vocab.from_names(rest, len(names))


def test_a_vocabulary_without_codes_is_refused(names):
    rest = {n: i for n, i in names.items() if code_of(n) is None}
    with pytest.raises(VocabularyError, match="0 image codes"):
        Vocab.from_names(rest, len(names))


def test_a_vocabulary_without_side_tokens_is_refused(names):
    rest = {n: i for n, i in names.items() if n != grid_name(1)}
    with pytest.raises(VocabularyError, match="first side token"):
        Vocab.from_names(rest, len(names))


def test_two_names_of_one_id_are_refused(names):
    with pytest.raises(VocabularyError, match="share an id"):
        Vocab.from_names(names | {code_name(3): names[code_name(4)]}, len(names))


def test_an_id_beyond_the_table_is_refused(names):
    with pytest.raises(VocabularyError, match="does not fit"):
        Vocab.from_names(names | {code_name(63): len(names)}, len(names))


def test_names_that_contradict_the_released_arithmetic_are_refused(released_names):
    a, b = code_name(8192), code_name(8193)
    swapped = released_names | {a: released_names[b], b: released_names[a]}
    with pytest.raises(VocabularyError, match=f"{a} has id 65537.* gives 65536"):
        Vocab.from_names(swapped, RELEASED_SIZE)
