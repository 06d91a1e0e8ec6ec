"""Collections and sets in a store, or behind a web server: the same bytes as on a disk, whatever the network does."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from servers import Web, moto, serving
from worlds import MAY_DIFFER, digests, geotiff, make_world, recipe_of, scene, source_of, write_recipe, write_split

import datakit
from datakit import files, ranges, remote
from datakit.cli import main
from datakit.errors import ShardError, SourceError, StageError
from datakit.folders import gc
from datakit.manifest import Manifest
from datakit.query import Query
from datakit.recipe import Recipe
from datakit.remote import Facts, Remote, root_of
from datakit.sources import folder

Out = pytest.CaptureFixture[str]
NAMES = ("classes", "scenes", "trouble", "broken")
SHARDS = {"max_samples": 3}
FEW = {"config_kwargs": {"retries": {"max_attempts": 0}}}  # what botocore asks again itself may take minutes
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three collections, and one of images that break while they are read."""
    data = make_world(tmp_path_factory.mktemp("world"))
    (data / "broken").mkdir()
    for name in ("classes/port/large.png", "scenes/b.tif", "classes/port/port.v3.jpg"):
        content = (data / name).read_bytes()
        for share in (0.9, 0.1, 0.001):
            (data / "broken" / f"{share} {Path(name).name}").write_bytes(content[: int(share * len(content))])
    (data / "broken" / "no.tif").write_bytes(b"II*\0" + b"\xff" * 2000)
    return data


@pytest.fixture(scope="module")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build from a disk, to a disk."""
    out = tmp_path_factory.mktemp("built") / "out"
    datakit.build(the_recipe(), data=world, out=out, workers=0)
    return out


@pytest.fixture(scope="module")
def some_built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of one collection."""
    out = tmp_path_factory.mktemp("some_built") / "out"
    datakit.build(the_recipe("classes"), data=world, out=out, workers=0)
    return out


