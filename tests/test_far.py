"""Sets in a store: fetched once, checked, below the cap, and there without a network once they are."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from servers import Web, moto, serving
from tars import SMALL, keys, sample, write_tar
from test_loader import together

import datakit
from datakit import index, remote
from datakit.errors import RecipeError, ShardError, SourceError
from datakit.remote import Facts, Remote
from datakit.stream import Cache, Loader, Mix, mae
from datakit.stream import cache as caches
from datakit.stream.cache import LOCKS, PARTIAL, File
from datakit.stream.foreign import write

SIZES = (5, 3, 4, 6, 2, 4)
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS_S", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of six shards with an index that tells their sha256, as a build leaves it."""
    folder, n, tars = tmp_path_factory.mktemp("whole"), 0, []
    for shard, size in enumerate(SIZES):
        tars.append(write_tar(folder / f"part-{shard}.tar", [m for k in range(n, n + size) for m in sample(k)]))
        n += size
    write(tars, folder / "index.arrow", folder)
    table = index.load(folder / "index.arrow")
    said = json.loads(table.schema.metadata[b"shards"])
    for one, tar in zip(said, tars, strict=True):
        one["sha256"] = hashlib.sha256(tar.read_bytes()).hexdigest()
    index.write(table, folder / "anew.arrow", said)
    (folder / "anew.arrow").replace(folder / "index.arrow")
    return folder


@pytest.fixture
def web(whole: Path, tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "web").mkdir()
    for path in whole.glob("*.[at]*r*"):
        (tmp_path / "web" / path.name).write_bytes(path.read_bytes())
    with serving(Web(tmp_path / "web")) as one:
        yield one


def got(web: Web) -> Counter[str]:
    """How often each tar was fetched."""
    return Counter(path.lstrip("/") for _, path, _ in web.asked("GET", ".tar"))


def file_of(web: Web, name: str, **known: str) -> File:
    assert web.folder is not None
    return File(Remote(f"{web.url}/{name}"), (web.folder / name).stat().st_size, **known)


def tars_in(cache: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in cache.iterdir() if path.suffix == ".tar")


def largest(whole: Path) -> int:
    return max(path.stat().st_size for path in whole.glob("*.tar"))


def test_a_set_behind_a_web_server_is_one_on_a_disk(web: Web, whole: Path, tmp_path: Path) -> None:
    near = Loader(whole, 4, transform=SMALL, block_bytes=60_000)
    far = Loader(web.url, 4, transform=SMALL, block_bytes=60_000, cache=tmp_path / "cache")
    assert far.state_dict() == near.state_dict()
    for a, b in zip(near, far, strict=True):
        assert a.keys == b.keys
        assert a.images.equal(b.images)
    assert got(web) == {f"part-{n}.tar": 1 for n in range(6)}
    assert keys(near) == keys(far)
    assert set(got(web).values()) == {1}
    begun = iter(far)
    next(begun)
    begun.close()
    near.load_state_dict(json.loads(json.dumps(far.state_dict())))
    assert keys(near) == keys(far)[4:] or near.epoch > 2


OFFLINE = """
import sys
from datakit.stream import Cache, Loader, mae
loader = Loader(sys.argv[1], 4, transform=mae(32, normalise=None), cache=Cache(sys.argv[2], offline=True))
print(" ".join(key for batch in loader for key in batch.keys))
"""


def test_what_is_cached_needs_no_server(whole: Path, tmp_path: Path) -> None:
    with serving(Web(whole)) as web:
        url = web.url
        loader = Loader(url, 4, transform=SMALL, cache=tmp_path / "cache")
        first = keys(loader)
        web.wrong = lambda method, path, count: "drop"  # connections that are open outlive the server
    second = keys(loader)
    assert first != second
    with pytest.warns(UserWarning, match=r"in vain .* What the cache .*cache has is used"):
        again = Loader(url, 4, transform=SMALL, cache=tmp_path / "cache")
    assert keys(again) == first
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, url, str(tmp_path / "cache")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == first
    with pytest.raises(ShardError, match=r"http://127.0.0.1:\d+/index\.arrow: asked again and again in vain"):
        Loader(url, 4, transform=SMALL, cache=tmp_path / "other")
    with pytest.raises(ShardError, match=r"not in the cache .*other, and offline=True"):
        Loader(url, 4, transform=SMALL, cache=Cache(tmp_path / "other", offline=True))
    for path in (tmp_path / "cache").glob("*part-3.tar"):
        path.unlink()
    with pytest.raises(ShardError, match=r"part-3\.tar: not in the cache .*, and offline=True"):
        keys(Loader(url, 4, transform=SMALL, cache=Cache(tmp_path / "cache", offline=True)))


