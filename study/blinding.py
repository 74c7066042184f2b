"""What keeps a participant from knowing which method is which: tokens, names, plain pictures.

The browser gets random names and a token that it cannot read anything from or change; the server
maps back. Pictures are written anew without metadata, and those of one trial have the same number
of bytes. Knows bytes, not studies.
"""

import base64
import hashlib
import hmac
import io
import json
import os
import secrets
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

CODE_BYTES = 16  # a participant's code is 128 random bits
PARTICIPANT_DIGITS = 16
TOKEN_SECONDS = 4 * 3600
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# An empty stored block of deflate: five bytes that decompress to nothing (RFC 1951, 3.2.4).
EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"
CHUNK_OVERHEAD = 12  # length, type and checksum of a PNG chunk


class TokenError(ValueError):
    """A vote that does not come with a token of ours; the message says what to do."""


def new_code() -> str:
    """A fresh participant code, 32 hexadecimal digits; only the browser keeps it."""
    return secrets.token_hex(CODE_BYTES)


def participant_of(code: str, salt: bytes) -> str:
    """What the server stores instead of the code: HMAC-SHA256 cut to 16 hexadecimal digits."""
    digest = hmac.new(salt, code.strip().lower().encode(), hashlib.sha256).hexdigest()
    return digest[:PARTICIPANT_DIGITS]


def load_secret(path: Path) -> bytes:
    """The study's secret, 32 bytes; made at the first call, readable by the owner alone.

    Whoever loses it can no longer connect codes to votes: people could not resume or withdraw.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return bytes.fromhex(path.read_text(encoding="ascii").strip())
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(file.fileno())
    return bytes.fromhex(path.read_text(encoding="ascii").strip())


def derive(secret: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose: salt, tokens, names."""
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


@dataclass(frozen=True)
class TokenClaim:
    """What a valid token says: who is answering which trial, and when it was shown."""

    participant: str
    trial_id: str
    issued_at: float


def issue_token(
    key: bytes,
    study_hash: str,
    participant: str,
    trial_id: str,
    order: Sequence[str],
    issued_at: float,
) -> str:
    """A token for one trial: claim and HMAC over study, claim, displayed order and a nonce.

    The order is signed and not contained.
    """
    claim = {"p": participant, "t": trial_id, "i": issued_at, "n": secrets.token_hex(8)}
    body = json.dumps(claim, separators=(",", ":")).encode()
    signature = _signature(key, study_hash, body, order)
    return f"{_encode(body)}.{_encode(signature)}"


def read_claim(token: str) -> TokenClaim:
    """What a token claims, before it is believed: enough to look up the trial's order.

    Raises:
        TokenError: it is no token.
    """
    try:
        claim = json.loads(_decode(token.split(".")[0]))
        return TokenClaim(str(claim["p"]), str(claim["t"]), float(claim["i"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TokenError("This vote has no valid token. Reload the page and vote again.") from None


def check_token(
    token: str,
    key: bytes,
    study_hash: str,
    order: Sequence[str],
    now: float,
    max_age: float = TOKEN_SECONDS,
) -> TokenClaim:
    """The claim of a token that is ours, of this study, for this order, and not too old.

    Raises:
        TokenError: foreign, changed or expired.
    """
    claim = read_claim(token)
    try:
        body_text, signature_text = token.split(".")
        signature = _decode(signature_text)
        body = _decode(body_text)
    except ValueError:
        raise TokenError("This vote has no valid token. Reload the page and vote again.") from None
    if not hmac.compare_digest(signature, _signature(key, study_hash, body, order)):
        raise TokenError(
            "This vote's token is not from this study. Reload the page and vote again."
        )
    age = now - claim.issued_at
    if not -60 <= age <= max_age:  # a minute of clock difference between two servers
        raise TokenError(
            f"This trial was shown {age / 3600:.1f} hours ago and answers are taken for "
            f"{max_age / 3600:.1f}. Reload the page to see it again."
        )
    return claim


def _signature(key: bytes, study_hash: str, body: bytes, order: Sequence[str]) -> bytes:
    message = json.dumps([study_hash, _encode(body), list(order)], separators=(",", ":"))
    return hmac.new(key, message.encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def stimulus_name(key: bytes, participant: str, trial_id: str, place: str) -> str:
    """The file name under which a picture of a trial is served; random to whoever lacks the key.

    `place` is the panel's position as a digit, or "input".
    """
    message = "|".join([participant, trial_id, place])
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()[:32] + ".png"


def plain_png(picture: Image.Image) -> bytes:
    """A picture as PNG of 8-bit RGB with its pixels and nothing else."""
    bare = Image.new("RGB", picture.size)
    bare.paste(picture.convert("RGB"))
    file = io.BytesIO()
    bare.save(file, "PNG", compress_level=6)
    header, data = _parts(file.getvalue())
    return _assemble(header, [data])


def pad_png(png: bytes, size: int) -> bytes:
    """The same picture in exactly `size` bytes, by blocks of deflate that hold nothing.

    Raises:
        ValueError: `size` is too small; `padded_size` says what is enough.
    """
    header, data = _parts(png)
    room = size - len(_assemble(header, [data]))
    # One block is 5 bytes, one more chunk 12, of which up to 4 make the remainder come out.
    chunks = next((n for n in range(5) if (room - CHUNK_OVERHEAD * n) % 5 == 0), 0)
    blocks, rest = divmod(room - CHUNK_OVERHEAD * chunks, len(EMPTY_BLOCK))
    if blocks < 0 or rest:
        raise ValueError(f"a PNG of {len(png)} bytes cannot be padded to {size}")
    padded = data[:2] + EMPTY_BLOCK * blocks + data[2:]  # after the two bytes of zlib's header
    return _assemble(header, [padded, *[b""] * chunks])


def equal_size(pngs: Sequence[bytes]) -> list[bytes]:
    """The same pictures, all with one number of bytes."""
    size = max(len(png) for png in pngs) + 4 * CHUNK_OVERHEAD
    return [pad_png(png, size) for png in pngs]


def _parts(png: bytes) -> tuple[bytes, bytes]:
    """Header and joined data of a PNG; other chunks are left behind."""
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError("not a PNG")
    header, data, at = b"", b"", len(PNG_SIGNATURE)
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            data += body
        at += CHUNK_OVERHEAD + length
    return header, data


def _assemble(header: bytes, data: Sequence[bytes]) -> bytes:
    chunks = [(b"IHDR", header), *((b"IDAT", part) for part in data), (b"IEND", b"")]
    out = [PNG_SIGNATURE]
    for kind, body in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        out.append(struct.pack(">I", len(body)) + kind + body + checksum)
    return b"".join(out)
