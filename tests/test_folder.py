from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from datakit.errors import SourceError
from datakit.files import home, on_disk, read
from datakit.sources.folder import files

NAMES = [
    ".DS_Store",
    "Thumbs.db",
    "__MACOSX/._a.png",
    "a b/c, d.png",
    "a-b.png",
    "a/b.c/d.tar.png",
    "a/b.png",
    "a.png",
    "dir.zip/x.png",
    "empty.png",
    "line\nbreak.png",
    "x.zip\n",
    "ä/日本/𝄞.png",
    "100%.png",
]


def content_of(root: Path) -> dict[str, bytes]:
    return {file.name: read(home(root), file) for file in files(root)}


def fill(folder: Path) -> dict[str, bytes]:
    content = {name: b"" if name == "empty.png" else name.encode() * 99 for name in NAMES}
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "no files").mkdir()
    return content


def test_everything_is_listed_in_the_order_of_its_name(tmp_path: Path) -> None:
    content = fill(tmp_path)
    assert [file.name for file in files(tmp_path)] == sorted(content)
    assert content_of(tmp_path) == content
    for file in files(tmp_path):
        assert (file.path, file.packing, file.offset, file.crc) == (file.name, "", -1, -1)
        assert file.stamp == str((tmp_path / file.path).stat().st_mtime_ns)


def test_folder_zip_and_tar_of_the_same_files_have_the_same_names(tmp_path: Path) -> None:
    roots = {kind: tmp_path / kind for kind in ("folder", "zip", "tar", "dotted")}
    for root in roots.values():
        (root / "train").mkdir(parents=True)
    content = {f"train/{name}": data for name, data in fill(roots["folder"] / "train").items()}
    with zipfile.ZipFile(roots["zip"] / "train" / "part.1.zip", "w") as archive:
        for path in sorted((roots["folder"] / "train").rglob("*")):
            archive.write(path, path.relative_to(roots["folder"] / "train"))
    for kind, prefix in (("tar", ""), ("dotted", "./")):
        with tarfile.open(roots[kind] / "train" / "part.1.TAR", "w") as archive:
            archive.add(roots["folder"] / "train", prefix)
    assert {kind: content_of(root) for kind, root in roots.items()} == dict.fromkeys(roots, content)
    assert {file.path.partition("::")[0] for file in files(roots["dotted"])} == {"train/part.1.TAR"}