FETCH = """
import sys
from datakit import remote
from datakit.remote import Remote
from datakit.stream.cache import Cache, File
remote.PIECE_BYTES, remote.WAITS_S = int(sys.argv[3]), (0.0, 0.0, 0.0, 0.0)
cache = Cache(sys.argv[1], 10**9)
for said in sys.argv[4:]:
    url, size, sha256 = said.split()
    cache.open(File(Remote(url), int(size), sha256))
print("done", flush=True)
"""


def fetching(web: Web, cache: Path, names: list[str], piece: int = 1 << 25) -> subprocess.Popen[str]:
    """A process that fetches tars."""
    files = [file_of(web, name) for name in names]
    said = [f"{f.url} {f.size_bytes} {digest_of(web, name)}" for f, name in zip(files, names, strict=True)]
    command = [sys.executable, "-c", FETCH, str(cache), "", str(piece), *said]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def digest_of(web: Web, name: str) -> str:
    assert web.folder is not None
    return hashlib.sha256((web.folder / name).read_bytes()).hexdigest()


def test_many_processes_fetch_once(web: Web, tmp_path: Path) -> None:
    def slow(method: str, path: str, count: int) -> str:
        time.sleep(0.3)
        return ""

    web.wrong = slow
    names = [f"part-{n}.tar" for n in range(6)]
    orders = [names, names[::-1], names[3:] + names[:3], names]
    processes = [fetching(web, tmp_path / "cache", order) for order in orders]
    for process in processes:
        assert process.communicate(timeout=120)[0] == "done\n"
    assert got(web) == dict.fromkeys(names, 1)
    assert tars_in(tmp_path / "cache") == names


def test_who_is_killed_leaves_nothing_that_counts_as_whole(web: Web, tmp_path: Path) -> None:
    held = threading.Event()
    web.wrong = lambda method, path, count: "" if len(web.asked("GET")) < 3 else str(held.wait(60) and "")
    process = fetching(web, tmp_path / "cache", ["part-0.tar"], piece=5000)
    while len(web.asked("GET")) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    held.set()
    (left,) = (path for path in (tmp_path / "cache").iterdir() if path.is_file())
    assert left.name.startswith(PARTIAL)
    file = file_of(web, "part-0.tar", sha256=digest_of(web, "part-0.tar"))
    assert left.stat().st_size == file.size_bytes  # it counts as a whole one
    cache = Cache(tmp_path / "cache", file.size_bytes)
    handle = cache.open(file)
    assert hashlib.sha256(os.pread(handle.number, file.size_bytes, 0)).hexdigest() == file.sha256
    assert [path for path in cache.folder.iterdir() if path.name != LOCKS] == [cache.path(file)]


