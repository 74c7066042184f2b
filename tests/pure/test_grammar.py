import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pure.grammar import Answer, Grammar, GrammarError, Grid, Phase

GRIDS = st.builds(Grid, *[st.integers(1, 3).map(lambda n: 4 * n)] * 2)


def random_codes(grid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(64, (grid.rows, grid.columns), generator=generator)


def complete(answer, pick):
    """Write an answer to its end; `pick(expected)` chooses where there is a choice."""
    while (expected := answer.expected()).phase is not Phase.DONE:
        answer.push(expected.forced if expected.forced is not None else pick(expected))
    return answer


def chooser(data):
    return lambda expected: int(expected.ids[data.draw(st.integers(0, len(expected.ids) - 1))])


def seeded(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda e: int(e.ids[torch.randint(len(e.ids), (), generator=generator)])


@given(GRIDS, st.integers(0, 10**6))
def test_every_picture_reads_back(grammar, grid, seed):
    codes = random_codes(grid, seed)
    assert torch.equal(grammar.read_image(grammar.image(codes)), codes)


@given(GRIDS, st.integers(0, 10**6), st.integers(0, 40))
def test_whatever_the_grammar_lets_through_reads_back(grammar, grid, seed, limit):
    answer = complete(Answer(grammar, grid, text_limit=limit), seeded(seed))
    image = answer.ids[len(answer.text) : -1]
    assert grammar.read_image(image).shape == (grid.rows, grid.columns)
    assert answer.ids[-1] == grammar.vocab.end_turn
    assert len(answer.text) <= limit
    assert set(answer.text) <= set(grammar.vocab.text)


@given(GRIDS, st.integers(0, 10**6), st.data())
def test_a_mutated_picture_is_refused_or_a_different_valid_one(grammar, grid, seed, data):
    vocab, ids = grammar.vocab, grammar.image(random_codes(grid, seed))
    place = data.draw(st.integers(0, len(ids) - 1))
    edit = data.draw(st.sampled_from(["drop", "insert", "replace"]))
    token = data.draw(st.integers(0, vocab.size - 1))
    mutated = list(ids)
    if edit == "drop":
        del mutated[place]
    elif edit == "insert":
        mutated.insert(place, token)
    else:
        if token in vocab.codes and ids[place] in vocab.codes:
            token = vocab.newline  # a code for a code is another picture, not a broken one
        if token == ids[place]:
            return
        mutated[place] = token
    with pytest.raises(GrammarError):
        grammar.read_image(mutated)


@given(GRIDS, st.integers(0, 10**6), st.data())
def test_an_answer_refuses_every_id_it_does_not_expect(grammar, grid, seed, data):
    vocab = grammar.vocab
    ids = grammar.answer([vocab.text[0]], random_codes(grid, seed))
    stop = data.draw(st.integers(0, len(ids)))
    answer = Answer(grammar, grid)
    for token in ids[:stop]:
        answer.push(token)
    expected = answer.expected()
    allowed = {expected.forced} if expected.ids is None else set(expected.ids.tolist())
    token = data.draw(st.integers(0, vocab.size - 1).filter(lambda i: i not in allowed))
    with pytest.raises(GrammarError, match=f"id {token} may not stand where {expected.phase}"):
        answer.push(token)
    assert answer.ids == ids[:stop]


def test_swapping_side_tokens_of_an_oblong_picture_is_refused(grammar):
    ids = grammar.image(random_codes(Grid(4, 8)))
    ids[1], ids[2] = ids[2], ids[1]
    with pytest.raises(GrammarError):
        grammar.read_image(ids)


def test_swapping_a_code_with_a_newline_is_refused(grammar):
    ids = grammar.image(random_codes(Grid(4, 4)))
    ids[6], ids[7] = ids[7], ids[6]
    with pytest.raises(GrammarError, match="one newline"):
        grammar.read_image(ids)


def test_an_id_beyond_the_table_is_refused(grammar):
    ids = grammar.image(random_codes(Grid(4, 4)))
    ids[5] = grammar.vocab.size
    with pytest.raises(GrammarError):
        grammar.read_image(ids)


def test_a_negative_id_is_refused(grammar):
    ids = grammar.image(random_codes(Grid(4, 4)))
    ids[5] = grammar.vocab.codes[0] - grammar.vocab.size
    with pytest.raises(GrammarError):
        grammar.read_image(ids)


def test_height_comes_before_width(grammar):
    grids = grammar.vocab.grids
    opening = grammar.opening(Grid(rows=4, columns=8))  # 32 px high, 64 px wide
    assert opening == [grammar.vocab.begin_image, grids[0], grids[1]]


def test_a_picture_is_rows_that_end_with_newlines(grammar, vocab):
    codes = torch.arange(32).view(4, 8)
    rows = []
    for row in codes.tolist():
        rows += [*(vocab.codes[code] for code in row), vocab.newline]
    expected = [vocab.begin_image, vocab.grids[0], vocab.grids[1], *rows, vocab.end_image]
    assert grammar.image(codes) == expected


def test_a_prompt_is_bos_instruction_picture_end_turn(grammar, vocab):
    codes = random_codes(Grid(4, 4))
    ids = grammar.prompt([*vocab.text[:3]], codes)
    assert ids == [vocab.bos, *vocab.text[:3], *grammar.image(codes), vocab.end_turn]


def test_a_512_pixel_prompt_has_the_published_length(grammar):
    """T + 4166 ids, T of them instruction."""
    assert len(grammar.prompt([], torch.zeros(64, 64, dtype=torch.long))) == 4166


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, 0), (5, 4), (4, 6), (4, 4 * 33)])
def test_a_grid_that_cannot_be_written_is_refused(grammar, rows, columns):
    with pytest.raises(GrammarError, match="multiples of 4 up to 128"):
        grammar.check(Grid(rows, columns))


