import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging.degrade import synthesise
from tools.photos import (
    EXAMPLE_PRESET,
    EXAMPLES,
    KINDS,
    LONGEST_SIDE,
    SHELVES,
    PhotosError,
    as_photo,
    board_captions,
    credit,
    difference_hash,
    gather,
    glob_matches,
    has_plain_background,
    parse_copyright,
    picks,
    read_index,
    read_rcc,
    split_table,
)

SHIPPED = Path(__file__).parents[2] / "examples"
MIB = 2**20


def rcc_of(files: dict[str, bytes], *, version: int, compress: bool) -> bytes:
    """A Qt resource file, written breadth first as Qt's `rcc` does, apart from the sorting."""
    root: dict = {}
    for path, content in files.items():
        *parents, name = path.split("/")
        folder = root
        for parent in parents:
            folder = folder.setdefault(parent, {})
        folder[name] = content

    nodes: list[tuple[str, dict | bytes]] = [("", root)]
    first_child = {}
    for index, (_, entry) in enumerate(nodes):  # grows while it is walked
        if isinstance(entry, dict):
            first_child[index] = len(nodes)
            nodes.extend(entry.items())

    names, name_at = b"", {}
    for name in dict.fromkeys(name for name, _ in nodes if name):
        name_at[name] = len(names)
        names += struct.pack(">HI", len(name), 0xABCD) + name.encode("utf-16-be")

    tree, blobs = b"", b""
    for index, (name, entry) in enumerate(nodes):
        if isinstance(entry, dict):
            node = struct.pack(
                ">IHII", name_at.get(name, 0), 2, len(entry), first_child.get(index, 0)
            )
        else:
            node = struct.pack(">IHHHI", name_at[name], int(compress), 0, 1, len(blobs))
            if compress:
                entry = struct.pack(">I", len(entry)) + zlib.compress(entry)
            blobs += struct.pack(">I", len(entry)) + entry
        tree += node + (b"" if version == 1 else struct.pack(">Q", 1_700_000_000_000))

    header = 20 if version < 3 else 24
    offsets = (header + len(blobs) + len(names), header, header + len(blobs))
    head = b"qres" + struct.pack(">4I", version, *offsets)
    return head + (struct.pack(">I", int(compress)) if version == 3 else b"") + blobs + names + tree


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compress", [False, True])
def test_every_file_of_a_resource_file_is_read_back(version, compress):
    files = {
        "gcompris/src/a.webp": bytes(range(256)) * 3,
        "gcompris/src/é/b.qml": b"text",
        "top.txt": b"",
    }
    assert read_rcc(rcc_of(files, version=version, compress=compress)) == files


def test_something_else_than_a_resource_file_is_refused():
    with pytest.raises(ValueError, match="qres"):
        read_rcc(b"RIFF" + bytes(40))


def test_a_later_version_of_resource_files_is_refused():
    data = bytearray(rcc_of({"a": b"b"}, version=3, compress=False))
    data[4:8] = struct.pack(">I", 9)
    with pytest.raises(ValueError, match="version 1 to 3, not 9"):
        read_rcc(bytes(data))


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("*", "a/b/c.jpg", True),
        ("src/*/animals/*", "src/x/y/animals/koala.jpg", True),
        ("src/*.jpg", "src/deep/er.jpg", True),
        ("fish?.jpg", "fish1.jpg", True),
        ("fish?.jpg", "fish10.jpg", False),
        ("fish1.jpg", "fish1xjpg", False),
        ("[ab].jpg", "a.jpg", False),
        ("src/a", "src/a/b", False),
    ],
)
def test_globs_match_as_debian_says(glob, path, expected):
    assert glob_matches(glob, path) is expected


COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2014-2016, A Team <team@example.org>
           2015 by Another
License: GPL-3+

Files: animals/koala.jpg animals/b*.jpg
Copyright: Jane "JD" Doe, 2018
License: CC-BY-4.0
Comment: somewhere

Files: animals/bison.jpg
Copyright: Someone Else
License: CC0-1.0

License: CC-BY-4.0
 The text.
 .
 Files: none of this is a stanza
"""


@pytest.mark.parametrize(
    ("path", "holders", "licence"),
    [
        ("animals/lion.webp", ("A Team", "Another"), "GPL-3+"),
        ("animals/koala.webp", ("Jane JD Doe",), "CC-BY-4.0"),
        ("animals/bear.jpg", ("Jane JD Doe",), "CC-BY-4.0"),
        ("animals/bison.webp", ("Someone Else",), "CC0-1.0"),
    ],
)
def test_the_last_matching_stanza_gives_the_credit(path, holders, licence):
    stanza = credit(parse_copyright(COPYRIGHT), path)
    assert stanza is not None
    assert (stanza.holders, stanza.licence) == (holders, licence)


def test_a_path_no_stanza_speaks_of_has_no_credit():
    assert credit(parse_copyright("Files: a\nCopyright: B\nLicense: C\n"), "d") is None


def test_a_caption_is_the_first_sentence_of_the_board():
    board = b"""{ "image": "qrc:/q.svg", "title": qsTr("Owl"),
      "text": qsTr("It says \\"hoo\\" at night. It flies."), "image2": "qrc:/a/owl.webp" },
    { "image": "qrc:/q.svg", "text": qsTr("No picture.") }"""
    files = {"a/resource/board/board1.qml": board, "a/owl.webp": b""}
    assert board_captions(files) == {"a/owl.webp": 'It says "hoo" at night.'}


def test_the_split_stays_what_it_was():
    """A tripwire: whoever changes it makes earlier checkpoints' scores incomparable."""
    table = "".join(f"{name} {split}\n" for name, split in sorted(split_table().items()))
    assert hashlib.sha256(table.encode()).hexdigest() == (
        "d8ab63ad13be441677c099836b4cd6fd498953041288529a653e6c067375f6ac"
    )


