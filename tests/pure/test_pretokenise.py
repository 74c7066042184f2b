import hashlib
import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from pure import nano, pretokenise
from pure.captions import CaptionTable
from pure.checkpoint import load_tokenizers
from pure.data import KnownLabels, label
from pure.dem import DegradationEstimator
from pure.grammar import Grid
from pure.pretokenise import (
    DataSetError,
    Material,
    Pretokenisation,
    Pretokeniser,
    TokenisedSet,
    TrainingSequence,
    build_sequence,
    read_shard,
    write_card,
)

SETTINGS = Pretokenisation(native=32, shard=3)


@pytest.fixture
def maker(material):
    return Pretokeniser(SETTINGS, material)


def parts_of(sequence, part):
    return [i for i, p in zip(sequence.ids, sequence.parts, strict=True) if p == part]


def test_only_the_answer_is_trained_on(grammar):
    codes = torch.arange(16).view(4, 4) % len(grammar.vocab.codes)
    prompt = grammar.prompt([grammar.vocab.text[0]], codes)
    sequence = build_sequence(grammar, prompt, [7, 8], [9], codes)
    image = len(grammar.image(codes))
    assert len(sequence.ids) == len(sequence.parts) == len(prompt) + 3 + image + 1
    assert sequence.parts == [-1] * len(prompt) + [0, 0, 1] + [2] * (image + 1)
    assert sequence.ids[-1] == grammar.vocab.end_turn
    grammar.read_image(sequence.ids[-image - 1 : -1])


def test_parts_can_be_left_out():
    sequence = TrainingSequence([1, 2, 3, 4, 5], [-1, 0, 1, 2, 2])
    assert sequence.without(0) == TrainingSequence([1, 3, 4, 5], [-1, 1, 2, 2])
    assert sequence.without(-1, 0, 1) == TrainingSequence([4, 5], [2, 2])
    assert sequence.without() == sequence


def test_a_sequence_holds_both_pictures_the_true_label_and_the_caption(maker, material):
    for index in range(4):
        pair, sequence = material.pairs.pair(index), maker.sequence(index)
        prompt, answer = parts_of(sequence, -1), parts_of(sequence, 2)
        length = Grid(4, 4).body + 4
        for ids, pixels in ((prompt[-length - 1 :], pair.lq), (answer, pair.crop.pixels)):
            codes = maker.grammar.read_image(ids[:-1])
            assert torch.equal(codes, maker.vq.encode_image(Image.fromarray(pixels)))
        assert prompt[1 : -length - 1] == maker.text.instruction()
        assert maker.text.decode(parts_of(sequence, 0)) == label(pair, KnownLabels())
        caption = nano.caption(pair.crop.photo, pair.crop.pixels, material.captions.known)
        assert maker.text.decode(parts_of(sequence, 1)) == caption


def test_between_whole_sequences_some_end_with_their_label(maker, material):
    some = Pretokeniser(replace(SETTINGS, picture_every=3), material)
    for index in range(5):
        whole, made = maker.sequence(index), some.sequence(index)
        assert made == (whole.without(1, 2) if index % 3 else whole)


def test_a_long_caption_is_cut_to_the_limit(material):
    whole = Pretokeniser(SETTINGS, material).sequence(0)
    limit = len(parts_of(whole, 0)) + 3
    cut = Pretokeniser(replace(SETTINGS, text_limit=limit), material).sequence(0)
    assert parts_of(cut, 1) == parts_of(whole, 1)[:3]
    assert parts_of(cut, 0) == parts_of(whole, 0)


def test_a_shard_is_read_back_whole_and_one_by_one(maker, tmp_path):
    for shard in (0, 1):
        maker.write(tmp_path, shard)
    expected = [maker.sequence(i) for i in range(6)]
    data = TokenisedSet(tmp_path)
    assert read_shard(tmp_path / "00001.safetensors") == expected[3:]
    assert [data.sequence(i) for i in (5, 0, 3, 1, 4, 2)] == [
        expected[i] for i in (5, 0, 3, 1, 4, 2)
    ]
    assert (len(data), data.shard) == (6, 3)
    assert data.lengths(1) == [len(s.ids) for s in expected[3:]]
    with pytest.raises(FileNotFoundError):
        data.sequence(6)