def test_cells_of_another_size_change_the_count_of_a_side_token(vocab):
    coarse = Grammar(vocab, factor=16)
    assert coarse.opening(Grid(2, 4))[1:] == [vocab.grids[0], vocab.grids[1]]


def test_a_given_text_is_forced(grammar, vocab):
    text = [vocab.text[5], *vocab.sentence_ends, vocab.text[6]]
    answer = Answer(grammar, Grid(4, 4), text=text)
    phases = []
    for token in text:
        expected = answer.expected()
        assert (expected.forced, expected.ids) == (token, None)
        phases.append(expected.phase)
        answer.push(token)
    assert phases == [Phase.LABEL, Phase.LABEL, Phase.CAPTION]
    assert answer.expected().forced == vocab.begin_image


def test_an_empty_given_text_begins_with_the_picture(grammar):
    assert Answer(grammar, Grid(4, 4), text=[]).expected().phase is Phase.BEGIN_IMAGE


def test_label_only_ends_after_the_first_sentence(grammar, vocab):
    answer = Answer(grammar, Grid(4, 4), label_only=True)
    answer.push(vocab.text[0])
    assert answer.expected().phase is Phase.LABEL
    answer.push(min(vocab.sentence_ends))
    assert answer.expected().forced == vocab.begin_image


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_the_text_ends_at_its_limit(grammar, vocab, limit):
    answer = Answer(grammar, Grid(4, 4), text_limit=limit)
    for _ in range(limit):
        assert answer.expected().ids is not None
        answer.push(vocab.text[0])
    assert answer.expected().forced == vocab.begin_image


def test_the_own_text_may_use_text_and_begin_image_and_nothing_else(grammar, vocab):
    expected = Answer(grammar, Grid(4, 4)).expected()
    assert expected.ids.tolist() == sorted([*vocab.text, vocab.begin_image])


def formed(vocab, begun=()):
    """An answer whose text is one of two words, then another."""
    one, two, three = vocab.text[:3]
    return Answer(Grammar(vocab, form=[[one, two], [three]]), Grid(4, 4), begun=begun)


def test_a_form_says_what_stands_at_each_place_and_where_the_text_ends(vocab):
    one, two, three = vocab.text[:3]
    answer = formed(vocab)
    assert answer.expected().ids.tolist() == sorted([one, two])
    answer.push(two)
    assert answer.expected().forced == three
    with pytest.raises(GrammarError):
        answer.push(one)
    answer.push(three)
    assert answer.expected().forced == vocab.begin_image


def test_a_text_that_begins_as_the_form_wants_goes_on_so(vocab):
    one, _, three = vocab.text[:3]
    answer = formed(vocab, begun=[one])
    assert answer.expected().forced == one
    answer.push(one)
    assert answer.expected().forced == three


@pytest.mark.parametrize("places", [1, 3])
def test_a_text_that_begins_otherwise_goes_on_freely(vocab, places):
    begun = [vocab.text[3]] * places
    answer = formed(vocab, begun=begun)
    for token in begun:
        answer.push(token)
    assert answer.expected().ids.tolist() == sorted([*vocab.text, vocab.begin_image])


@pytest.mark.parametrize("place", ["nothing", "a code"])
def test_a_form_allows_text_only(vocab, place):
    with pytest.raises(GrammarError, match="allows some text ids at every place"):
        Grammar(vocab, form=[[] if place == "nothing" else [vocab.codes[0]]])


@given(st.integers(0, 10**6), st.integers(0, 2**16 - 1))
def test_known_codes_are_forced_and_kept(grammar, seed, mask):
    codes = random_codes(Grid(4, 4), seed)
    known = torch.where(torch.tensor([mask >> i & 1 for i in range(16)]).view(4, 4) > 0, codes, -1)
    free = []

    def pick(expected):
        free.append(expected.cell)
        return grammar.vocab.codes[63 - int(codes[expected.cell])]

    answer = complete(Answer(grammar, Grid(4, 4), text=[], known=known), pick)
    written = grammar.read_image(answer.ids[:-1])
    assert torch.equal(written[known >= 0], codes[known >= 0])
    assert free == [(r, c) for r in range(4) for c in range(4) if known[r, c] < 0]


def test_known_codes_of_another_size_are_refused(grammar):
    with pytest.raises(ValueError, match="do not fit"):
        Answer(grammar, Grid(4, 8), known=torch.full((8, 4), -1))


def test_phases_of_a_picture_come_in_order(grammar):
    answer = Answer(grammar, Grid(4, 4), text=[])
    phases = []
    while (expected := answer.expected()).phase is not Phase.DONE:
        phases.append(expected.phase)
        answer.push(expected.forced if expected.forced is not None else int(expected.ids[0]))
    row = [Phase.CODE] * 4 + [Phase.NEWLINE]
    head = [Phase.BEGIN_IMAGE, Phase.HEIGHT, Phase.WIDTH]
    assert phases == [*head, *row * 4, Phase.END_IMAGE, Phase.END_TURN]
    assert answer.done