def test_ids_are_unique():
    assert len(split_table()) == sum(len(picks(shelf)) for shelf in SHELVES)


@pytest.mark.parametrize(
    "package", ["palapeli-data", "opencv-doc", "libjxl-testdata", "python3-skimage"]
)
def test_packages_of_test_pictures_are_held_out_whole(package):
    shelves = [shelf for shelf in SHELVES if shelf.package == package]
    assert {pick.split for shelf in shelves for pick in picks(shelf)} == {"held_out"}


@pytest.mark.parametrize("prefix", ["erase", "monuments"])
def test_every_tenth_picture_of_the_large_shelves_is_held_out(prefix):
    (shelf,) = (shelf for shelf in SHELVES if shelf.prefix == prefix)
    splits = [pick.split for pick in sorted(picks(shelf), key=lambda pick: pick.file)]
    assert [i for i, split in enumerate(splits) if split == "held_out"] == list(
        range(0, len(splits), 10)
    )


def test_every_photograph_has_one_kind_and_up_to_three_words():
    for shelf in SHELVES:
        for pick in picks(shelf):
            assert pick.kind in pick.words
            assert 1 <= len(pick.words) <= 3
            assert all(word == word.lower() for word in pick.words)
            assert sum(word in KINDS for word in pick.words[:2]) >= 1


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, path: Path) -> bytes:
    image.save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((320, 240), (320, 240)),
        ((2560, 80), (LONGEST_SIDE, 64)),
        ((3000, 80), (1500, 40)),
        ((6000, 80), (LONGEST_SIDE, 27)),
    ],
)
def test_only_large_pictures_are_made_smaller(size, expected, tmp_path):
    assert as_photo(encoded(noise(size), tmp_path / "a.png")).size == expected


def test_small_pictures_keep_their_pixels(tmp_path):
    image = noise((32, 24))
    assert as_photo(encoded(image, tmp_path / "a.png")).tobytes() == image.tobytes()


def test_an_object_on_white_has_a_plain_background_and_a_scene_has_not():
    catalogue = Image.new("RGB", (96, 64), "white")
    catalogue.paste(noise((40, 30)), (28, 17))
    assert has_plain_background(catalogue)
    assert not has_plain_background(noise((96, 64)))


def test_a_resized_copy_hashes_alike_and_another_picture_does_not():
    picture = noise((8, 6)).resize((640, 480), Image.Resampling.BICUBIC)
    other = noise((8, 6), seed=1).resize((640, 480), Image.Resampling.BICUBIC)
    copy = picture.resize((200, 150), Image.Resampling.LANCZOS)
    assert (difference_hash(picture) ^ difference_hash(copy)).bit_count() <= 3
    assert (difference_hash(picture) ^ difference_hash(other)).bit_count() > 16


def test_without_apt_nothing_is_gathered_and_a_sentence_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PhotosError, match="apt"):
        gather(tmp_path / "photos", build=tmp_path / "build")
    assert len(caplog.records) == len({shelf.package for shelf in SHELVES})


def test_photographs_of_an_earlier_run_stay_listed_without_apt(tmp_path, monkeypatch):
    row = {
        "id": "erase-bee", "file": "erase-bee.png", "package": "gcompris-qt-data",
        "version": "3.1-2", "source_path": "bee.webp", "author": "A", "licence": "B",
        "credit_note": None, "split": "train", "kind": "insect", "words": ["bee", "insect"],
        "caption": None, "plain_background": False, "width": 1, "height": 1, "sha256": "0",
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps([row]))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    gather(tmp_path, build=tmp_path / "build")
    assert [record.id for record in read_index(tmp_path / "index.json")] == ["erase-bee"]


def shipped_files() -> set[str]:
    return {path.name for path in SHIPPED.glob("*.png")}


def test_the_shipped_examples_are_those_of_the_table():
    lq = {f"{example.name}.png" for example in EXAMPLES}
    gt = {f"{example.name}_gt.png" for example in EXAMPLES if example.gt_size}
    assert shipped_files() == lq | gt


def test_every_shipped_example_has_a_line_about_its_licence():
    lines = (SHIPPED / "LICENCES.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    stated = {row[0]: row for row in rows if row[0].endswith(".png")}
    assert set(stated) == shipped_files()
    assert all(len(row) == 6 and all(row) for row in stated.values())
    assert all(
        any(free in row[3] for free in ("CC0", "CC-BY-4.0", "public-domain"))
        for row in stated.values()
    )


def test_examples_come_from_held_out_photographs():
    split = split_table()
    assert {split[example.photo] for example in EXAMPLES} == {"held_out"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_a_shipped_reference_is_four_times_its_example(example):
    with Image.open(SHIPPED / f"{example.name}.png") as lq:
        assert lq.mode == "RGB"
        assert 64 <= max(lq.size) <= 160
        if example.gt_size is None:
            return
        with Image.open(SHIPPED / f"{example.name}_gt.png") as gt:
            assert gt.size == example.gt_size == (4 * lq.width, 4 * lq.height)


def test_the_examples_are_small_enough_to_ship():
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.png")) < 3 * MIB


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.gt_size], ids=lambda example: example.name
)
def test_a_shipped_example_is_its_reference_degraded(example):
    with Image.open(SHIPPED / f"{example.name}_gt.png") as gt:
        made, _ = synthesise(np.asarray(gt), EXAMPLE_PRESET, example.seed)
    with Image.open(SHIPPED / f"{example.name}.png") as lq:
        error = np.square(made - np.asarray(lq, dtype=np.float64)).mean()
    # Equal where it was made; elsewhere another rounding may reach the noise and the JPEG.
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40
