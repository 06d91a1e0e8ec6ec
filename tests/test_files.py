from __future__ import annotations

import errno
import io
import os
import struct
import tarfile
import zipfile
import zlib
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from datakit import files
from datakit.files import BadFile, File, Parts, check_machine, local, read, utf8
from datakit.sample import Sample
from datakit.sources.archive import members
from datakit.sources.folder import files as listed

NOISE = bytes(np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def make_geotiff(path: Path) -> np.ndarray:
    pixels = np.arange(64 * 48, dtype=np.uint16).reshape(1, 48, 64)
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4000000)}
    with rasterio.open(path, "w", driver="GTiff", width=64, height=48, count=1, dtype="uint16", **place) as raster:
        raster.write(pixels)
    return pixels


def zipped(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> dict[str, File]:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return {file.name: file for file in members(path.parent, path.name)}


def tarred(path: Path, content: dict[str, bytes]) -> dict[str, File]:
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return {file.name: file for file in members(path.parent, path.name)}


@pytest.mark.parametrize("content", [b"", b"x", b"a" * 5_000_000, NOISE])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_reads_as_it_went_in(tmp_path: Path, content: bytes, method: int) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    found = [
        next(listed(tmp_path)),
        zipped(tmp_path / "a.zip", {"first": NOISE, "a.bin": content}, method)["a.bin"],
        tarred(tmp_path / "a.tar", {"first": NOISE, "a.bin": content})["a.bin"],
    ]
    for file in found:
        assert read(tmp_path, file) == content
        assert file.file_bytes == len(content)


def test_a_sample_reads_like_the_file_it_stands_for(tmp_path: Path) -> None:
    file = zipped(tmp_path / "a.zip", {"x/a.png": b"pixels" * 100})["x/a.png"]
    assert read(tmp_path, Sample(key="k", **asdict(file))) == b"pixels" * 100


def test_local_names_are_opened_by_rasterio(tmp_path: Path, scratch: Path) -> None:
    root = tmp_path / "a folder, with commas # and\na newline"
    root.mkdir()
    pixels = make_geotiff(root / "tile.tif")
    content = {"first": NOISE, "tile.tif": (root / "tile.tif").read_bytes()}
    found = {
        "": next(listed(root)),
        "tar": tarred(root / "t.tar", content)["tile.tif"],
        "stored": zipped(root / "s.zip", content, zipfile.ZIP_STORED)["tile.tif"],
        "deflated": zipped(root / "d.zip", content)["tile.tif"],
    }
    for packing, file in found.items():
        assert file.packing == packing
        with local(root, file, scratch) as name:
            assert name.startswith("/vsisubfile/") == (packing in ("tar", "stored"))
            assert (len(list(scratch.iterdir())) == 1) == (packing == "deflated")
            with rasterio.open(name) as raster:
                assert raster.crs.to_epsg() == 32633
                np.testing.assert_array_equal(raster.read(), pixels)
        assert not list(scratch.iterdir())


def test_local_copies_go_with_what_readers_leave_beside_them(tmp_path: Path, scratch: Path) -> None:
    file = zipped(tmp_path / "d.zip", {"a.tif": b"a" * 3_000_000})["a.tif"]
    with local(tmp_path, file, scratch) as name:
        assert Path(name).read_bytes() == b"a" * 3_000_000
        Path(name + ".aux.xml").write_text("left by a reader")
    assert not list(scratch.iterdir())


def test_an_empty_member_is_empty_in_gdal_too(tmp_path: Path) -> None:
    file = tarred(tmp_path / "a.tar", {"a.tif": b"", "b": b"b"})["a.tif"]
    with local(tmp_path, file, tmp_path) as name:
        assert Path(name).read_bytes() == b""


@pytest.mark.parametrize("packing", ["", "tar", "stored", "deflated"])
def test_undecodable_names_are_read_by_either_spelling(tmp_path: Path, scratch: Path, packing: str) -> None:
    root = tmp_path / os.fsdecode(b"100% caf\xe9")
    root.mkdir()
    pixels = make_geotiff(tmp_path / "t.tif")
    content = {"t.tif": (tmp_path / "t.tif").read_bytes()}
    if packing == "tar":
        tarred(root / "a.tar", content)
    elif packing:
        zipped(root / "a.zip", content, zipfile.ZIP_STORED if packing == "stored" else zipfile.ZIP_DEFLATED)
    else:
        (root / "t.tif").write_bytes(content["t.tif"])
    (file,) = (f for f in listed(tmp_path) if "caf" in f.name)
    assert (file.name, file.packing) == ("100%25 caf%E9/t.tif", packing)
    for path in (file.path, utf8(file.path)):
        spelled = replace(file, path=path)
        assert read(tmp_path, spelled) == content["t.tif"]
        with local(tmp_path, spelled, scratch) as name, rasterio.open(name) as raster:
            np.testing.assert_array_equal(raster.read(), pixels)
    assert not list(scratch.iterdir())


def test_colons_in_names_of_folders_and_members(tmp_path: Path) -> None:
    (tmp_path / "a::b").mkdir()
    zipped(tmp_path / "a::b" / "x::y.zip", {"m::n/o.png": b"1" * 99})
    zipped(tmp_path / "z.zip", {"x.zip::y": b"2" * 99})
    (tmp_path / "plain::name").write_bytes(b"3")
    content = {file.name: read(tmp_path, file) for file in listed(tmp_path)}
    assert content == {"a::b/m::n/o.png": b"1" * 99, "plain::name": b"3", "x.zip::y": b"2" * 99}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_in_a_zip_member_is_found(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    good = zipped(path, {"a": NOISE[:20_000]}, method)["a"]
    content = path.read_bytes()
    for at in range(good.offset + 31, good.offset + 31 + good.packed_bytes, 997):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with pytest.raises(BadFile, match=r"^zip member: (CRC does not match|damaged|larger)|^file ends early$"):
            read(tmp_path, good)


def test_crc_mismatch_is_named_without_paths(tmp_path: Path) -> None:
    good = zipped(tmp_path / "a.zip", {"a": b"a" * 1000})["a"]
    wrong = replace(good, crc=good.crc ^ 1)
    with pytest.raises(BadFile) as caught:
        read(tmp_path, wrong)
    assert str(caught.value) == "zip member: CRC does not match"
    with pytest.raises(BadFile, match="CRC"), local(tmp_path, wrong, tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_wrong_place_is_refused(tmp_path: Path) -> None:
    good = zipped(tmp_path / "a.zip", {"a": b"a" * 1000})["a"]
    for offset, packing in ((1, "deflated"), (0, "stored")):
        with pytest.raises(BadFile, match="not where"):
            read(tmp_path, replace(good, offset=offset, packing=packing))
    with pytest.raises(BadFile, match="ends early"):
        read(tmp_path, replace(good, offset=10**15))
    with pytest.raises(BadFile, match="ends early"):
        read(tmp_path, replace(good, packed_bytes=2**62))


def test_zip_bombs_are_not_inflated_beyond_what_they_claim(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "a.zip", {"a": bytes(200_000_000)})["a"]
    packed = (tmp_path / "a.zip").read_bytes()[bomb.offset + 31 :]
    assert sum(map(len, files._inflated([packed], 1001))) == 1001
    with pytest.raises(BadFile, match="larger than the archive says"):
        read(tmp_path, replace(bomb, file_bytes=1000))


@given(st.binary(max_size=5000), st.integers(1, 64), st.integers(0, 6000), st.integers(1, 500))
def test_inflating_in_pieces_gives_the_first_bytes(content: bytes, repeats: int, most: int, piece_bytes: int) -> None:
    content *= repeats
    deflater = zlib.compressobj(wbits=-15)
    packed = deflater.compress(content) + deflater.flush()
    pieces = [packed[at : at + piece_bytes] for at in range(0, len(packed), piece_bytes)]
    assert b"".join(files._inflated(pieces, most)) == content[:most]


WHY = {
    "encrypted": "encrypted",
    "method 97": "compressed by method 97",
    "unsafe": "a link, a device, or a name that leads out of the collection",
    "truncated": "the archive is cut or damaged here",
}


@pytest.mark.parametrize("packing", WHY)
def test_what_cannot_be_read_says_why(tmp_path: Path, packing: str) -> None:
    file = File("a", "a.zip::a", 5, "", 0, 5, packing, -1)
    with pytest.raises(BadFile) as caught:
        read(tmp_path, file)
    assert str(caught.value) == WHY[packing]
    with pytest.raises(BadFile), local(tmp_path, file, tmp_path):
        pass


def test_what_shrank_or_went_away_is_an_os_error(tmp_path: Path) -> None:
    file = tarred(tmp_path / "a.tar", {"a": NOISE})["a"]
    os.truncate(tmp_path / "a.tar", 2_000_000)
    with pytest.raises(BadFile, match="ends early"):
        read(tmp_path, file)
    (tmp_path / "a.tar").unlink()
    for gone in (file, File("b", "b", 1, "", -1, 1, "", -1)):
        with pytest.raises(FileNotFoundError):
            read(tmp_path, gone)


@pytest.mark.parametrize("hurt", ["a", "a b c", "a b", "b"])
def test_an_error_of_the_disk_is_of_a_file_whose_neighbours_are_well(tmp_path: Path, hurt: str) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(NOISE)
    file = File("a", "a", len(NOISE), "", -1, len(NOISE), "", -1)
    for name in hurt.split():
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/proc/self/mem")  # nothing is at its beginning: an input/output error
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    if "a" in hurt:
        with pytest.raises(OSError, match="Input/output error") as caught:
            read(tmp_path, file)
        error = caught.value
    if hurt == "a":
        check_machine(error, tmp_path, file)
    else:  # all of the disk, or only for a moment
        with pytest.raises(OSError, match="Input/output error"):
            check_machine(error, tmp_path, file)


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=6), st.integers(0, 60), st.integers(0, 60))
def test_parts_read_like_one_file(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], at: int, n: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / str(number) for number in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    with closing(Parts(paths)) as parts:
        assert parts.bytes == len(b"".join(pieces))
        assert parts.pread(n, at) == b"".join(pieces)[at : at + n]


def test_the_local_header_has_lengths_of_its_own(tmp_path: Path) -> None:
    """Some writers pad local headers with an extra field that the central directory does not have."""
    path, pad = tmp_path / "a.zip", struct.pack("<2H40x", 0xD935, 40)
    zipped(path, {"a": b"payload"}, zipfile.ZIP_STORED)
    plain = path.read_bytes()
    end = plain.index(b"PK\5\6") + 16
    offset = int.from_bytes(plain[end : end + 4], "little") + len(pad)
    header = plain[:28] + struct.pack("<H", len(pad)) + b"a" + pad
    path.write_bytes(header + plain[31:end] + struct.pack("<I", offset) + plain[end + 4 :])
    (file,) = members(tmp_path, "a.zip")
    assert read(tmp_path, file) == b"payload"
    with local(tmp_path, file, tmp_path) as name:
        assert name.startswith(f"/vsisubfile/{31 + len(pad)}_7,")
