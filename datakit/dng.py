"""A Bayer mosaic as a DNG file (Adobe's Digital Negative, version 1.4), which any RAW reader opens; not compressed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from .raw import SRGB_TO_XYZ, RawImage

# TIFF field types: size in bytes and struct code of one number
_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _SRATIONAL, _DOUBLE = 1, 2, 3, 4, 5, 10, 12
_CODES = {_BYTE: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "II", _SRATIONAL: "ii", _DOUBLE: "d"}
PATTERN_SIZE, PATTERN = 0x828D, 0x828E
NOISE_PROFILE = 0xC761
D65 = 21  # EXIF light source of the matrix

Field = tuple[int, int, bytes]  # tag, type, values


def encode(image: RawImage, noise: Sequence[float] = ()) -> bytes:
    """The bytes of a DNG: mosaic (H, W) uint16 as the sensor lies, and an orientation that shows it.

    `image` is not turned: its orientation is written, and says how a reader has to turn it. noise: its NoiseProfile,
    (shot, read) of all colours or of each: the variance of a signal of 0..1 is shot * signal + read.
    """
    height, width = image.mosaic.shape
    shot = [_field(0x829A, _RATIONAL, [image.exposure_s]), _field(0x8827, _SHORT, [round(image.iso)])]
    gains = [max(g, 1e-6) for g in image.white_balance]
    fields = [
        _field(0x00FE, _LONG, [0]),  # the full-size picture
        _field(0x0100, _LONG, [width]),
        _field(0x0101, _LONG, [height]),
        _field(0x0102, _SHORT, [16]),
        _field(0x0103, _SHORT, [1]),  # not compressed
        _field(0x0106, _SHORT, [32803]),  # colour filter array
        _text(0x010F, image.make),
        _text(0x0110, image.model),
        _field(0x0111, _LONG, [0]),  # where the strip begins: set below
        _field(0x0112, _SHORT, [image.orientation]),
        _field(0x0115, _SHORT, [1]),
        _field(0x0116, _LONG, [height]),
        _field(0x0117, _LONG, [2 * height * width]),
        _field(PATTERN_SIZE, _SHORT, [2, 2]),
        _field(PATTERN, _BYTE, ["RGB".index(c) for c in image.cfa]),
        _field(0x8769, _LONG, [0]),  # where the EXIF directory begins: set below
        _field(0xC612, _BYTE, [1, 4, 0, 0]),
        _field(0xC613, _BYTE, [1, 1, 0, 0]),
        _text(0xC614, f"{image.make} {image.model}"),
        _field(0xC619, _SHORT, [2, 2]),
        _field(0xC61A, _RATIONAL, list(image.black)),
        _field(0xC61D, _LONG, [image.white]),
        _field(0xC628, _RATIONAL, [1 / g for g in gains]),
        _field(0xC65A, _SHORT, [D65]),
    ]
    if noise:
        fields.append(_field(NOISE_PROFILE, _DOUBLE, noise))
    if any(image.matrix):
        camera = np.linalg.inv(np.reshape(image.matrix, (3, 3))) @ np.linalg.inv(SRGB_TO_XYZ)
        fields.append(_field(0xC621, _SRATIONAL, (camera / np.reshape(gains, (3, 1))).ravel().tolist()))
    begin = len(_directory(fields, 8)) + 8
    exif = _directory(shot, begin)
    places = {0x8769: begin, 0x0111: begin + len(exif)}
    fields = [(t, k, struct.pack("<I", places[t]) if t in places else v) for t, k, v in fields]
    pixels = np.ascontiguousarray(image.mosaic, "<u2").tobytes()
    return b"II*\0" + struct.pack("<I", 8) + _directory(fields, 8) + exif + pixels


def _field(tag: int, kind: int, values: Sequence[float]) -> Field:
    if kind in (_RATIONAL, _SRATIONAL):
        parts = [Fraction(v).limit_denominator(1_000_000) for v in values]
        packed = b"".join(struct.pack("<" + _CODES[kind], p.numerator, p.denominator) for p in parts)
    else:
        packed = struct.pack(f"<{len(values)}{_CODES[kind]}", *(v if kind == _DOUBLE else int(v) for v in values))
    return tag, kind, packed


def _text(tag: int, text: str) -> Field:
    return tag, _ASCII, text.encode("ascii", "replace") + b"\0"


def _directory(fields: list[Field], begin: int) -> bytes:
    """A TIFF directory that lies at `begin`, and behind it the values that do not fit in it; of even length."""
    size = 2 + 12 * len(fields) + 4
    entries, behind = [], b""
    for tag, kind, values in sorted(fields):
        count = len(values) // (struct.calcsize("<" + _CODES[kind]) if kind != _ASCII else 1)
        if len(values) <= 4:
            place = values.ljust(4, b"\0")
        else:
            place = struct.pack("<I", begin + size + len(behind))
            behind += values + b"\0" * (len(values) % 2)
        entries.append(struct.pack("<HHI", tag, kind, count) + place)
    return struct.pack("<H", len(fields)) + b"".join(entries) + b"\0\0\0\0" + behind