@pytest.fixture(scope="module")
def s3(world: Path) -> Iterator[Web]:
    """A store that holds the collections in s3://data/world, behind a server that counts requests and may go wrong."""
    with moto() as port, serving(Web(upstream=port)) as web, pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", web.url)  # as a user would, for processes that begin later
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": web.url, **FEW})  # it is read when fsspec is imported
        store = fsspec.filesystem("s3")
        store.mkdir("data")
        store.put(str(world), "data/world", recursive=True)
        store.touch("data/world/classes/")  # the mark of a folder, as the console of S3 makes them
        store.mkdir("sets")
        yield web


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is lost between tries."""
    monkeypatch.setattr(remote, "WAITS_S", (0.0, 0.0, 0.0, 0.0))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "web").mkdir()
    with serving(Web(tmp_path / "web")) as one:
        yield one


@pytest.fixture
def right(s3: Web) -> Iterator[Web]:
    """The store, of which nothing is known yet; afterwards it does what is asked of it again."""
    s3.log.clear()
    ranges.block.cache_clear()
    yield s3
    s3.wrong = lambda method, path, count: ""


def the_recipe(*names: str, **paths: str) -> Recipe:
    """A recipe over these sources; paths: where some of them lie, if not at their names."""
    sources = [source_of(name, max_unreadable_share=1.0) for name in names or NAMES]
    plain = recipe_of("none", shards=SHARDS).model_dump()
    return Recipe.model_validate(
        plain | {"sources": [one | {"path": paths.get(one["name"], one["path"])} for one in sources]}
    )


def in_store(url: str) -> dict[str, str]:
    """sha256 of every object below a URL, but for the one that may differ."""
    store = fsspec.filesystem("s3", use_listings_cache=False)
    begin = len(url.removeprefix("s3://")) + 1
    found = {name[begin:]: store.cat_file(name) for name in store.find(url)}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name != MAY_DIFFER}


def tars(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(out).items() if name.endswith(".tar")}


def work_done(url: str) -> dict[str, int]:
    counted: dict[str, int] = json.loads((root_of(url) / MAY_DIFFER).read_text())["work_done"]
    return counted


def zipped(world: Path, name: str, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for n, file in enumerate(sorted(p for p in (world / name).rglob("*") if p.is_file())):
            archive.write(file, file.relative_to(world / name), zipfile.ZIP_DEFLATED if n % 2 else zipfile.ZIP_STORED)


def tarred(world: Path, name: str, path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(world / name, ".")


# Sources


def test_a_folder_of_a_store_gives_the_bytes_of_one_on_a_disk(right: Web, built: Path, tmp_path: Path) -> None:
    datakit.build(the_recipe(), data="s3://data/world", out=tmp_path / "out", workers=0)
    assert digests(tmp_path / "out") == digests(built)  # tables, reasons and all
    whole, part = right.asked("GET", "/data/world/scenes/b.tif"), right.asked("GET", "/data/world/classes/houses")
    assert len(part) == 2  # its header in a block of 64 KiB, and all of it for `cut`
    assert len(whole) == 2
    asked = len(right.log)
    datakit.build(the_recipe(), data="s3://data/world", out=tmp_path / "out", workers=0)
    assert len(right.log) - asked <= 12 * len(NAMES)  # it is listed again
    assert not [path for _, path, wanted in right.log[asked:] if wanted]  # and nothing is read
    assert digests(tmp_path / "out") == digests(built)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_of_a_store_are_read_in_place(right: Web, world: Path, built: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").mkdir()
    for name in NAMES:
        {"zip": zipped, "tar": tarred}[kind](world, name, tmp_path / "data" / f"{name}.{kind}")
    fsspec.filesystem("s3").put(str(tmp_path / "data"), f"data/{kind}", recursive=True)
    datakit.build(the_recipe(), data=f"s3://data/{kind}", out=tmp_path / "out", workers=0)
    assert tars(tmp_path / "out") == tars(built)
    assert not [one for one in right.asked("GET", f".{kind}") if not one[2]]  # by ranges, never whole


def test_workers_get_their_keys_from_the_environment(s3: Web, built: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    datakit.build(the_recipe(), data="s3://data/world", out="s3://sets/two", work=work, workers=2)
    assert in_store("s3://sets/two") == digests(built)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_behind_a_web_server(web: Web, world: Path, built: Path, tmp_path: Path, kind: str) -> None:
    for name in NAMES:
        {"zip": zipped, "tar": tarred}[kind](world, name, tmp_path / "web" / f"{name}.{kind}")
    web.etags = kind == "zip"  # else Last-Modified tells one state from another
    datakit.build(the_recipe(), data=web.url, out=tmp_path / "out", workers=0)
    datakit.build(the_recipe(), data=tmp_path / "web", out=tmp_path / "disk", workers=0)
    assert digests(tmp_path / "out") == digests(tmp_path / "disk")
    assert tars(tmp_path / "out") == tars(built)
    assert not [one for one in web.asked("GET", f".{kind}") if not one[2]]


def test_one_image_behind_a_web_server(web: Web, tmp_path: Path) -> None:
    (tmp_path / "web" / "far").mkdir()
    Image.fromarray(scene(1, 300, 200)).save(tmp_path / "web" / "far" / "one image.png")
    geotiff(tmp_path / "web" / "far" / "scene.tif", scene(2, 400, 300))
    recipe = the_recipe("one", "two", one=f"{web.url}/far/one image.png", two="far/scene.tif")
    manifest = datakit.build(recipe, data=web.url, out=tmp_path / "out", workers=0)
    names = pq.read_table(tmp_path / "out" / "samples.parquet").column("name").to_pylist()
    assert set(names) == {"one image.png", "scene.tif"}
    assert [source["path"] for source in manifest.recipe["sources"]] == ["one image.png", "far/scene.tif"]


def test_headers_of_large_images_take_little_of_them(web: Web, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8)
    geotiff(tmp_path / "web" / "a.tif", pixels, tiled=True, blockxsize=256, blockysize=256)
    Image.fromarray(pixels).save(tmp_path / "web" / "b.png")
    datakit.build(the_recipe("a", "b", a="a.tif", b="b.png"), data=web.url, out=tmp_path / "out", workers=0)
    for name in ("a.tif", "b.png"):
        size_bytes = (tmp_path / "web" / name).stat().st_size
        first, last = [one[2] for one in web.asked("GET", name)]
        assert size_bytes > 5_000_000
        assert (first, last) == ("bytes=0-65535", f"bytes=0-{size_bytes - 1}")


def test_a_server_without_ranges_says_so(web: Web, world: Path, tmp_path: Path) -> None:
    zipped(world, "classes", tmp_path / "web" / "classes.zip")
    Image.fromarray(scene(1, 300, 200)).save(tmp_path / "web" / "one.png")
    web.ranges = False
    with pytest.raises(SourceError, match=r"classes\.zip: the server gives no parts of files.*fetch it"):
        datakit.build(the_recipe("classes"), data=web.url, out=tmp_path / "out", workers=0)
    one = the_recipe("one", one="one.png")
    assert datakit.build(one, data=web.url, out=tmp_path / "out", workers=0).samples == 2


def test_a_split_zip_of_a_store(s3: Web, world: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("s3")
    content = {f"a/{n}.jpg": path.read_bytes() for n, path in enumerate(sorted((world / "classes").rglob("*.jpg")))}
    for path in write_split(tmp_path / "split.zip", content, 20_000):
        store.put_file(str(path), f"data/split/{path.name}")
    found = list(folder.files(Remote("s3://data/split")))
    assert [(f.name, f.file_bytes) for f in found] == [(name, len(data)) for name, data in content.items()]
    assert all(files.read(Remote("s3://data/split"), f) == content[f.name] for f in found)
    store.rm_file("data/split/split.z02")
    with pytest.raises(SourceError, match=r"split\.z02"):
        list(folder.files(Remote("s3://data/split")))


def test_what_is_skipped_in_a_store_is_what_is_skipped_on_a_disk(s3: Web, world: Path) -> None:
    for skipped in ("port/", "houses/houses.v0.jpg", "notes.txt"):
        near = [f.name for f in folder.files(world / "classes", lambda path, s=skipped: path == s)]
        far = [f.name for f in folder.files(Remote("s3://data/world/classes"), lambda path, s=skipped: path == s)]
        assert near == far


# What goes wrong


@pytest.mark.usefixtures("quick")
def test_what_fails_now_and_then_is_asked_again(web: Web, world: Path, tmp_path: Path) -> None:
    zipped(world, "classes", tmp_path / "web" / "classes.zip")
    datakit.build(the_recipe("classes"), data=tmp_path / "web", out=tmp_path / "disk", workers=0)
    faults = {1: "503", 3: "drop", 5: "short"}
    web.wrong = lambda method, path, count: faults.get(count % 7, "")
    datakit.build(the_recipe("classes"), data=web.url, out=tmp_path / "out", workers=0)
    assert digests(tmp_path / "out") == digests(tmp_path / "disk")
    assert {wrong for wrong in (faults.get(n % 7) for n in range(1, len(web.log) + 1)) if wrong} == {*faults.values()}


@pytest.mark.usefixtures("quick")
def test_a_store_that_fails_now_and_then(right: Web, some_built: Path, tmp_path: Path) -> None:
    faults = {2: "503", 5: "drop", 7: "short"}
    right.wrong = lambda method, path, count: faults.get(count % 11, "")
    out, work = "s3://sets/flaky", tmp_path / "work"
    datakit.build(the_recipe("classes"), data="s3://data/world", out=out, work=work, workers=0)
    right.wrong = lambda method, path, count: ""
    assert in_store(out) == digests(some_built)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("what", "requests"), [("houses.v0.jpg", (1, 2)), ("b.tif", (1, 2)), ("large.png", (1, 2)), ("s.zip", (1, 4, 8))]
)
def test_a_network_that_is_gone_is_blamed_on_no_image(
    web: Web, right: Web, world: Path, some_built: Path, tmp_path: Path, what: str, requests: tuple[int, ...]
) -> None:
    """From some moment on nothing answers; the build stops, and goes on later as if nothing had been."""
    zipped(world, "classes", tmp_path / "web" / "classes.zip")
    server, data = (web, web.url) if what.endswith(".zip") else (right, "s3://data/world")
    recipe = the_recipe("scenes" if what == "b.tif" else "classes")
    for first in requests:  # while archives are listed, in `scan`, in `cut`

        def gone(method: str, path: str, count: int, first: int = first) -> str:
            late = len(server.asked("GET", what)) >= first and method == "GET" and what in path
            return {True: "503", False: "drop"}[server is right] if late else ""

        server.log.clear()
        server.wrong = gone
        with pytest.raises((SourceError, StageError), match="asked again and again in vain") as caught:
            datakit.build(recipe, data=data, out=tmp_path / "out", workers=0)
        assert what in str(caught.value)
        parts = [pq.read_table(path) for path in (tmp_path / "out.work").glob("[sc][cu][at]*/*/*.parquet")]
        assert not [row for part in parts for row in part.to_pylist() if what in row["path"] and row["dropped"]]
    server.wrong = lambda method, path, count: ""
    datakit.build(recipe, data=data, out=tmp_path / "out", workers=0)
    if recipe == the_recipe("classes"):
        assert tars(tmp_path / "out") == tars(some_built)


def test_a_file_that_vanished_stops_a_build_wherever_it_lay(right: Web, world: Path, tmp_path: Path) -> None:
    right.wrong = lambda method, path, count: "404" if method == "GET" and "river.v2.jpg" in path else ""
    with pytest.raises(StageError, match=r"no such object.*river\.v2\.jpg.*Then run the same command again"):
        datakit.build(the_recipe(), data="s3://data/world", out=tmp_path / "out", workers=0)
    lost = files.File("a.jpg", "a.jpg", 5, "1", -1, 5, "", -1)
    for root in (world, Remote("s3://data/world")):
        with pytest.raises(FileNotFoundError) as caught:
            files.read(root, lost)
        with pytest.raises(FileNotFoundError):
            files.check_machine(caught.value, root, lost)


@pytest.mark.usefixtures("quick")
def test_bytes_that_change_on_their_way_are_not_used(right: Web, some_built: Path, tmp_path: Path) -> None:
    first = {"once": True}

    def flipped(method: str, path: str, count: int) -> str:
        if method == "GET" and "large.png" in path and len(right.asked("GET", "large.png")) > 1:
            return "flip" if first.pop("once", False) else ""
        return ""

    right.wrong = flipped
    datakit.build(the_recipe("classes"), data="s3://data/world", out=tmp_path / "out", workers=0)
    assert not first
    assert digests(tmp_path / "out") == digests(some_built)


def test_an_etag_that_is_no_md5_is_taken_for_a_name(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that encrypt give 32 hexadecimal digits that are not of the bytes."""
    (tmp_path / "web" / "a.bin").write_bytes(b"abc")
    given = web.file
    monkeypatch.setattr(web, "file", lambda *asked: (given(*asked)[0], {"ETag": '"' + "0" * 32 + '"'}, b"abc"))
    place = Remote(f"{web.url}/a.bin")
    assert place.facts() == Facts(3, "0" * 32)
    for gets in (2, 3):  # from then on, that store is known
        assert place.read_bytes(Facts(3, "0" * 32)) == b"abc"
        assert len(web.asked("GET")) == gets
    monkeypatch.setattr(remote, "WAITS_S", ())
    with pytest.raises(OSError, match="bytes came of 4") as caught:
        place.read_bytes(Facts(4, "0" * 32))
    assert caught.value.errno in files.OF_THE_MACHINE


