import zipfile

import numpy as np
import pytest
from PIL import Image

from baselines import precomputed
from baselines.base import MethodError, MethodUnavailableError, run


def picture(seed, size):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "lq").mkdir()
    paths = [tmp_path / "lq" / f"{name}_LR4.png" for name in "ab"]
    for i, path in enumerate(paths):
        picture(i, 8).save(path)
    return paths


@pytest.fixture(params=["folder", "zip", "zip with folders"])
def outputs(request, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    picture(10, 32).save(folder / "a_LR4.png")
    picture(11, 32).save(folder / "b.png")  # another suffix of the same photo
    if request.param == "folder":
        return folder
    archive = tmp_path / "theirs.zip"
    inside = "" if request.param == "zip" else "results/x4/"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, inside + path.name)
        file.writestr("__MACOSX/._a_LR4.png", b"junk")
        file.writestr("readme.txt", b"words")
    return archive


def test_each_input_gets_the_output_of_its_name(inputs, outputs):
    method = precomputed.method("theirs", outputs, inputs, title="Theirs")
    restorer = method.load("cpu")
    for i, path in enumerate(inputs):
        restoration, card = run(method, restorer, Image.open(path), seed=4)
        assert restoration.image.tobytes() == picture(10 + i, 32).tobytes()
        assert restoration.seconds is None
        assert card.details["file"] == ("a_LR4.png", "b.png")[i]


def test_an_input_it_has_no_output_of_is_refused(inputs, outputs):
    restorer = precomputed.method("theirs", outputs, inputs, title="Theirs").load("cpu")
    with pytest.raises(MethodError, match="Theirs has saved outputs of 2 pictures only"):
        restorer.restore(picture(99, 8))


def test_outputs_of_the_wrong_size_are_refused(inputs, outputs):
    method = precomputed.method("theirs", outputs, inputs, scale=2)
    with pytest.raises(MethodError, match="32 × 32 in mode RGB; 16 × 16"):
        run(method, method.load("cpu"), Image.open(inputs[0]))


def test_what_is_not_there_or_does_not_match_is_said(inputs, tmp_path):
    nowhere = precomputed.method("theirs", tmp_path / "nowhere", inputs)
    assert "is not there" in nowhere.unavailable()
    with pytest.raises(MethodUnavailableError, match="is not there"):
        nowhere.load("cpu")
    (tmp_path / "strange").mkdir()
    picture(1, 32).save(tmp_path / "strange" / "zebra.png")
    with pytest.raises(MethodUnavailableError, match="none of the 1 pictures"):
        precomputed.method("theirs", tmp_path / "strange", inputs).load("cpu")
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    with pytest.raises(MethodUnavailableError, match="Expected is a folder or a zip"):
        precomputed.method("theirs", tmp_path / "no.zip", inputs).load("cpu")


def test_a_broken_output_is_refused_with_its_name(inputs, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.png").write_bytes(b"torn")
    restorer = precomputed.method("theirs", tmp_path / "theirs", inputs).load("cpu")
    with pytest.raises(MethodError, match=r"a\.png cannot be read"):
        restorer.restore(Image.open(inputs[0]).convert("RGB"))


def test_an_entry_that_unpacks_to_more_than_a_picture_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(precomputed, "MAX_ENTRY_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(2000))
    restorer = precomputed.method("theirs", tmp_path / "bomb.zip", inputs).load("cpu")
    with pytest.raises(MethodError, match="unpacks to more than"):
        restorer.restore(Image.open(inputs[0]).convert("RGB"))


def test_names_in_a_zip_lead_nowhere(inputs, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        picture(1, 32).save(tmp_path / "a.png")
        file.write(tmp_path / "a.png", "../../a.png")
    before = sorted(tmp_path.rglob("*"))
    restorer = precomputed.method("theirs", tmp_path / "evil.zip", inputs).load("cpu")
    restorer.restore(Image.open(inputs[0]).convert("RGB"))
    assert sorted(tmp_path.rglob("*")) == before