def test_shards_hold_the_stated_types(maker, tmp_path):
    state = load_file(maker.write(tmp_path, 0))
    assert {k: v.dtype for k, v in state.items()} == {
        "ids": torch.int32,
        "parts": torch.int8,
        "lengths": torch.int32,
    }


def test_a_shard_depends_on_settings_and_number_alone(material, tmp_path):
    one, two = (Pretokeniser(SETTINGS, material) for _ in range(2))
    for maker, name, order in ((one, "a", (0, 1, 2)), (two, "b", (2, 0, 1))):
        (tmp_path / name).mkdir()
        for shard in order:
            maker.write(tmp_path / name, shard)
    for shard in range(3):
        a, b = (tmp_path / name / f"{shard:05d}.safetensors" for name in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_a_shard_that_is_there_is_kept_and_one_made_otherwise_refused(material, tmp_path, maker):
    path = maker.write(tmp_path, 0)
    before = path.stat().st_mtime_ns
    maker.write(tmp_path, 0)
    assert path.stat().st_mtime_ns == before
    other = Pretokeniser(replace(SETTINGS, seed=1), material)
    with pytest.raises(DataSetError, match="differs in settings"):
        other.write(tmp_path, 0)


def test_an_interrupted_shard_leaves_nothing_that_counts(maker, tmp_path, monkeypatch):
    def dies(state, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretokenise, "save_file", dies)
        with pytest.raises(KeyboardInterrupt):
            maker.write(tmp_path, 0)
    with pytest.raises(DataSetError, match="holds no shards"):
        TokenisedSet(tmp_path)
    assert len(read_shard(maker.write(tmp_path, 0))) == 3


def test_a_card_counts_and_hashes_what_there_is(maker, material, tmp_path):
    maker.write(tmp_path, 0)
    assert write_card(tmp_path, 2) is None
    maker.write(tmp_path, 1)
    card = write_card(tmp_path, 2)
    assert card == json.loads((tmp_path / "card.json").read_text())
    sequences = [maker.sequence(i) for i in range(6)]
    assert card["sequences"] == 6
    lengths = [len(s.ids) for s in sequences]
    assert card["lengths"] == {"min": min(lengths), "mean": np.mean(lengths), "max": max(lengths)}
    for i, name in ((-1, "prompt"), (0, "label"), (1, "caption"), (2, "image")):
        assert card["tokens_by_part"][name] == sum(s.parts.count(i) for s in sequences)
    labels = Counter(label(material.pairs.pair(i), KnownLabels()) for i in range(6))
    assert card["label_counts"] == labels
    for name, digest in card["shards_sha256"].items():
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert card["labels"]["thresholds"] == {"blur": [2.2, 7.5], "noise": [3.2, 9.5]}
    assert card["settings"]["native"] == 32
    page = (tmp_path / "README.md").read_text()
    for text in ("| blur | 2.2 | 7.5 |", "| noise | 3.2 | 9.5 |", "6 sequences", nano.FORM):
        assert text in page


def test_a_card_over_different_data_sets_is_refused(maker, material, tmp_path):
    maker.write(tmp_path, 0)
    Pretokeniser(replace(SETTINGS, heavy=0.1), material).write(tmp_path, 1)
    with pytest.raises(DataSetError, match="differs in settings"):
        write_card(tmp_path, 2)


def test_any_vocabulary_can_be_written(checkpoint_folder, material):
    """A byte-level tokenizer: the caption's first piece carries the space before it."""
    tokenizers = load_tokenizers(checkpoint_folder)
    captions = CaptionTable({str(i): "A photo of an old red house." for i in range(4)}, {})
    other = Material(material.pairs, material.labels, captions, tokenizers, {})
    sequence = Pretokeniser(SETTINGS, other).sequence(0)
    text = tokenizers.text.decode(parts_of(sequence, 0) + parts_of(sequence, 1))
    assert text == f"{label(material.pairs.pair(0), KnownLabels())} A photo of an old red house."
    first = tokenizers.text._tokenizer.id_to_token(parts_of(sequence, 1)[0])
    assert first.startswith("Ġ")


@pytest.fixture
def command(monkeypatch):
    """Run the command line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pretokenise", *map(str, arguments)])
        pretokenise.main()

    return run


def test_the_nano_is_one_command(command, photos_folder, vq_folder, tmp_path, material):
    out = tmp_path / "sequences" / "train"
    small = ("--native", 32, "--shard", 2, "--shards", 3)
    command("--photos", photos_folder, "--vq", vq_folder, "--out", out, *small)
    names = json.loads((tmp_path / "sequences" / "names.json").read_text())
    assert names == material.tokenizers.names
    assert TokenisedSet(out).sequence(3) == Pretokeniser(SETTINGS, material).sequence(3)
    assert json.loads((out / "card.json").read_text())["sequences"] == 6


@pytest.fixture
def gt(tmp_path):
    folder = tmp_path / "gt"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["photo,caption"]
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"gt/{i}.png,A photo of house {i}.")
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_processes_share_a_data_set_of_folders_in_the_released_vocabulary(
    command, gt, checkpoint_folder, tmp_path
):
    arguments = ("--vocabulary", checkpoint_folder, "--native", 32, "--shard", 2, "--heavy", 1)
    arguments += ("--captions", tmp_path / "captions.csv", "--sharpen", 1)
    one, two, baked = (tmp_path / name / "train" for name in ("one", "two", "baked"))
    command(*arguments, "--gt", gt, "--out", one)
    for rank in (1, 0):
        command(*arguments, "--gt", gt, "--out", two, "--rank", rank, "--ranks", 2)
    for name in ("card.json", "README.md", *(f"{i:05d}.safetensors" for i in range(3))):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    card = json.loads((one / "card.json").read_text())
    assert card["captions"] == {"files": ["captions.csv"], "captions": 5}
    assert card["photographs"]["photos"] == 5
    from pure import pairs

    settings = pairs.PairSettings(size=32)
    files = pairs.photo_files([(gt, None)])
    made = pairs.MadePairs(pairs.FolderCrops(files, 32, seed=0), settings)
    pairs.bake(made, 5, tmp_path / "pairs", {"settings": {"size": 32}})
    command(*arguments, "--baked", tmp_path / "pairs", "--out", baked)
    for shard in range(2):  # the third goes on to the second pass, which was not baked
        name = f"{shard:05d}.safetensors"
        assert read_shard(one / name) == read_shard(baked / name)


def test_labels_by_the_estimator_are_in_the_card(command, photos_folder, vq_folder, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(DegradationEstimator().state_dict(), tmp_path / "dem.pth")
    out = tmp_path / "sequences" / "train"
    command(
        *("--photos", photos_folder, "--vq", vq_folder, "--out", out, "--native", 32),
        *("--shard", 2, "--shards", 1, "--dem", tmp_path / "dem.pth"),
        *("--blur-thresholds", "0.1,0.9"),
    )
    labels = json.loads((out / "card.json").read_text())["labels"]
    assert labels["source"] == "MM-RealSR's estimator, before enlargement"
    assert labels["thresholds"] == {"blur": [0.1, 0.9], "noise": [1 / 3, 2 / 3]}
    with safe_open(out / "00000.safetensors", framework="pt") as file:
        counts = json.loads(file.metadata()["shard"])["labels"]
    assert all(text.startswith("Medium blur") for text in counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gt", "x"), "need a --vocabulary"),
        (("--vocabulary", "x", "--gt", "y"), "needs --captions, and either --gt or --baked"),
        (("--vocabulary", "x", "--captions", "y"), "needs --captions, and either"),
        (("--vocabulary", "x", "--captions", "y.csv", "--gt", "z"), "cannot be read as captions"),
        (("--dem", "x.pth"), "cannot be read as weights"),
    ],
)
def test_what_does_not_go_together_is_said(command, capsys, arguments, message):
    with pytest.raises(SystemExit):
        command(*arguments)
    assert message in capsys.readouterr().err