def test_a_file_that_changed_since_it_was_listed(s3: Web, tmp_path: Path) -> None:
    store = fsspec.filesystem("s3")
    store.pipe("data/changing/a.jpg", b"first")
    (before,) = folder.files(Remote("s3://data/changing"))
    store.pipe("data/changing/a.jpg", b"other")
    with pytest.raises(OSError, match="changed since it was listed") as caught:
        files.read(Remote("s3://data/changing"), before)
    assert caught.value.errno in files.OF_THE_MACHINE
    (after,) = folder.files(Remote("s3://data/changing"))
    assert before.stamp != after.stamp == hashlib.md5(b"other").hexdigest()
    assert files.read(Remote("s3://data/changing"), after) == b"other"


def test_an_image_has_its_time_while_the_network_is_waited_for(web: Web, tmp_path: Path) -> None:
    """What ends a process that is too long at one image does not run on: a network that hangs is blamed on none."""
    (tmp_path / "web" / "a.bin").write_bytes(b"abc")

    def slow(method: str, path: str, count: int) -> str:
        time.sleep(0.6)
        return ""

    web.wrong = slow
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        assert Remote(f"{web.url}/a.bin").fetch(0, 3) == b"abc"
        assert not rung
        time.sleep(0.7)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_keys_that_are_wrong(s3: Web, tmp_path: Path) -> None:
    def keys_count(yes: bool) -> None:
        how = {"data": b"0" if yes else b"inf", "headers": {"Content-Type": "text/plain"}, "method": "POST"}
        url = f"http://127.0.0.1:{s3.upstream}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(url, **how)).close()  # type: ignore[arg-type]

    keys_count(True)
    try:
        with pytest.raises(SourceError, match=r"s3://data/world/classes: not allowed .*docs/remote\.md"):
            datakit.build(the_recipe(), data="s3://data/world", out=tmp_path / "out", workers=0)
        data, work = small(tmp_path), tmp_path / "work"
        with pytest.raises(StageError, match=r"s3://sets/keys: not allowed"):
            datakit.build(recipe_of("none"), data=data, out="s3://sets/keys", work=work, workers=0)
    finally:
        keys_count(False)


