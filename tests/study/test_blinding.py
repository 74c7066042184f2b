import io
import stat
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from study.blinding import (
    TokenError,
    check_token,
    derive,
    equal_size,
    issue_token,
    load_secret,
    new_code,
    pad_png,
    participant_of,
    plain_png,
    read_claim,
    stimulus_name,
)
from tests.study.studies import noise

KEY = b"k" * 32
ORDER = ("osediff", "pure", "bicubic")


def token(**change):
    values = {
        "key": KEY, "study_hash": "h", "participant": "p" * 16, "trial_id": "t",
        "order": ORDER, "issued_at": 1000.0, **change,
    }  # fmt: skip
    return issue_token(**values)


def test_a_fresh_token_is_accepted():
    claim = check_token(token(), KEY, "h", ORDER, now=1010)
    assert (claim.participant, claim.trial_id, claim.issued_at) == ("p" * 16, "t", 1000)


def test_a_token_does_not_contain_the_order():
    import base64

    body = token().split(".")[0]
    decoded = base64.urlsafe_b64decode(body + "===")
    assert not any(name.encode() in decoded for name in ORDER)


def test_two_tokens_of_one_trial_differ():
    assert token() != token()


@pytest.mark.parametrize(
    ("made", "checked"),
    [
        ({"key": b"x" * 32}, {}),
        ({"study_hash": "other"}, {}),
        ({"order": ORDER[::-1]}, {}),
    ],
)
def test_foreign_tokens_are_refused(made, checked):
    with pytest.raises(TokenError, match="not from this study"):
        check_token(token(**made), KEY, "h", ORDER, now=1010)


@given(st.integers(0, 300), st.integers(1, 255))
def test_a_changed_token_is_refused(at, change):
    text = bytearray(token().encode())
    text[at % len(text)] ^= change
    forged = text.decode("latin-1")
    if forged != token():
        with pytest.raises(TokenError):
            check_token(forged, KEY, "h", ORDER, now=1010)


@pytest.mark.parametrize("text", ["", "a", ".", "a.b", "é.é", "e30.e30", "W10.x", token() + ".x"])
def test_what_is_no_token_is_refused(text):
    with pytest.raises(TokenError):
        check_token(text, KEY, "h", ORDER, now=1010)


def test_an_old_token_is_refused_and_says_how_old():
    with pytest.raises(TokenError, match=r"shown 5\.0 hours ago and answers are taken for 4\.0"):
        check_token(token(), KEY, "h", ORDER, now=1000 + 5 * 3600)
    with pytest.raises(TokenError):
        check_token(token(), KEY, "h", ORDER, now=0)


def test_a_claim_is_readable_without_the_key():
    assert read_claim(token()).trial_id == "t"


def test_participants_are_salted_hashes_of_their_code():
    code = new_code()
    assert len(code) == 32
    who = participant_of(code, b"salt")
    assert len(who) == 16
    assert who == participant_of(f" {code.upper()} ", b"salt")
    assert who != participant_of(code, b"other")
    assert who != participant_of(new_code(), b"salt")


def test_a_secret_is_made_once_and_is_private(tmp_path):
    path = tmp_path / "secret"
    secret = load_secret(path)
    assert len(secret) == 32
    assert load_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert derive(secret, "a") != derive(secret, "b")


def test_stimulus_names_are_random_to_whoever_lacks_the_key():
    names = {
        stimulus_name(key, who, trial, place)
        for key in (KEY, b"other")
        for who in ("p", "q")
        for trial in ("t", "u")
        for place in ("0", "1", "input")
    }
    assert len(names) == 24
    assert all(len(name) == 36 and int(name[:32], 16) >= 0 for name in names)


def chunks(png):
    at, out = 8, []
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        out.append(kind.decode())
        at += 12 + length
    return out


def pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.mode == "RGB"
        return np.asarray(image)


def test_a_plain_png_has_pixels_and_no_metadata(tmp_path):
    source = noise(1)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "OSEDiff 1.0")
    exif = Image.Exif()
    exif[0x010E] = "OSEDiff"
    source.save(tmp_path / "a.png", pnginfo=info, exif=exif, dpi=(72, 72), icc_profile=b"OSEDiff")
    with Image.open(tmp_path / "a.png") as image:
        png = plain_png(image)
    assert set(chunks(png)) == {"IHDR", "IDAT", "IEND"}
    assert b"OSEDiff" not in png
    assert (pixels(png) == np.asarray(source)).all()


@given(st.integers(0, 2**31), st.integers(48, 400))
def test_padding_changes_the_size_and_no_pixel(seed, extra):
    png = plain_png(noise(seed, (9, 7)))
    padded = pad_png(png, len(png) + extra)
    assert len(padded) == len(png) + extra
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pixels(padded) == pixels(png)).all()
    assert set(chunks(padded)) == {"IHDR", "IDAT", "IEND"}


def test_pictures_of_a_trial_have_one_size():
    pictures = [
        noise(0),
        Image.new("RGB", (40, 32), "red"),
        noise(1).resize((20, 16)).resize((40, 32)),
    ]
    pngs = [plain_png(picture) for picture in pictures]
    assert len({len(png) for png in pngs}) == 3
    equal = equal_size(pngs)
    assert len({len(png) for png in equal}) == 1
    for png, picture in zip(equal, pictures, strict=True):
        assert (pixels(png) == np.asarray(picture)).all()


def test_padding_to_less_is_refused():
    png = plain_png(noise(0))
    with pytest.raises(ValueError, match="cannot be padded"):
        pad_png(png, len(png) - 1)


def test_what_is_not_a_png_is_refused():
    with pytest.raises(ValueError, match="not a PNG"):
        pad_png(b"GIF89a", 100)
