import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pure.__main__ import entropy_map, main, save
from pure.model import Transformer, TransformerConfig
from pure.nano import token_names, write_checkpoint
from pure.pipeline import PurePipeline, RestoreSettings
from pure.vq import CONFIGS, VQModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nano_folder(tmp_path_factory):
    """A random one-layer model in PURE-nano's format, whose words are few."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    names = token_names(["lake"], codes=CONFIGS["tiny"].codebook_size)
    config = TransformerConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vq = Transformer(config), VQModel(CONFIGS["tiny"])
    write_checkpoint(
        folder,
        names=names,
        config=config,
        transformer=transformer.state_dict(),
        vq_config=CONFIGS["tiny"],
        vq=vq.state_dict(),
        native_pixels=32,
        text_limit=12,
        notes={"name": "tiny"},
    )
    return folder


@pytest.fixture
def lake(tmp_path):
    """A file of 12 × 8 pixels, one tile and a bit when four times as large."""
    path = tmp_path / "lake.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(nano_folder, capsys):
    """Run the command; gives the exit code, what it said and what it complained about."""

    def call(*arguments):
        code = main([*map(str, arguments), "--checkpoint", str(nano_folder)])
        return code, *capsys.readouterr()

    return call


def test_a_photo_is_restored_as_the_pipeline_does_it(run, lake, tmp_path, nano_folder):
    code, out, _ = run(lake, tmp_path / "sr.png", "--seed", 3)
    pipeline = PurePipeline.from_pretrained(nano_folder)
    with Image.open(lake) as lq, Image.open(tmp_path / "sr.png") as sr:
        expected = pipeline.restore(lq, RestoreSettings(seed=3))
        np.testing.assert_array_equal(np.asarray(sr), np.asarray(expected.image))
    assert code == 0
    assert out == f"{tmp_path / 'sr.png'}: {expected.belief.text}\n"


def test_every_option_reaches_the_pipeline(run, lake, tmp_path, monkeypatch):
    seen = []
    stream = PurePipeline.stream

    def spy(self, image, settings, **rest):
        seen.append(settings)
        return stream(self, image, settings, **rest)

    monkeypatch.setattr(PurePipeline, "stream", spy)
    options = "--scale 2 --seed 7 --sampling topk:5 --guidance perception --colour-fix adain"
    texts = ["--label", "Small blur, small noise.", "--caption", "lake."]
    assert run(lake, tmp_path / "sr.png", *options.split(), *texts)[0] == 0
    [settings] = seen
    assert (settings.scale, settings.seed, settings.guidance) == (2, 7, "perception")
    assert (settings.draw().mode, settings.draw().top_k) == ("topk", 5)
    assert (settings.colour_fix, settings.label) == ("adain", texts[1])
    assert settings.caption == texts[3]


def test_an_approximate_decoder_is_named_with_the_result(run, lake, tmp_path):
    _, quick, _ = run(lake, tmp_path / "a.png", "--scale", 1, "--decoder", "rows")
    _, plain, _ = run(lake, tmp_path / "b.png", "--scale", 1, "--decoder", "plain")
    assert "(approximate: written by rows)" in quick
    assert "(approximate" not in plain


def test_json_tells_what_was_done(run, lake, tmp_path):
    label = "Large blur, small noise."
    code, out, _ = run(
        lake, tmp_path / "sr.png", "--json", "--scale", 2, "--label", label, "--caption", "lake."
    )
    about = json.loads(out)
    seconds = about.pop("seconds")
    assert code == 0
    assert about.pop("steps") > about.pop("passes") > 0
    assert about == {
        "input": str(lake),
        "output": str(tmp_path / "sr.png"),
        "entropy": None,
        "label": label,
        "caption": "lake.",
        "seed": 0,
        "decoder": "parallel",
        "approximate": False,
        "checkpoint": "tiny",
        "scale": 2,
        "size": [24, 16],
    }
    assert list(seconds) == ["total", "perceive", "understand", "restore", "finish"]
    assert seconds["total"] >= seconds["restore"]


def test_a_folder_is_restored_and_what_is_no_photo_left_alone(run, lake, tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    lake.rename(source / "a.png")
    Image.new("RGB", (4, 4)).save(source / "b.JPG", "JPEG")
    (source / "notes.txt").write_text("not a photo")
    (source / ".hidden.png").write_bytes(b"")
    (source / "more.png").mkdir()
    code, out, _ = run(source, tmp_path / "new" / "out", "--json", "--scale", 1)
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "new" / "out").iterdir()) == ["a.png", "b.png"]
    assert [json.loads(line)["input"] for line in out.splitlines()] == [
        str(source / "a.png"),
        str(source / "b.JPG"),
    ]


def test_photos_that_fail_are_named_and_the_rest_is_done(run, lake, tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    (source / "a.png").write_bytes(b"no picture")
    (source / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    lake.rename(source / "c.png")
    code, out, err = run(source, tmp_path / "out", "--scale", 1)
    assert code == 1
    assert out.startswith(str(tmp_path / "out" / "c.png"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c.png"]
    assert f"{source / 'a.png'}: This file of 10 bytes" in err
    assert f"{source / 'b.heic'}: This is a HEIC photo" in err


def test_two_photos_never_share_a_result(run, lake, tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    lake.rename(source / "a.png")
    Image.new("RGB", (4, 4)).save(source / "a.bmp")
    code, out, err = run(source, tmp_path / "out", "--scale", 1)
    assert code == 1
    assert len(out.splitlines()) == 1
    assert f"{source / 'a.png'}: a.bmp already becomes a.png; rename one of them." in err


def test_a_photo_goes_into_a_folder_under_its_own_name(run, lake, tmp_path):
    (tmp_path / "out").mkdir()
    assert run(lake, tmp_path / "out", "--scale", 1)[0] == 0
    assert (tmp_path / "out" / "lake.png").exists()


def test_missing_folders_of_the_result_are_made(run, lake, tmp_path):
    assert run(lake, tmp_path / "a" / "b" / "sr.png", "--scale", 1)[0] == 0
    assert (tmp_path / "a" / "b" / "sr.png").exists()


def test_the_entropy_map_covers_the_result(run, lake, tmp_path, nano_folder):
    code, _, _ = run(lake, tmp_path / "sr.png", "--entropy", tmp_path / "maps" / "h.png")
    pipeline = PurePipeline.from_pretrained(nano_folder)
    with Image.open(lake) as lq, Image.open(tmp_path / "maps" / "h.png") as written:
        expected = entropy_map(pipeline.restore(lq), pipeline)
        assert code == 0
        assert written.size == (48, 32)
        np.testing.assert_array_equal(np.asarray(written), np.asarray(expected))


def test_a_folder_gets_a_folder_of_entropy_maps(run, lake, tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    lake.rename(source / "a.png")
    run(source, tmp_path / "out", "--entropy", tmp_path / "maps", "--scale", 1)
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lake.png", "sr.jpg"], "sr.jpg does not end in .png, the only format that is written."),
        (["lake.png", "lake.png"], "lake.png is the input and would be overwritten"),
        (["lake.png", "."], "lake.png is the input and would be overwritten"),
        (["lake.png", "link.png"], "link.png is the input and would be overwritten"),
        (["none.png", "sr.png"], "none.png does not exist."),
        (["lake.png", "sr.png", "--entropy", "h.txt"], "h.txt does not end in .png"),
        (["lake.png", "sr.png", "--entropy", "./sr.png"], "sr.png cannot hold the photo and its"),
        (["lake.png", "sr.png", "--entropy", "lake.png"], "lake.png is the input"),
        (["lake.png", "sr.png", "--sampling", "best"], "sampling is dynamic, top1 or topk:K"),
        (["lake.png", "sr.png", "--sampling", "topk:0"], "top-k keeps at least 1 candidate"),
        (["lake.png", "sr.png", "--seed", "-1"], "the seed is a whole number from 0"),
        (["lake.png", "sr.png", "--caption", "A zebra."], "cannot be written with this checkpoint"),
        (["folder", "folder"], "folder cannot hold both the photos and the results"),
        (["folder", "sr.png"], "sr.png is no folder, and folder is one; name a folder."),
        (["folder", "out", "--entropy", "out"], "out cannot hold both the results and the entropy"),
        (["empty", "out"], "empty holds no photo."),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_in_a_sentence(
    run, lake, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.png").symlink_to(lake)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(lake.read_bytes())
    before = sorted(tmp_path.rglob("*")), lake.read_bytes()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err
    assert (sorted(tmp_path.rglob("*")), lake.read_bytes()) == before


@pytest.mark.parametrize(
    "arguments", [["--scale", "5"], ["--guidance", "all"], ["--colour-fix", "no"], ["--devic"]]
)
def test_a_choice_that_does_not_exist_is_a_usage_error(run, lake, arguments):
    with pytest.raises(SystemExit) as stopped:
        run(lake, "sr.png", *arguments)
    assert stopped.value.code == 2


def test_a_checkpoint_that_is_not_there_is_named(lake, tmp_path, capsys):
    assert main([str(lake), str(tmp_path / "sr.png"), "--checkpoint", "/no/such/folder"]) == 2
    assert "there is no checkpoint folder /no/such/folder" in capsys.readouterr().err


def test_cuda_is_refused_where_there_is_none(run, lake, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run(lake, tmp_path / "sr.png", "--device", "cuda")
    assert code == 2
    assert err == "There is no CUDA device here; use --device cpu.\n"


def test_one_photo_that_cannot_be_read_is_one_sentence(run, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    code, out, err = run(tmp_path / "broken.png", tmp_path / "sr.png")
    assert (code, out) == (1, "")
    assert err == f"{tmp_path / 'broken.png'}: The file is empty: 0 bytes. Upload it again.\n"
    assert not (tmp_path / "sr.png").exists()


def test_a_result_that_cannot_be_written_is_one_sentence(run, lake, tmp_path):
    (tmp_path / "taken").write_bytes(b"a file where a folder should be")
    code, out, err = run(lake, tmp_path / "taken" / "sr.png", "--scale", 1)
    assert (code, out) == (1, "")
    assert f"{lake}: the result cannot be written (" in err


def test_an_earlier_result_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "sr.png"
    path.write_bytes(b"earlier")

    def half(self, file, *_):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space left"):
        save(Image.new("RGB", (1, 1)), path)
    assert [p.name for p in tmp_path.iterdir()] == ["sr.png"]
    assert path.read_bytes() == b"earlier"


def test_progress_is_a_few_lines_where_nobody_watches(run, lake, tmp_path):
    _, _, err = run(lake, tmp_path / "sr.png")
    assert 1 <= len(err.splitlines()) <= 4
    assert err.splitlines()[-1] == f"{lake}: 100%"


def test_progress_rewrites_one_line_on_a_terminal(run, lake, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(lake, tmp_path / "sr.png")
    assert "100%" in terminal.getvalue()
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_an_interrupt_stops_without_a_traceback(run, lake, tmp_path, monkeypatch):
    def interrupted(self, *_, **__):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(PurePipeline, "stream", interrupted)
    assert run(lake, tmp_path / "sr.png") == (130, "", "Stopped.\n")


def test_it_runs_as_a_module(lake, tmp_path, nano_folder):
    command = [sys.executable, "-m", "pure", lake, tmp_path / "sr.png", "--scale", "1"]
    done = subprocess.run(
        [*map(str, command), "--checkpoint", str(nano_folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sr.png").exists()
