"""The page of a build: every answer is that of its tables and tars, asked over HTTP and looked at in a browser."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from browser import Page
from PIL import Image
from rasterio.transform import from_origin
from test_dedup import put
from worlds import digests, geotiff, recipe_of, scene

import datakit
from datakit import kinds
from datakit.browse import columns as browse_columns
from datakit.browse.server import Server, serve
from datakit.cli import main
from datakit.image import preview
from datakit.recipe import Recipe
from datakit.sources import synth, synth_raw
from datakit.stream.source import opened
from datakit.views import NAMED, Camera

FIJI = {"crs": "EPSG:4326", "transform": from_origin(179.99, -16.0, 0.0001, 0.0001)}  # 179.99 E to 179.99 W
EVIL = '<img src=x onerror="window.hacked=1">'
EVIL_TITLE = "<script>window.hacked=1</script> & co"
STAGES: dict[str, Any] = {
    "exclude": {"rules": [{"rule": "smaller_than", "side_px": 64}, {"rule": "flat", "entropy_bits": 0.5}]},
    "slice": {"grid": {"size_px": 128}},
    "dedup": {"orientations": True},
    "title": EVIL_TITLE,
}
Any64 = np.ndarray[Any, Any]


def make(folder: Path) -> Path:
    """Tiles with a place (one over the date line) and without, duplicates, turned ones, flat and broken images."""
    for n, kind in enumerate(("houses", "river", EVIL)):
        put(folder / "air" / kind / f"{n}.png", scene(400 + n, 300, 260))
    put(folder / "air" / "houses" / "again.png", scene(400, 300, 260)[:, ::-1].copy())
    put(folder / "air" / "houses" / "flat.png", Image.new("RGB", (140, 130), (90, 120, 60)))
    put(folder / "air" / "houses" / "thin.png", scene(410, 300, 40))
    for turns in range(4):
        put(folder / "air" / "river" / f"turn{turns}.png", np.rot90(scene(411, 120, 100), turns).copy())
    (folder / "air" / "houses" / "text.jpg").write_text("<html>404</html>")
    geotiff(folder / "map" / "utm.tif", scene(404, 300, 200))
    geotiff(folder / "map" / "fiji.tif", scene(405, 200, 160), **FIJI)
    datakit.build(recipe_of("air", "map", **STAGES), data=folder, out=folder / "out", workers=0)
    return folder / "out"


class Asked:
    """A server that runs, and what asks it."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def get(self, path: str, host: str | None = None, url: str | None = None) -> tuple[int, bytes, Any]:
        request = urllib.request.Request((url or self.server.url) + path, headers={"Host": host} if host else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read(), reply.headers
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read(), exc.headers

    def ask(self, path: str) -> Any:
        status, data, _ = self.get(path)
        assert status == 200, (path, data)
        return json.loads(data)

    def rows(self, question: str = "") -> list[dict[str, Any]]:
        """All that match, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            said = self.ask(f"rows?{question}&count=7&offset={len(found)}".replace("?&", "?"))
            found += said["rows"]
            if not said["rows"]:
                assert len(found) == said["total"]
                return found


@contextmanager
def serving(out: Path) -> Iterator[Asked]:
    said: list[str] = []
    server = serve(out, 0, said.append)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Asked(server)
    finally:
        server.shutdown()
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("browse"))


@pytest.fixture
def asked(out: Path) -> Iterator[Asked]:
    with serving(out) as found:
        yield found


def table_of(out: Path) -> pd.DataFrame:
    """All records as plain pandas, in the order of the page."""
    kept, lost = (pq.read_table(out / f"{name}.parquet").to_pandas() for name in ("samples", "dropped"))
    splits = opened(out).table.column("split").to_pandas()
    kept = kept.assign(reason="kept", split=splits)
    return pd.concat([kept, lost.assign(reason=lost["dropped"])], ignore_index=True)


def expected(table: pd.DataFrame, question: str) -> list[int]:
    """The rows that pandas finds."""
    mask = pd.Series(True, table.index)
    chosen: dict[str, list[str]] = {}
    for part in filter(None, question.split("&")):
        name, _, value = part.partition("=")
        if ".." in value:
            low, _, high = value.partition("..")
            numbers = table[name].astype(float)
            mask &= numbers.notna()
            mask &= numbers >= float(low) if low else True
            mask &= numbers <= float(high) if high else True
        else:
            chosen.setdefault(name, []).append(value)
    for name, values in chosen.items():
        mask &= table[name].isin(values)
    found: list[int] = table.index[mask].tolist()
    return found


def test_filters_find_what_pandas_finds(out: Path, asked: Asked) -> None:
    table = table_of(out)
    middle = float(table["entropy_bits"].median())  # a value that some record has: both ends are included
    questions = ["", "source=air", "source=air&source=map", "reason=kept", "split=train", "label=houses", "label="]
    questions += [f"reason={why}" for why in table["reason"].unique()]
    questions += [f"entropy_bits={middle!r}..", f"entropy_bits=..{middle!r}", "psnr_db=0..", "gsd_m=0.4..0.6"]
    questions += [f"source=air&reason=kept&entropy_bits={middle!r}..7.5&sharpness=10..&luma_mean=..200"]
    questions += ["reason=flat&reason=unreadable&source=air", "distance_bits=0..2", "width=..127", "valid_share=2.."]
    assert {"kept", "flat", "unreadable", "smaller_than", "duplicate_scene"} <= {*table["reason"]}
    sizes = set()
    for question in questions:
        found = asked.rows(question)
        assert [one["row"] for one in found] == expected(table, question), question
        for one in found:
            row = table.loc[one["row"]]
            assert (one["key"], one["source"], one["split"], one["reason"]) == (
                *row[["key", "source", "split"]],
                row.reason,
            )
        sizes.add(len(found))
    assert len(sizes) > 6


def test_what_is_told_of_columns_is_counted(out: Path, asked: Asked) -> None:
    table, about = table_of(out), asked.ask("about")
    while (said := asked.ask("columns"))["missing"]:
        time.sleep(0.05)
    assert (about["kept"], about["dropped"]) == ((table["reason"] == "kept").sum(), (table["reason"] != "kept").sum())
    for name in about["facets"]:
        assert dict(said["columns"][name]["values"]) == table[name].fillna("").value_counts().to_dict()
    for name in about["measures"]:
        told, numbers = said["columns"][name], table[name].astype(float).dropna()
        assert told["known"] == len(numbers)
        if len(numbers):
            assert (told["low"], told["high"], sum(told["counts"])) == (numbers.min(), numbers.max(), len(numbers))


def test_a_record_is_told_whole(out: Path, asked: Asked) -> None:
    table, tars = table_of(out), opened(out)
    for row in table.index:
        said = asked.ask(f"record/{row}")
        file, n = ("samples", row) if row < len(tars) else ("dropped", row - len(tars))
        true = pq.read_table(out / f"{file}.parquet").slice(n, 1).to_pylist()[0]
        assert {*said["record"]} == {*true} - {"thumbnail", "scene_thumbnail"}
        assert int(said["record"]["id"]) == true["id"]
        assert [*map(int, said["record"]["signatures"] or [])] == [*(true["signatures"] or [])]
        for name in ("name", "label", "window", "entropy_bits", "licences", "footprint", "boxes"):
            assert said["record"][name] == true[name]
        assert asked.ask(f"find?key={said['key']}") == {"row": row}
        if row < len(tars):
            assert said["json"] == json.loads(tars.read(row, "json"))
            assert {m["name"]: m["bytes"] for m in said["members"]} == {
                name: len(tars.read(row, name)) for name in ("jpg", "json")
            }
    for row in asked.rows("reason=duplicate_scene"):
        said = asked.ask(f"record/{row['row']}")
        assert said["record"]["lost_to"]
        kept = {one["key"]: one["row"] for one in asked.rows("reason=kept")}
        assert said["lost_to"] == kept.get(said["record"]["lost_to"])
    assert asked.ask(f"record/{table.index[table['name'] == 'river/turn1.png'][0]}")["lost_to"] is not None


def test_images(out: Path, asked: Asked) -> None:
    """Kept ones byte for byte; of others what the build left, else their thumbnail; else nothing."""
    table, tars = table_of(out), opened(out)
    pictures = {(p["key"], p["dropped"]): p["jpeg"] for p in pq.read_table(out / "pictures.parquet").to_pylist()}
    kinds_seen = set()
    for one in asked.rows():
        status, data, headers = asked.get(f"image/{one['row']}")
        kinds_seen.add(one["image"])
        if one["image"] == "tile":
            assert data == tars.read(one["row"], "jpg")
            assert headers["Content-Type"] == "image/jpeg"
        elif one["image"] == "picture":
            assert data == pictures[one["key"], one["reason"]]
        elif one["image"] == "thumbnail":
            pixels = np.asarray(Image.open(io.BytesIO(data)))
            assert pixels.tobytes() == table["thumbnail"][one["row"]]
        else:
            assert status == 404
            assert b"no image" in data
    assert kinds_seen >= {"tile", "picture", ""}
    assert asked.get("image/0?member=json")[0] == 404  # no member but images


def test_thumbnails_stand_in_for_pictures(out: Path, tmp_path: Path) -> None:
    """Of most that are left out there is no picture."""
    copy = tmp_path / "out"
    copy.mkdir()
    for path in out.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "pictures.parquet").unlink()
    pictures = pq.read_table(out / "pictures.parquet")
    pq.write_table(pictures.slice(0, 0), copy / "pictures.parquet")
    with serving(copy) as asked:
        flat = asked.rows("reason=flat")
        assert [one["image"] for one in flat] == ["thumbnail"] * len(flat)
        pixels = np.asarray(Image.open(io.BytesIO(asked.get(f"image/{flat[0]['row']}")[1])))
        assert (pixels == (90, 120, 60)).all()
        assert [one["image"] for one in asked.rows("reason=unreadable")] == [""]


def test_neighbours_are_the_nearest(out: Path, asked: Asked) -> None:
    """As numpy finds them that compares all with all in each of 8 orientations."""
    table = table_of(out)
    measured = {n: np.array(s, np.uint64) for n, s in table["signatures"].items() if s is not None and len(s)}
    first = np.array([measured[n][0] for n in measured])
    turned = set()
    for row, mine in measured.items():
        apart = np.bitwise_count(mine[:, None] ^ first[None]).min(axis=0)
        wanted = sorted((int(bits), n) for bits, n in zip(apart, measured, strict=True) if n != row)
        for count in (3, 500):
            said = asked.ask(f"neighbours/{row}?count={count}")
            assert [(one["bits"], one["row"]) for one in said["rows"]] == wanted[:count]
        turned |= {one["turned"] for one in said["rows"] if one["bits"] == 0}
    assert "left-right" in turned  # the copy that is mirrored
    lost = table[table["reason"].str.startswith("duplicate") & table["lost_to"].isin(table["key"])]
    assert {"turned 90", "turned 270", "turned 180"} <= {*lost["turned"]}
    for row in lost.index:
        near = {one["key"]: (one["bits"], one["turned"]) for one in asked.ask(f"neighbours/{row}")["rows"]}
        bits, how = near[lost["lost_to"][row]]
        assert (bits <= 4, how) == (True, lost["turned"][row])  # as `dedup` told it
    status, data, _ = asked.get(f"neighbours/{asked.rows('reason=unreadable')[0]['row']}")
    assert (status, b"no signature" in data) == (404, True)


def test_the_map_counts_footprints(out: Path, asked: Asked) -> None:
    table = table_of(out)
    middles = []
    for corners in table["footprint"]:
        if corners is not None and len(corners) == 8:
            lon = np.unwrap(np.array(corners[0::2]), period=360).mean()
            middles.append(((lon + 180) % 360 - 180, np.mean(corners[1::2])))
    assert any(lon > 179.9 for lon, _ in middles)
    assert any(lon < -179.9 for lon, _ in middles)
    said = asked.ask("density")
    wanted: dict[tuple[int, int], int] = {}
    for lon, lat in middles:
        cell = (int((lon + 180) // 2), int((90 - lat) // 2))
        wanted[cell] = wanted.get(cell, 0) + 1
    assert {(x, y): n for x, y, n in said["cells"]} == wanted
    assert sum(n for *_, n in asked.ask("density?source=air")["cells"]) == 0
    over = asked.ask("density?box=179.5,-17,-179.5,-15")  # over the date line
    assert sum(n for *_, n in over["cells"]) == sum(abs(lon) > 179.5 for lon, _ in middles)
    polygons = [asked.ask(f"record/{one['row']}")["polygon"] for one in asked.rows("source=map&reason=kept")]
    assert {p["type"] for p in polygons} == {"Polygon", "MultiPolygon"}


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("rows?nothing=1", "nothing: this set has source, split, reason, label, entropy_bits"),
        ("rows?source=sea", "no source 'sea'"),
        ("rows?entropy_bits=3", "write LOW..HIGH"),
        ("rows?entropy_bits=4..3", "write LOW..HIGH"),
        ("rows?entropy_bits=nan..", "write LOW..HIGH"),
        ("rows?entropy_bits=..", "write LOW..HIGH"),
        ("rows?entropy_bits=1..&entropy_bits=2..", "one range"),
        ("rows?offset=-1", "whole number"),
        ("rows?count=5000", "500 is the most"),
        ("rows?offset=99999999999999999999", "whole number"),
        ("rows?a;b", "list of name=value"),
        ("density?box=1,2,3", "WEST,SOUTH,EAST,NORTH"),
        ("density?box=0,nan,1,2", "WEST,SOUTH,EAST,NORTH"),
        ("image/0?side=1e9", "whole number"),
    ],
)
def test_a_wrong_question_is_told_why(asked: Asked, question: str, says: str) -> None:
    status, data, _ = asked.get(question)
    assert status == 400
    assert says in data.decode()


def test_who_does_not_know_the_token_is_refused(asked: Asked) -> None:
    port = asked.server.server_address[1]
    bare = f"http://127.0.0.1:{port}/"
    token = asked.server.token
    wrong = [
        "",
        "about",
        "x" * len(token) + "/about",
        token[:-1] + "/about",
        f"?token={token}",
        "%F0%9F/about",
        "favicon.ico",
    ]
    for path in wrong:
        status, data, headers = asked.get(path, url=bare)
        assert status == 403
        assert token.encode() not in data
        assert "Set-Cookie" not in headers
    assert asked.get("about")[0] == 200
    assert len(token) >= 32
    with serving(asked.server.answers.out) as other:
        assert other.server.token != token


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "0.0.0.0", "[::1]", " "])
def test_another_host_is_refused(asked: Asked, host: str) -> None:
    assert asked.get("about", host=host)[0] == 403
    for name in ("localhost:8080", "127.0.0.1", "LOCALHOST"):
        assert asked.get("about", host=name)[0] == 200


def test_nothing_else_is_served(out: Path, asked: Asked) -> None:
    assert asked.server.server_address[0] == "127.0.0.1"
    for path in (
        "../manifest.json",
        "manifest.json",
        "%2e%2e/manifest.json",
        "image/../../x",
        "image/-1",
        "page.py",
        "//etc",
    ):
        assert asked.get(path)[0] == 404
    for path in ("record/99999", "image/99999", "neighbours/99999", "find?key=nobody", "find"):
        assert asked.get(path)[0] == 404
    with socket.create_connection(asked.server.server_address[:2]) as plain:
        line = f"GET /{asked.server.token}/../../../../etc/passwd HTTP/1.0\r\nHost: localhost\r\n\r\n"
        plain.sendall(line.encode())
        assert b" 404 " in plain.makefile("rb").readline()
    for path in ("", "page.js", "about", "image/0", "nothing"):
        headers = asked.get(path)[2]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
    request = urllib.request.Request(asked.server.url + "about", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request)


def test_columns_are_read_once_and_nothing_is_written_beside_the_build(
    out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = digests(out)
    with serving(out) as asked:
        found = asked.rows("entropy_bits=3..")
        asked.server.reader.join(30)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    assert {path.stem for path in made} >= {"source", "reason", "label", "entropy_bits", "signature", "middle", "key"}
    damaged = next(path for path in made if path.stem == "entropy_bits")
    damaged.write_bytes(damaged.read_bytes()[:500])
    with serving(out) as asked:
        assert asked.rows("entropy_bits=3..") == found
        asked.server.reader.join(30)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    assert {path.stem for path in made if again[path] != made[path]} == {"entropy_bits"}
    assert digests(out) == before


def test_a_cache_that_cannot_be_written_is_done_without(
    out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with serving(out) as asked:
        assert asked.rows("source=map")
    said: list[str] = []
    assert browse_columns.cache_of(out, said.append) is None
    assert "held in memory" in said[0]


def test_a_set_that_is_built_again_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    put(tmp_path / "air" / "one.png", scene(420, 150, 150))
    out = tmp_path / "out"
    datakit.build(recipe_of("air", **STAGES), data=tmp_path, out=out, workers=0)
    with serving(out) as asked:
        assert len(asked.rows("width=1..")) == 4
        put(tmp_path / "air" / "two.png", scene(421, 150, 150))
        datakit.build(recipe_of("air", **STAGES), data=tmp_path, out=out, workers=0)
        status, data, _ = asked.get("rows")
        assert (status, b"built again" in data) == (500, True)
    old = {*(tmp_path / "cache").rglob("width.arrow")}
    with serving(out) as asked:
        assert len(asked.rows("width=1..")) == 8
    assert not old & {*(tmp_path / "cache").rglob("width.arrow")}


def test_sixteen_bits_are_developed(tmp_path: Path) -> None:
    levels = (scene(430, 200, 160).astype(np.uint16) * 200) + 500
    geotiff(tmp_path / "air" / "deep.tif", levels)
    narrow = {"bands": ["red", "green", "blue"], "range": [0, 65535]}
    stages = {"exclude": {"rules": []}, "cut": {"encode": {"format": "tiff16"}, "narrow": narrow}}
    datakit.build(recipe_of("air", **stages), data=tmp_path, out=tmp_path / "out", workers=0)
    with serving(tmp_path / "out") as asked:
        status, data, headers = asked.get("image/0")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert data == preview(opened(tmp_path / "out").read(0, "tif"), 2048)
        shown = np.asarray(Image.open(io.BytesIO(data)), np.float64)
        assert shown.shape == (160, 200, 3)
        assert np.corrcoef(shown.ravel(), levels.ravel())[0, 1] > 0.98
        assert Image.open(io.BytesIO(asked.get("image/0?side=64")[1])).size == (64, 51)


@pytest.mark.parametrize("changes", [{"domain": "both"}, {"view": "downsampled"}], ids=["mosaic", "reduced"])
def test_camera_raw_is_developed(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "photos").mkdir()
    truth = synth_raw.make(tmp_path / "photos", seed=2, size=(216, 152), images=4)
    (tmp_path / "photos" / "truth.json").write_text(json.dumps(truth))
    slices = {"slice.published.size_px": 96, "slice.published.gap_px": 24} if "domain" in changes else {}
    out = tmp_path / "out"
    datakit.build(Recipe.load("aodraw", {**slices, **changes}), data=tmp_path / "photos", out=out, workers=0)
    tars = opened(out)
    with serving(out) as asked:
        said = asked.ask("record/0")
        member = "raw" if "domain" in changes else "tif"
        assert said["images"] == (["jpg", "raw"] if "domain" in changes else ["tif"])
        data = asked.get(f"image/0?member={member}")[1]
        shown = np.asarray(Image.open(io.BytesIO(data)), np.float64)
        camera = Camera.of(said["json"]["camera"])
        if member == "raw":
            true = NAMED["srgb"](datakit.codec.decode(tars.read(0, "raw")), camera)
        else:
            from datakit.image import decode_levels, quiet

            with quiet():
                true = NAMED["srgb"].of_reduced(decode_levels(tars.read(0, "tif")), camera)
        assert shown.shape == (*true.shape[1:], 3)
        assert np.abs(shown - np.moveaxis(true, 0, -1) * 255).mean() < 6  # as JPEG
        assert asked.rows("reason=kept")[0]["image"] == "tile"


def test_imagenet_s(tmp_path: Path) -> None:
    """A set of another kind: no measures, no signatures, no places."""
    synth.make("imagenet_s", tmp_path / "data")
    recipe = kinds.load("recipes/imagenet_s.yaml", {"variant": "50", "shards.max_samples": 9})
    datakit.build(recipe, data=tmp_path / "data", out=tmp_path / "out", workers=0)
    tars, table = opened(tmp_path / "out"), pq.read_table(tmp_path / "out" / "samples.parquet").to_pandas()
    with serving(tmp_path / "out") as asked:
        about = asked.ask("about")
        assert (about["facets"], about["measures"]) == (["source", "split", "reason"], ["width", "height"])
        splits = tars.table.column("split").to_pylist()
        for split in {*splits}:
            rows = [one["row"] for one in asked.rows(f"split={split}&reason=kept")]
            assert rows == [n for n, one in enumerate(splits) if one == split]
        wide = [one["row"] for one in asked.rows("width=60..&reason=kept")]
        assert wide == table.index[table["width"] >= 60].tolist()
        masked = next(n for n in range(len(tars)) if tars.has(n, "seg.png"))
        assert asked.ask(f"record/{masked}")["images"] == ["jpg", "seg.png"]
        assert asked.get(f"image/{masked}?member=seg.png")[1] == tars.read(masked, "seg.png")
        key = tars.keys(np.array([masked]))[0]
        assert asked.ask(f"find?key={key}") == {"row": masked}
        assert asked.get("neighbours/0")[0] == 404
        assert asked.get("density")[0] == 404


def start(out: Path, tmp_path: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "datakit.cli", "browse", str(out), "--no-open", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_the_command_ends_at_ctrl_c(out: Path, tmp_path: Path) -> None:
    """Though a browser holds a connection on which it asks nothing."""
    process, url = start(out, tmp_path)
    host, port = url.split("/")[2].split(":")
    assert host == "127.0.0.1"
    with socket.create_connection((host, int(port))), urllib.request.urlopen(url + "about") as reply:
        assert json.load(reply)["name"] == "world"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=8)  # an idle connection is given 10 s
    assert process.returncode == 0
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "ended"


def test_mistakes_are_told(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["browse", str(out), "--no-open", "--port", str(port)]) == 1
        assert f"--port {port}: Address already in use. Give another" in capsys.readouterr().err
    assert main(["browse", str(tmp_path), "--no-open"]) == 1
    assert "manifest.json: no such file" in capsys.readouterr().err
    assert main(["browse", "s3://bucket/set", "--no-open"]) == 1
    assert "fetch the build first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["browse", str(out), "--port", "70000"])
    assert "from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page(out: Path, browser: Any, width: int, dark: bool) -> None:
    """By keyboard and mouse: filters, a record, its neighbours and its place; no markup of files is markup here."""
    table = table_of(out)
    with serving(out) as asked:
        seen = Page(browser, asked.server.url, width, dark)
        page = seen.page
        page.wait_for_selector("#tiles a")
        page.wait_for_selector("#reading", state="hidden")
        assert page.inner_text("#title") == EVIL_TITLE
        assert page.locator("#tiles a").count() == min(60, len(table))
        assert not seen.broken()
        assert not seen.overflows()
        if width == 400:
            page.click("#filters > summary")
        page.check("#facet-reason input[value=flat]")
        page.locator("#count", has_text=" of ").wait_for()
        flat = (table["reason"] == "flat").sum()
        assert page.inner_text("#count") == f"{flat} of {len(table)} records"
        assert not seen.broken()
        page.click("#clear")
        page.locator("#count").get_by_text(f"{len(table)} records", exact=True).wait_for()
        assert not seen.broken()
        row = int(table.index[(table["label"] == EVIL) & (table["reason"] == "kept")][0])
        page.focus(f"#tiles a[data-row='{row}']")
        page.keyboard.press("Enter")
        page.wait_for_selector("#neighbours a")
        assert page.inner_text("#record-key") == table["key"][row]
        assert EVIL in page.inner_text("#facts")
        assert page.evaluate("document.querySelector('#images img').naturalWidth") == table["width"][row]
        assert not seen.broken()
        page.keyboard.press("Escape")
        page.wait_for_selector("#record", state="hidden")
        assert page.evaluate("document.activeElement.dataset.row") == str(row)
        placed = int(table.index[(table["source"] == "map") & (table["reason"] == "kept")][0])
        page.goto(asked.server.url + f"#row={placed}")
        page.wait_for_selector("#here .shape")
        assert page.locator("#there .mark").count() >= 1
        page.wait_for_selector("#neighbours a")
        page.wait_for_load_state("networkidle")
        assert not seen.overflows()
        assert page.evaluate(
            "document.querySelector('#record').scrollWidth <= document.querySelector('#record').clientWidth"
        )
        assert page.evaluate("window.hacked") is None
        assert seen.complaints == []
        seen.close()