def test_the_cache_stays_below_its_cap(web: Web, whole: Path, tmp_path: Path) -> None:
    """Two loaders with one cache, which is looked at all the time."""
    most = 2 * largest(whole) + sum(path.stat().st_size for path in [whole / "index.arrow"]) + 2000
    cache, seen, over = Cache(tmp_path / "cache", most), [], threading.Event()

    def look() -> None:
        while not over.wait(0.0005):
            seen.append(cache.used_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        block = largest(whole)
        ranks = [
            Loader(web.url, 2, transform=SMALL, block_bytes=block, cache=cache, rank=rank, world_size=2, threads=2)
            for rank in range(2)
        ]
        for _ in range(2):
            sequence = together(ranks)
            assert len(sequence) == 24
            assert len({*sequence}) == 24
    finally:
        over.set()
        watcher.join()
    assert max(seen) <= most
    assert max(seen) > largest(whole)
    assert sum(got(web).values()) > 6  # what was removed came again
    near = Loader(whole, 4, transform=SMALL, block_bytes=block)
    near.set_epoch(1)
    assert sequence == keys(near)


def test_what_does_not_fit_is_refused(web: Web, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"block_bytes: 4,000,000,000: the cache .* give a smaller block_bytes"):
        Loader(web.url, 4, transform=SMALL, cache=Cache(tmp_path / "cache", 60_000))
    with pytest.raises(ShardError, match=r"index\.arrow: its [\d,]+ bytes do not fit into the cache .* of 500"):
        Loader(web.url, 4, transform=SMALL, cache=Cache(tmp_path / "other", 500))
    loader = Loader(web.url, 4, transform=SMALL, cache=tmp_path / "whole")
    assert loader.block == 4_000_000_000
    assert Loader(web.url, 4, transform=SMALL, cache=tmp_path / "whole", shuffle=False).block is None


def test_what_is_read_is_not_removed(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "WAIT_S", 0.3)
    first, second = (file_of(web, f"part-{n}.tar", sha256=digest_of(web, f"part-{n}.tar")) for n in (0, 3))
    cache = Cache(tmp_path / "cache", max(first.size_bytes, second.size_bytes))
    handle = [cache.open(first)]
    with pytest.raises(ShardError, match=r"part-3\.tar: no room for it within 0 s: all of the .* are in use"):
        cache.open(second)
    cache.fetch(second, threading.Event())  # which waits for nothing
    assert tars_in(cache.folder) == ["part-0.tar"]
    handle.clear()
    assert cache.open(second).number > 0
    assert tars_in(cache.folder) == ["part-3.tar"]


def test_the_longest_unused_go_first(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "TOUCHED_S", 0.0)
    files = [file_of(web, f"part-{n}.tar") for n in (0, 1, 2)]
    cache = Cache(tmp_path / "cache", sum(file.size_bytes for file in files))
    for n in (0, 1, 2, 0):
        cache.open(files[n])
        time.sleep(0.02)
    cache.open(file_of(web, "part-4.tar"))
    assert tars_in(cache.folder) == ["part-0.tar", "part-2.tar", "part-4.tar"]


def test_damage_on_the_way_is_seen(web: Web, tmp_path: Path) -> None:
    web.etags = False
    web.wrong = lambda method, path, count: "flip" if path.endswith("2.tar") and got(web)["part-2.tar"] == 1 else ""
    assert len(keys(Loader(web.url, 4, transform=SMALL, cache=tmp_path / "cache"))) == 24
    assert got(web)["part-2.tar"] == 2
    web.wrong = lambda method, path, count: "flip" if path.endswith("2.tar") else ""
    loader = Loader(web.url, 4, transform=SMALL, cache=tmp_path / "other")
    with pytest.raises(ShardError, match=r"http://.*/part-2\.tar: its sha256 is \w+, not \w+ as its index says"):
        keys(loader)
    assert "part-2.tar" not in tars_in(tmp_path / "other")
    assert not [path for path in (tmp_path / "other").iterdir() if path.name.startswith(PARTIAL)]
    web.wrong = lambda method, path, count: ""
    assert web.folder is not None
    whole = (web.folder / "index.arrow").read_bytes()
    (web.folder / "index.arrow").write_bytes(whole.replace(b"s007", b"s707"))
    with pytest.raises(ShardError, match=r"index\.arrow: damaged, or it came so"):
        Loader(web.url, 4, transform=SMALL, cache=tmp_path / "third")
    (web.folder / "index.arrow").write_bytes(whole)
    Loader(web.url, 4, transform=SMALL, cache=tmp_path / "third")


def test_a_tar_that_changed_at_the_server(web: Web, tmp_path: Path) -> None:
    assert web.folder is not None
    loader = Loader(web.url, 4, transform=SMALL, cache=tmp_path / "cache")
    part = web.folder / "part-1.tar"
    part.write_bytes(part.read_bytes()[:4096])
    with pytest.raises(ShardError, match=r"part-1\.tar: it has 4096 bytes, not \d+ as its index says"):
        keys(loader)
    part.unlink()
    with pytest.raises(ShardError, match=r"http://.*/part-1\.tar: no such object"):
        keys(loader)
    with pytest.raises(SourceError, match=r"nothing/index\.arrow: not there, and no tars are listed"):
        Loader(f"{web.url}/nothing", 4, cache=tmp_path / "cache")


def test_the_next_block_comes_while_one_is_used(web: Web, whole: Path, tmp_path: Path) -> None:
    loader = Loader(web.url, 1, transform=SMALL, block_bytes=1, cache=tmp_path / "cache", prefetch=1)
    order = loader.order(0).order
    wanted = [f"part-{n}.tar" for n in order.blocks.shards]  # type: ignore[union-attr]
    begun = iter(loader)
    next(begun)
    for _ in range(200):
        if {*tars_in(tmp_path / "cache")} == {*wanted[:2]}:
            break
        time.sleep(0.05)
    assert {*tars_in(tmp_path / "cache")} == {*wanted[:2]}
    rest = [key for batch in begun for key in batch.keys]
    near = Loader(whole, 1, transform=SMALL, block_bytes=1)
    assert rest == keys(near)[1:]
    in_turn = Loader(web.url, 1, transform=SMALL, shuffle=False, cache=tmp_path / "other", prefetch=1)
    assert keys(in_turn) == [f"s{n:03}" for n in range(24)]


def test_tars_of_others_by_their_urls(web: Web, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [f"{web.url}/part-{n}.tar" for n in (1, 4)]
    small = Cache(tmp_path / "cache", largest(whole) + 2000)
    near = Loader([whole / "part-1.tar", whole / "part-4.tar"], 1, transform=SMALL, shuffle=False)
    far = Loader(urls, 1, transform=SMALL, shuffle=False, cache=small, remainder="pad")
    assert got(web) == dict.fromkeys(("part-1.tar", "part-4.tar"), 1)
    for a, b in zip(near, far, strict=True):
        assert (a.keys, a.ids.tolist()) == (b.keys, b.ids.tolist())
    assert len(keys(Loader(urls[0], 1, transform=SMALL, cache=small))) == 3
    web.log.clear()
    cache = Cache(tmp_path / "whole")
    keys(Loader(urls, 1, transform=SMALL, cache=cache))
    asked = len(web.log)
    assert keys(Loader(urls, 1, transform=SMALL, cache=cache)) == keys(Loader(urls, 1, transform=SMALL, cache=cache))
    assert len(web.log) == asked + 4  # each is asked whether it is the same
    assert web.folder is not None
    write_tar(web.folder / "part-4.tar", sample(77))
    assert len(keys(Loader(urls, 1, transform=SMALL, cache=cache))) == 4
    (web.folder / "part-4.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ShardError, match=rf"{web.url}/part-4\.tar: .*not a plain tar"):
        Loader(urls, 1, transform=SMALL, cache=cache)


def test_a_mix_of_near_and_far(web: Web, whole: Path, tmp_path: Path) -> None:
    mix = Mix({web.url: 1, whole / "part-0.tar": 2})
    counted = Counter(keys(Loader(mix, 1, transform=SMALL, cache=tmp_path / "cache", block_bytes=largest(whole))))
    assert counted == {f"s{n:03}": 3 if n < 5 else 1 for n in range(24)}
    with pytest.raises(RecipeError, match="give a Mix of both"):
        Loader([web.url, whole / "part-0.tar"], 1)


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with moto() as port, pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        plain = {"config_kwargs": {"retries": {"max_attempts": 0}}}
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{port}", **plain})
        store = fsspec.filesystem("s3")
        store.mkdir("sets")
        yield store


def test_a_build_in_a_store(s3: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    datakit.build("opticalrs", data=folder, out=out, work=tmp_path / "work", allow_missing=True, workers=0)
    s3.put(str(out), "sets/rs", recursive=True)
    how: dict[str, Any] = {"transform": mae(32, "dataset"), "columns": ["label"], "block_bytes": 10**9}
    near, far = Loader(out, 16, **how), Loader("s3://sets/rs", 16, cache=tmp_path / "cache", **how)
    assert near.state_dict() == far.state_dict()
    for a, b in zip(near, far, strict=True):
        assert a.keys == b.keys
        assert a.images.equal(b.images)
        assert a.labels == b.labels
    assert near.tars.keys(near.order(1).at(0, 9)) == Loader(
        "s3://sets/rs/index.arrow", 16, cache=tmp_path / "cache", **how
    ).tars.keys(far.order(1).at(0, 9))


def test_tars_in_a_folder_of_a_store(s3: Any, whole: Path, tmp_path: Path) -> None:
    for n in (0, 1):
        s3.put(str(whole / f"part-{n}.tar"), f"sets/plain/a/part-{n}.tar")
    loader = Loader("s3://sets/plain", 1, transform=SMALL, cache=tmp_path / "cache", shuffle=False)
    assert keys(loader) == [f"s{n:03}" for n in range(8)]
    with pytest.raises(SourceError, match=r"s3://sets/none/index\.arrow: not there, and no tars are listed"):
        Loader("s3://sets/none", 1, cache=tmp_path / "cache")


def test_what_servers_told_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    facts = {"s3://a/b": Facts(5, "x")}
    assert cache.told("s3://a", lambda: facts) == facts

    def down() -> dict[str, Facts]:
        raise OSError(110, "asked again and again in vain", "s3://a/b")

    with pytest.warns(UserWarning, match="s3://a: asked again"):
        assert cache.told("s3://a", down) == facts

    def gone() -> dict[str, Facts]:
        raise OSError(2, "no such object", "s3://a/b")

    with pytest.raises(ShardError, match="s3://a/b: no such object"):
        cache.told("s3://a", gone)
