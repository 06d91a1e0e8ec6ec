from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import write_split

from datakit.errors import SourceError
from datakit.files import read
from datakit.sources.archive import members

CONTENT = {f"images/{n}.png": np.random.default_rng(n).bytes(n * 700) for n in range(12)}


def content_of(root: Path, path: str) -> dict[str, bytes]:
    return {file.name: read(root, file) for file in members(root, path)}


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("disk_bytes", [150, 333, 1000, 5000, 10**6])
def test_split_zips_read_as_one(tmp_path: Path, disk_bytes: int, zip64: bool) -> None:
    parts = write_split(tmp_path / "a.zip", CONTENT, disk_bytes, zip64)
    assert content_of(tmp_path, "a.zip") == CONTENT
    assert next(members(tmp_path, "a.zip")).stamp == ",".join(str(part.stat().st_mtime_ns) for part in parts)


@pytest.mark.parametrize("zip64", [False, True])
def test_a_missing_part_is_named(tmp_path: Path, zip64: bool) -> None:
    parts = write_split(tmp_path / "a.zip", CONTENT, 5000, zip64)
    listed = list(members(tmp_path, "a.zip"))
    for part in parts:
        content = part.read_bytes()
        part.unlink()
        with pytest.raises(SourceError, match=f"{part.name}.* missing"):
            list(members(tmp_path, "a.zip"))
        with pytest.raises((SourceError, OSError)):  # noqa: PT012
            for file in listed:
                read(tmp_path, file)
        part.write_bytes(content)
    (tmp_path / f"a.z{len(parts):02d}").write_bytes(b"of another archive")
    with pytest.raises(SourceError, match=rf"a.z{len(parts):02d} is not one of the {len(parts)} parts of a.zip"):
        list(members(tmp_path, "a.zip"))


