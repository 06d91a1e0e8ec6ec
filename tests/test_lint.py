"""Tars of others: each thing that a reader may take otherwise is told, all of it, and a build's tars are clean."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from tars import write_tar
from worlds import make_world, recipe_of

import datakit
from datakit.cli import main
from datakit.errors import SourceError
from datakit.lint import lint

Members = list[tuple[str, bytes]]


def sample(key: str, suffix: str = "jpg", **more: object) -> Members:
    about = {"n": 1, "label": "a", "gsd_m": 0.5, **more}
    return [(f"{key}.{suffix}", b"picture"), (f"{key}.json", json.dumps(about).encode())]


def told(folder: Path, *tars: Members) -> list[str]:
    """What is found in tars of these members."""
    for n, members in enumerate(tars):
        write_tar(folder / f"{n}.tar", members, tarfile.PAX_FORMAT)
    return [finding.what for finding in lint([folder]).findings]


GOOD = sample("a") + sample("b") + sample("c")


def test_tars_that_all_readers_agree_on_are_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        told(tmp_path, GOOD, [(f"d/e.{suffix}", data) for suffix, data in (("jpg", b"x"), ("json", GOOD[1][1]))]) == []
    )
    assert main(["lint", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"tars": 2, "samples": 4, "findings": 0}


def test_what_a_build_leaves_is_clean(tmp_path: Path) -> None:
    make_world(tmp_path / "data")
    recipe = recipe_of("classes", "scenes", shards={"max_samples": 8})
    manifest = datakit.build(recipe, data=tmp_path / "data", out=tmp_path / "out", workers=0)
    found = lint([tmp_path / "out"])
    assert (found.findings, found.samples, found.tars) == ([], manifest.samples, len(manifest.shards))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            GOOD + sample("img.v2"),
            "a dot in a key: readers take what follows the first one for the suffix, as img.v2.jpg",
        ),
        ([GOOD[0], GOOD[2], GOOD[1], GOOD[3], *GOOD[4:]], "members of one sample do not follow one another, as a"),
        (GOOD + sample("a"), "two samples of one key, as a"),
        ([*GOOD, ("c.jpg", b"x")], "a member twice in one sample, as c.jpg"),
        ([*GOOD, ("d.jpg", b"x")], "samples without json, as d"),
        ([*GOOD, ("c.txt", b"x")], "only some samples have txt, as c"),
        (GOOD + sample("k" * 120), f"a name of more than 100 bytes, as {'k' * 120}.jpg"),
        (GOOD + sample("d", "JPG"), "a suffix with capitals: some readers take it for another, as d.JPG"),
        (GOOD + sample("../d"), "a name that leads out of the folder it is unpacked to, as ../d.jpg"),
        ([*GOOD, ("README", b"x")], "a name without key and suffix: readers leave it out, as README"),
        (GOOD + sample("d")[1:] + [("d.jpg", b"")], "an empty file, as d.jpg"),
        (GOOD + sample("d", label=None), "label is null: types are guessed from the first samples, as d.json"),
        (GOOD + sample("d", late=1), "late is in some JSONs and not in others: readers drop it, or fail, as d"),
        (GOOD + sample("d", gsd_m=1), "gsd_m is int here and float elsewhere, as d"),
        ([*GOOD, ("d.jpg", b"x"), ("d.json", b"{")], "it is no JSON, as d.json"),
    ],
)
def test_each_thing_is_told(tmp_path: Path, members: Members, words: str) -> None:
    found = told(tmp_path, members)
    assert any(what.endswith(words) for what in found), found


def test_it_goes_on_after_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several tars, several things in each, and tars that cannot be read between them."""
    write_tar(tmp_path / "0.tar", [*GOOD, *sample("a"), ("d.jpg", b"x")])
    write_tar(tmp_path / "1.tar", GOOD)
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(whole[: 512 * 4 + 100])
    (tmp_path / "3.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "4.tar").write_bytes(whole[: 512 * 12])
    with tarfile.open(tmp_path / "5.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with tarfile.open(tmp_path / "6.tar", "w") as tar:
        link = tarfile.TarInfo("x.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert main(["lint", str(tmp_path)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    by_tar = {n: "\n".join(line for line in lines if f"{n}.tar: " in line) for n in range(7)}
    assert "two samples of one key" in by_tar[0]
    assert "samples without json" in by_tar[0]
    assert "3 times: a key that" in by_tar[1]
    assert "cut short" in by_tar[2]
    assert "cannot be read" in by_tar[3]
    assert "two blocks of zeros do not end it" in by_tar[4]
    assert "compressed (gzip)" in by_tar[5]
    assert "neither a file nor a folder" in by_tar[6]
    assert json.loads(last)["findings"] == sum(not line.startswith("    ") for line in lines)


def test_splits_are_sets_of_their_own(tmp_path: Path) -> None:
    """Tars whose names differ in more than their number, as those of ImageNet-S with masks and without."""
    for name in ("x-train-000000.tar", "x-train-semi-000000.tar"):
        masks = [("a.seg.png", b"x")] if "semi" in name else []
        write_tar(tmp_path / name, [*sample("a"), *masks])
    assert lint([tmp_path]).findings == []


def test_no_tars_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no tar there"):
        lint([tmp_path])