def small(tmp_path: Path) -> Path:
    """A folder with one small collection."""
    (tmp_path / "data" / "none").mkdir(parents=True)
    Image.fromarray(scene(1, 300, 200)).save(tmp_path / "data" / "none" / "a.png")
    return tmp_path / "data"


def test_a_bucket_that_is_not_there(s3: Web, tmp_path: Path, capsys: Out) -> None:
    with pytest.raises(SourceError, match=r"not on disk:\n  classes: s3://nobucket/x/classes"):
        datakit.build(the_recipe(), data="s3://nobucket/x", out=tmp_path / "out", workers=0)
    data, work = small(tmp_path), tmp_path / "work"
    with pytest.raises(StageError, match=r"no such object, or no such bucket.*s3://nobucket/x"):
        datakit.build(recipe_of("none"), data=data, out="s3://nobucket/x", work=work, workers=0)
    recipe = write_recipe(tmp_path / "world.yaml", the_recipe())
    assert main(["check", str(recipe), "--data", "s3://nobucket/x"]) == 1
    assert "s3://nobucket/x: no such folder" in capsys.readouterr().err


def test_what_no_package_reads(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gs://bucket/a: what reads gs:// is not installed .*Run pip install gcsfs"):
        Remote("gs://bucket/a").exists()
    with pytest.raises(SourceError, match="strange://a: Protocol not known"):
        Remote("strange://a").exists()


def test_a_path_or_a_url() -> None:
    assert root_of("a/b") == Path("a/b")
    assert root_of("file:///a/b") == Path("/a/b")
    assert root_of("s3://b/a/") == Remote("s3://b/a")
    assert root_of("c.zip", Remote("s3://b/a")) == root_of("./c.zip", Remote("s3://b/a")) == Remote("s3://b/a/c.zip")
    assert root_of(".", Remote("s3://b/a")) == Remote("s3://b/a")
    assert root_of("/c", Remote("s3://b/a")) == root_of("/c", Path("d")) == Path("/c")
    assert root_of("S3://b/a", Path("/c")) == Remote("s3://b/a")
    assert (Remote("s3://b/a/c").parent, Remote("s3://b/a").parent.parent) == (Remote("s3://b/a"), Remote("s3://b"))
    for url in ("https://me:secret@host/a.zip", "https://host/a.zip?key=secret", "http://host/a.zip#b"):
        with pytest.raises(SourceError, match="without a user"):
            root_of(url)
    assert root_of("https://host/a@b/c.zip") == Remote("https://host/a@b/c.zip")


# OUT


def test_a_set_in_a_store_is_that_on_a_disk(
    right: Web, world: Path, built: Path, some_built: Path, tmp_path: Path
) -> None:
    out, work = "s3://sets/plain", tmp_path / "work"
    manifest = datakit.build(the_recipe(), data=world, out=out, work=work, workers=0)
    assert in_store(out) == digests(built)
    assert manifest == Manifest.load(out) == Manifest.load(f"{out}/manifest.json") == Manifest.load(built)
    put = [path.partition("?")[0] for method, path, _ in right.log if method == "PUT"]
    assert len(put) == len(set(put))  # once each
    assert put[0] == "/sets/plain/.partial/building"
    assert put[-1] == "/sets/plain/manifest.json"
    right.log.clear()
    datakit.build(the_recipe(), data=world, out=out, work=work, workers=0)
    assert not [path for method, path, _ in right.log if method == "PUT" and ".tar" in path]
    assert work_done(out) == {"parts_there": work_done(out)["parts_there"]}
    assert in_store(out) == digests(built)
    datakit.build(the_recipe("classes"), data=world, out=out, work=work, workers=0)
    assert in_store(out) == digests(some_built)  # nothing of the larger set is left
    fsspec.filesystem("s3").rm_file("sets/plain/world-train-000001.tar")
    datakit.build(the_recipe("classes"), data=world, out=out, work=work, workers=0)
    assert work_done(out)["shards_written"] == 1
    assert in_store(out) == digests(some_built)


@pytest.mark.parametrize("at", ["train-000001.tar", "manifest.json"])
def test_a_build_that_is_killed_as_it_puts(right: Web, world: Path, some_built: Path, tmp_path: Path, at: str) -> None:
    """Killed while an object is on its way: it is not there, no other is half there, and the same command goes on."""
    out, work = f"s3://sets/killed-{at}", tmp_path / "work"
    begun = []

    def held(method: str, path: str, count: int) -> str:
        if method == "PUT" and path.partition("?")[0].endswith(at):
            begun.append(path)
            time.sleep(5)
            return "drop"
        return ""

    recipe = write_recipe(tmp_path / "world.yaml", the_recipe("classes"))
    command = [sys.executable, "-m", "datakit.cli", "build", str(recipe), "--data", str(world), "--workers", "0"]
    right.wrong = held
    process = subprocess.Popen(
        [*command, "--out", out, "--work", str(work)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not begun:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    right.wrong = lambda method, path, count: ""
    there, whole = in_store(out), digests(some_built)
    there.pop(".partial/building")
    assert at not in "".join(there)
    assert there
    assert there.items() < whole.items()
    right.log.clear()
    datakit.build(the_recipe("classes"), data=world, out=out, work=work, workers=0)
    assert in_store(out) == whole
    written = [name for name in there if name.endswith(".tar")]
    assert written
    assert not [path for method, path, _ in right.log if method == "PUT" and any(name in path for name in written)]


def test_a_large_object_is_put_in_parts(right: Web, tmp_path: Path) -> None:
    """Of such an object nothing is seen before all of it is."""
    data = np.random.default_rng(0).bytes(110 << 20)
    (tmp_path / "large").write_bytes(data)
    place, seen = Remote("s3://sets/large"), []

    def looked(method: str, path: str, count: int) -> str:
        if method == "PUT" and "partNumber" in path:
            seen.append(urllib.request.urlopen(f"http://127.0.0.1:{right.upstream}/sets?list-type=2").read())
        return ""

    right.wrong = looked
    place.put(tmp_path / "large")
    assert len(seen) > 1
    assert not any(b"<Key>large<" in listing for listing in seen)
    facts = place.facts()
    assert facts.size_bytes == len(data)
    assert "-" in facts.stamp  # no MD5, so the size alone tells
    sink = io.BytesIO()
    place.download(sink, facts)
    assert sink.getvalue() == data
    place.unlink()


def test_a_put_that_comes_to_nothing_stops_the_build(right: Web, world: Path, tmp_path: Path) -> None:
    right.wrong = lambda method, path, count: "404" if method == "PUT" and path.endswith("samples.parquet") else ""
    with pytest.raises(StageError, match=r"no such object, or no such bucket.*samples\.parquet.*Then run"):
        datakit.build(the_recipe("classes"), data=world, out="s3://sets/put", work=tmp_path / "work", workers=0)
    assert "manifest.json" not in in_store("s3://sets/put")
    assert not list((tmp_path / "work" / "tmp").iterdir())


def test_folders_of_a_build_in_a_store(s3: Web, world: Path, tmp_path: Path) -> None:
    store, work = fsspec.filesystem("s3"), tmp_path / "work"
    recipe = the_recipe("classes")
    with pytest.raises(StageError, match=r"s3://sets/a: .*--work"):
        datakit.build(recipe, data=world, out="s3://sets/a", workers=0)
    with pytest.raises(StageError, match=r"s3://sets/w: .*folder that all workers see"):
        datakit.build(recipe, data=world, out=tmp_path / "out", work="s3://sets/w", workers=0)
    with pytest.raises(StageError, match="nothing can be written there"):
        datakit.build(recipe, data=world, out="https://example.org/a", work=work, workers=0)
    with pytest.raises(StageError, match="s3://data/world/classes is the folder of classes"):
        datakit.build(recipe, data="s3://data/world", out="s3://data/world/classes", work=work, workers=0)
    store.pipe({"sets/mine/notes.txt": b"mine", "sets/a/": b""})  # the mark of a folder, which is no file
    with pytest.raises(StageError, match=r"s3://sets/mine holds files that are not of a build"):
        datakit.build(recipe, data=world, out="s3://sets/mine", work=work, workers=0)
    datakit.build(recipe, data=world, out="s3://sets/a", work=work, workers=0)
    with pytest.raises(StageError, match="holds another set, world"):
        datakit.build(recipe_of("classes", name="other"), data=world, out="s3://sets/a", work=work, workers=0)
    (lock,) = (work / "builds").glob("*.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="another build is writing to s3://sets/a"):
            datakit.build(recipe, data=world, out="s3://sets/a", work=work, workers=0)


def test_gc_looks_into_the_store(s3: Web, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, work = fsspec.filesystem("s3"), tmp_path / "work"
    datakit.build(the_recipe("classes"), data=world, out="s3://sets/deep/gc", work=work, workers=0)
    assert gc(work)["files"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(remote, "WAITS_S", ())
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:1", **FEW})
        store.rm("sets/deep/gc", recursive=True)
        assert gc(work)["files"] == 0  # nobody knows
    assert gc(work)["files"] > 5


def test_the_example_of_the_page_is_a_recipe(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "remote.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "own.yaml").write_text(f"name: own\n{example}")
    places = [root_of(source.path, Remote("s3://b")) for source in Recipe.load(tmp_path / "own.yaml").sources]
    assert [str(place) for place in places] == ["s3://b/dota", *re.findall(r'path: "(.*)"', example)]


def test_readers_take_urls(s3: Web, world: Path, built: Path, tmp_path: Path, capsys: Out) -> None:
    store = fsspec.filesystem("s3")
    store.put(str(built), "sets/read", recursive=True)
    picture = world / "classes" / "houses" / "houses.v0.jpg"
    assert Query("s3://sets/read").spell(picture) == Query(built).spell(picture)
    recipe = write_recipe(tmp_path / "world.yaml", the_recipe())
    said = []
    for data in (str(world), "s3://data/world"):
        assert main(["check", str(recipe), "--data", data]) == 0
        lines = capsys.readouterr().out.replace(data, "DATA").splitlines()
        said.append([line.split() for line in lines if not line.startswith("---")])
    assert said[0] == said[1]
    with pytest.raises(ShardError, match=r"s3://sets/nothing: no such file"):
        Manifest.load("s3://sets/nothing")
    assert main(["dedup", "query", "s3://sets/read", str(picture)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["found"]


def test_errors_of_the_network_are_the_machines() -> None:
    assert {errno.ENOENT, errno.EPERM, errno.ETIMEDOUT, errno.EIO, errno.EOPNOTSUPP} <= files.OF_THE_MACHINE
    assert os.strerror(errno.ETIMEDOUT)