def test_an_archive_can_be_the_collection(tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(b"other")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("images/a.png", b"a")
    assert [(file.name, file.path) for file in files(tmp_path / "set.zip")] == [
        ("images/a.png", "set.zip::images/a.png")
    ]
    assert content_of(tmp_path / "set.zip") == {"images/a.png": b"a"}


def test_archives_stand_where_their_name_stands(tmp_path: Path) -> None:
    for name in ("b.zip", "a/z.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in ("z.png", "a.png", "inner.zip"):
                archive.writestr(member, name)
    (tmp_path / "c.png").write_bytes(b"")
    expected = ["a/z.png", "a/a.png", "a/inner.zip", "z.png", "a.png", "inner.zip", "c.png"]
    assert [file.name for file in files(tmp_path)] == expected


def test_undecodable_names(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH102
    (tmp_path / os.fsdecode(b"caf\xe9/50%\xff.png")).write_bytes(b"pixels")
    (file,) = files(tmp_path)
    assert file.name == "caf%E9/50%25%FF.png"
    assert (tmp_path / file.path).read_bytes() == read(tmp_path, file) == b"pixels"
    assert on_disk(tmp_path, file.name) == tmp_path / file.path


def test_links(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "a.png").write_bytes(b"a")
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "up").symlink_to("..")
    (root / "sub" / "out").symlink_to(outside)
    (root / "again").symlink_to(outside / "deep")
    (outside / "deep" / "around").symlink_to(tmp_path)
    (root / "a.png").symlink_to(outside / "deep" / "a.png")
    (root / "gone.zip").symlink_to("nowhere")
    (root / "self").symlink_to("self")
    listed = {file.name: file.packing for file in files(root)}
    inside = {name: packing for name, packing in listed.items() if "/around/" not in name}
    assert inside == {
        "a.png": "",
        "again/a.png": "",
        "gone.zip": "broken_link",
        "self": "broken_link",
        "sub/out/deep/a.png": "",
    }
    assert len(listed) < 20
    (tmp_path / "link").symlink_to(root)
    assert {file.name for file in files(tmp_path / "link")} == set(listed)


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.tar")
    assert [(file.name, file.packing) for file in files(tmp_path)] == [("a.png", "unsafe"), ("a.tar", "unsafe")]


UNSAFE = ["/abs.png", "../up.png", "a/../../up.png", "..", "a/..", "\\abs.png", "..\\up.png", "a\\..\\b", "C:\\a.png"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_lead_out_are_named_and_never_read(tmp_path: Path, kind: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped, tarfile.open(tmp_path / "a.tar", "w") as tarred:
        for name in [*UNSAFE, "good..png"]:
            zipped.writestr(name, b"x")
            info = tarfile.TarInfo(name)
            info.size = 1
            tarred.addfile(info, io.BytesIO(b"x"))
    *bad, good = files(tmp_path / f"a.{kind}")
    assert (good.name, good.packing) == ("good..png", kind if kind == "tar" else "stored")
    assert [(file.name, file.packing) for file in bad] == [(f"a.{kind}::{name}", "unsafe") for name in UNSAFE]
    for file in bad:
        with pytest.raises(OSError, match="leads out"):
            read(tmp_path, file)


def test_links_and_devices_in_archives_are_named_and_never_followed(tmp_path: Path) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    with tarfile.open(tmp_path / "a.tar", "w") as tarred:
        for kind in [*kinds, tarfile.DIRTYPE]:
            info = tarfile.TarInfo(f"{kind!r}")
            info.type, info.linkname = kind, "../elsewhere"
            tarred.addfile(info)
    assert [(f.name, f.packing) for f in files(tmp_path / "a.tar")] == [(f"{kind!r}", "unsafe") for kind in kinds]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "../elsewhere")
    assert [(f.name, f.packing) for f in files(tmp_path / "a.zip")] == [("link.png", "unsafe")]


def write_zip_named(path: Path, name: bytes, system: int, extra: bytes = b"") -> None:
    entry = (20, 0, 0, 0, 33, 0, 0, 0, len(name), len(extra))
    local = struct.pack("<4s5H3I2H", b"PK\3\4", *entry) + name + extra
    central = struct.pack("<4s2B5H3I5H2I", b"PK\1\2", 20, system, *entry, 0, 0, 0, 0, 0) + name + extra
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)


def test_names_in_zips_are_spelled_as_unpacking_spells_them(tmp_path: Path) -> None:
    spelled = struct.pack("<2HBI", 0x7075, 5 + 7, 1, zlib.crc32(b"#U65e5.png")) + "日.png".encode()
    cases = [
        (b"\x81.png", 0, b"", "ü.png"),  # cp437, as the format has it
        ("ü.png".encode(), 3, b"", "ü.png"),  # Unix and macOS: UTF-8 without the flag
        ("ü.png".encode(), 19, b"", "ü.png"),
        (b"\x81.png", 3, b"", "ü.png"),
        (b"#U65e5.png", 3, spelled, "日.png"),  # Info-ZIP
        (b"a\\b.png", 0, b"", "a/b.png"),  # .NET before 4.6.1
        (b"a\\b.png", 3, b"", "a\\b.png"),
    ]
    for name, system, extra, expected in cases:
        write_zip_named(tmp_path / "a.zip", name, system, extra)
        assert [(file.name, read(tmp_path, file)) for file in files(tmp_path)] == [(expected, b"")]


@pytest.mark.parametrize(("at", "value", "packing"), [(8, 1, "encrypted"), (10, 9, "deflate64"), (10, 97, "method 97")])
def test_what_zip_members_cannot_be_read(tmp_path: Path, at: int, value: int, packing: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"pixels")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"PK\1\2") + at] = value
    (tmp_path / "a.zip").write_bytes(content)
    (file,) = files(tmp_path)
    assert file.packing == packing
    with pytest.raises(OSError, match=packing):
        read(tmp_path, file)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.xz", "a.tar.zst", "a b.rar", "a.7z", "a.7z.001"])
def test_closed_archives_name_the_command(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=r"Run `(tar -xf|unrar x|7z x) .* then move it away"):
        list(files(tmp_path))


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (["a.z01"], "a.zip: missing"),
        (["a.zip.002"], "a.zip.001: missing"),
        (["a.zip.001", "a.zip.003"], "a.zip.002: missing"),
    ],
)
def test_parts_of_a_split_zip_without_the_others(tmp_path: Path, there: list[str], missing: str) -> None:
    for name in there:
        (tmp_path / name).write_bytes(b"part")
    with pytest.raises(SourceError, match=missing):
        list(files(tmp_path))


def test_a_root_that_is_not_there_or_no_collection(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere: No such file or directory\. Fetch"):
        list(files(tmp_path / "nowhere"))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"a\.png: neither a folder nor an archive"):
        list(files(tmp_path / "a.png"))


def test_a_folder_that_may_not_be_read_is_named() -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "closed").mkdir(mode=0)
        before = os.geteuid()
        try:
            if before == 0:
                os.seteuid(65534)  # nobody: root may read everything
            with pytest.raises(SourceError, match="closed: Permission denied"):
                list(files(root))
        finally:
            os.seteuid(before)