@pytest.mark.parametrize("part_bytes", [1000, 7777, 10**6])
def test_raw_split_zips_read_as_one(tmp_path: Path, part_bytes: int) -> None:
    whole = plain_zip(tmp_path / "whole.zip").read_bytes()
    parts = [tmp_path / f"a.zip.{n + 1:03d}" for n in range(-(-len(whole) // part_bytes))]
    for n, part in enumerate(parts):
        part.write_bytes(whole[n * part_bytes : (n + 1) * part_bytes])
    assert content_of(tmp_path, "a.zip.001") == CONTENT
    parts[-1].unlink()
    with pytest.raises(SourceError, match=parts[-1].name if parts[1:] else "No such file"):
        list(members(tmp_path, "a.zip.001"))


@pytest.mark.soak
@pytest.mark.skipif(not shutil.which("zip"), reason="the zip command is not installed")
@pytest.mark.parametrize("suffix", ["zip", "ZIP"])
def test_archives_of_the_zip_command(tmp_path: Path, suffix: str) -> None:
    content = {"häuser/ü ß.png": os.urandom(150_000), "b\\c.png": b"b" * 50_000, "d.png": b""}
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link.png").symlink_to("d.png")
    for extra in ([], ["-fz"], ["-s", "64k"], ["-s", "64k", "-0"]):
        out = f"out{''.join(extra)}.{suffix}"
        subprocess.run(["zip", "-qry", *extra, out, *content, "link.png"], cwd=tmp_path, check=True)
        listed = list(members(tmp_path, out))
        assert {f.name: read(tmp_path, f) for f in listed if f.name != "link.png"} == content
        assert [f.packing for f in listed if f.name == "link.png"] == ["unsafe"]


def plain_zip(path: Path, comment: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in CONTENT.items():
            archive.writestr(name, data)
        archive.mkdir("images/empty")
        archive.comment = comment
    return path


class Pipe(io.BytesIO):
    """A file that cannot be sought, so that sizes come after the content, in data descriptors (4.3.9)."""

    def tell(self) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("seekable", [False, True])
def test_zips_of_zipfile(tmp_path: Path, zip64: bool, seekable: bool) -> None:
    stream = io.BytesIO() if seekable else Pipe()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in CONTENT.items():
            with archive.open(name, "w", force_zip64=zip64) as member:
                member.write(data)
    (tmp_path / "a.zip").write_bytes(stream.getvalue())
    assert content_of(tmp_path, "a.zip") == CONTENT
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        known = [(i.file_size, i.compress_size, i.header_offset, i.CRC) for i in archive.infolist()]
    assert [(f.file_bytes, f.packed_bytes, f.offset, f.crc) for f in members(tmp_path, "a.zip")] == known


@pytest.mark.parametrize("comment", [b"", b"a comment", b"PK\5\6" * 9, b"x" * 65535])
@pytest.mark.parametrize("before", [b"", b"MZ, a program that unpacks itself"])
def test_comments_and_programs_around_a_zip(tmp_path: Path, comment: bytes, before: bytes) -> None:
    path = plain_zip(tmp_path / "a.zip", comment)
    path.write_bytes(before + path.read_bytes())
    assert content_of(tmp_path, "a.zip") == CONTENT


def test_a_cut_zip_is_named(tmp_path: Path) -> None:
    inner = plain_zip(tmp_path / "inner.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("first.png", b"first")
        archive.writestr("inner.zip", inner)
    whole = (tmp_path / "a.zip").read_bytes()
    inner_end = whole.index(inner) + len(inner)
    for length in [*range(0, len(whole), 997), *range(inner_end - 30, len(whole))]:
        (tmp_path / "a.zip").write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"a.zip: .* damaged or still downloading"):
            list(members(tmp_path, "a.zip"))


def test_a_long_list_of_members_does_not_fill_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for n in range(30_000):
            archive.writestr(f"{n:0100d}", b"")
    tracemalloc.start()
    try:
        assert sum(1 for _ in members(tmp_path, "a.zip")) == 30_000
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


def tar_of(path: Path, infos: list[tarfile.TarInfo], form: int = tarfile.GNU_FORMAT) -> bytes:
    with tarfile.open(path, "w", format=form) as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path.read_bytes()


def tar_info(name: str, size_bytes: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_tar_gives_what_is_whole_and_one_that_is_cut(tmp_path: Path, form: int) -> None:
    long = "" if form == tarfile.USTAR_FORMAT else "ä" * 300
    content = tar_of(tmp_path / "a.tar", [tar_info(f"{n}{long}", n * 300) for n in range(6)], form)
    whole = list(members(tmp_path, "a.tar"))
    assert [(f.name, f.file_bytes, f.packing) for f in whole] == [(f"{n}{long}", n * 300, "tar") for n in range(6)]
    end = -(-(whole[-1].offset + 1500) // 512) * 512 + 512  # after the first block of zeros
    for length in range(0, len(content), 31):
        (tmp_path / "a.tar").write_bytes(content[:length])
        found = [replace(file, stamp="") for file in members(tmp_path, "a.tar")]
        kept = [replace(f, stamp="") for f in whole if f.offset + f.file_bytes <= length]
        assert found[: len(kept)] == kept
        assert [f.packing for f in found[len(kept) :]] == ["truncated"] * (length < end)


def test_a_damaged_tar_header_is_seen(tmp_path: Path) -> None:
    content = bytearray(tar_of(tmp_path / "a.tar", [tar_info(str(n), 100) for n in range(3)]))
    content[1024 + 124] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    assert [(f.name, f.packing) for f in members(tmp_path, "a.tar")] == [("0", "tar"), ("a.tar", "truncated")]
    content[124] ^= 1
    content[257:262] = b"other"
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(SourceError, match="not a tar"):
        list(members(tmp_path, "a.tar"))


def test_a_tar_that_leads_back_ends(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_info("a", -1024).tobuf(tarfile.GNU_FORMAT) * 3)  # CVE-2025-8194
    assert [f.packing for f in members(tmp_path, "a.tar")] == ["truncated"]
