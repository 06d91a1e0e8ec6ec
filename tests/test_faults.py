"""Whatever dies, at whatever moment: the same command again gives the same bytes, and no good image is blamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from worlds import digests, geotiff, recipe_of, scene, work_done, write_recipe

import datakit
from datakit import alone, disk, engine, hand, listing, pipeline, run
from datakit.engine import Guarded, versions
from datakit.errors import StageError
from datakit.folders import STEPS
from datakit.hand import InHand, Limits
from datakit.sample import Sample
from datakit.stages.shards import write_shard
from datakit.status import lines, status

FAULTS = Path(__file__).parent / "faults"
IMAGES = 40
A_PART = 4  # images
RUN = f"""
import sys
import datakit
from datakit import listing
from datakit.errors import DatakitError
listing.PART_IMAGES = {A_PART}
if __name__ == "__main__":
    recipe, data, out, scheduler = sys.argv[1:]
    try:
        datakit.build(recipe, data, out, workers=1, scheduler=scheduler, say=lambda line: print(line, flush=True))
    except DatakitError as exc:
        sys.exit(f"{{type(exc).__name__}}: {{exc}}")
"""


def make_forty(data: Path) -> Path:
    """Forty images in one collection: JPEG, PNG and GeoTIFF, some of them sliced."""
    folder = data / "forty"
    for n in range(IMAGES):
        pixels = scene(n, 150 + 20 * (n % 9), 150 + 15 * (n % 7), ("houses", "port", "river", "forest")[n % 4])
        path = folder / f"class{n % 3}" / f"image{n:02d}.{('jpg', 'jpg', 'png', 'tif')[n % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tif":
            geotiff(path, pixels)
        else:
            Image.fromarray(pixels).save(path)
    return data


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_forty(tmp_path_factory.mktemp("forty"))


@pytest.fixture(scope="module")
def undisturbed(forty: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed build of them leaves. It compiles the kernels, too, for the workers of all tests here."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert datakit.build(recipe_of("forty"), forty, out, workers=0).samples > IMAGES
    return digests(out)


def start(*command: str, **more: Any) -> subprocess.Popen[str]:
    """A process with a group of its own; what it says is thrown away, but for what `more` keeps."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *command], start_new_session=True, text=True, **{**quiet, **more})


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL of all its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Cluster:
    """A scheduler and workers of a user's own, each a process group; and the client that builds with them."""

    def __init__(self, folder: Path, data: Path, workers: int = 2) -> None:
        self.folder, self.data, self.count = folder, data, workers
        self.recipe = write_recipe(folder / "forty.yaml", recipe_of("forty"))
        (folder / "run.py").write_text(RUN)
        self.out = folder / "out"
        self.scheduler: subprocess.Popen[str] | None = None
        self.workers: list[subprocess.Popen[str]] = []
        self.address = ""

    def up(self) -> None:
        """Start what is not running."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            for worker in self.workers:
                kill(worker)
            self.workers = []
            where = self.folder / f"scheduler-{time.time_ns()}.json"
            self.scheduler = start(
                "-m", "distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1",
                "--no-dashboard", "--scheduler-file", str(where),
            )  # fmt: skip
            while not where.exists():
                assert self.scheduler.poll() is None
                time.sleep(0.02)
            time.sleep(0.05)
            self.address = json.loads(where.read_text())["address"]
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < self.count:
            self.workers.append(self.worker())

    def worker(self, *more: str, path: Path | None = None) -> subprocess.Popen[str]:
        """One more worker; modules are looked for at `path` first."""
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder / "dask")]
        before = [str(path), os.environ.get("PYTHONPATH", "")] if path else [os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, before))}
        return start("-m", "distributed.cli.dask_worker", self.address, *options, *more, env=env, cwd=self.folder)

    def client(self) -> subprocess.Popen[str]:
        with (self.folder / "said").open("w") as said:
            script = [str(self.folder / "run.py"), str(self.recipe), str(self.data), str(self.out), self.address]
            return start(*script, stdout=said, stderr=said)

    def files(self) -> int:
        """How many parts and shards are there: the clock of these tests."""
        work = self.out.with_name("out.work")
        parts = sum(1 for step in STEPS for _ in (work / step).glob("*/*.parquet"))
        return parts + sum(1 for _ in self.out.glob("*.tar"))

    def down(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process is not None:
                kill(process)


@pytest.fixture
def cluster(forty: Path, tmp_path: Path) -> Iterator[Cluster]:
    one = Cluster(tmp_path, forty)
    yield one
    one.down()


def kill_one(cluster: Cluster, client: subprocess.Popen[str], who: str) -> None:
    """Kill one process; what the others must do then is asserted here."""
    if who == "client":
        kill(client)
    elif who == "worker":
        kill(cluster.workers[0])
    else:
        assert cluster.scheduler is not None
        kill(cluster.scheduler)
        begin = time.monotonic()
        status = client.wait(timeout=30)
        said = (cluster.folder / "said").read_text()
        assert time.monotonic() - begin < 30
        if status:  # it may have been done with the cluster just then
            assert "StageError" in said, said
            assert "Dask scheduler" in said, said


def storm(cluster: Cluster, truth: dict[str, str], seed: int, kills: int) -> None:
    """Kill this and that at seeded moments until so many are killed; then let the build end, and start it over."""
    dice = random.Random(seed)
    done = 0
    while True:
        cluster.up()
        client = cluster.client()
        while done < kills and client.poll() is None:
            wanted = cluster.files() + dice.randrange(12)
            while client.poll() is None and cluster.files() < wanted:
                time.sleep(0.01)
            time.sleep(dice.random() * 0.05)
            if client.poll() is None:
                who = dice.choice(["client", "worker", "worker", "scheduler"])
                kill_one(cluster, client, who)
                done += 1
                cluster.up()
        status = client.wait(timeout=120)
        if status == 0 and done < kills:  # it came through: from the beginning
            assert digests(cluster.out) == truth
            shutil.rmtree(cluster.out)
            shutil.rmtree(cluster.out.with_name("out.work"))
        elif status == 0:
            return


def test_twenty_kills_of_client_worker_and_scheduler(cluster: Cluster, undisturbed: dict[str, str]) -> None:
    storm(cluster, undisturbed, seed=1, kills=20)
    assert digests(cluster.out) == undisturbed
    assert not list((cluster.out.with_name("out.work") / "blamed").rglob("*.json"))


def test_a_part_that_an_orphan_ends_late_does_no_harm(cluster: Cluster, undisturbed: dict[str, str]) -> None:
    """A worker is stopped in mid-part and loses its scheduler; the build ends without it; then it goes on."""
    data, tmp_path, hands = cluster.data, cluster.folder, cluster.folder / "out.work" / "hands"
    image = data / "forty" / "class0" / "image00.jpg"  # in the hand of the orphan, whose reader waits there
    cluster.data = shutil.copytree(data, tmp_path / "data")
    Image.open(image).save(cluster.data / image.relative_to(data), comment=f"fault:wait:{tmp_path}", quality="keep")
    truth = tmp_path / "truth"
    datakit.build(recipe_of("forty"), cluster.data, truth, workers=0)
    cluster.count = 0
    cluster.up()
    orphan, client = cluster.worker(path=FAULTS), cluster.client()
    while not (tmp_path / "reached").exists():
        time.sleep(0.01)
    (mine,) = (path for path in hands.iterdir() if path.read_bytes().strip(b"\0\n"))
    os.killpg(orphan.pid, signal.SIGSTOP)
    cluster.count = 1
    kill(client)
    assert cluster.scheduler is not None
    kill(cluster.scheduler)
    cluster.workers, cluster.scheduler = [], None
    cluster.up()
    assert cluster.client().wait(timeout=300) == 0
    assert digests(cluster.out) == digests(truth)
    before = digests(hands.parent / "cut")
    mine.touch()  # who found it has removed it: the orphan removes it once more, when it ends its part
    (tmp_path / "gate").touch()
    os.killpg(orphan.pid, signal.SIGCONT)
    begin = time.monotonic()
    while mine.exists():
        assert time.monotonic() - begin < 60
        time.sleep(0.05)
    kill(orphan)
    after = digests(hands.parent / "cut")
    assert before.items() <= after.items(), "what the orphan made is not looked at"
    datakit.build(recipe_of("forty"), cluster.data, cluster.out, workers=0)
    assert digests(cluster.out) == digests(truth)


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_without_datakit_is_refused_by_name(cluster: Cluster, late: bool) -> None:
    """It joins before a build begins, or in the middle of it."""
    (cluster.folder / "none").mkdir()
    (cluster.folder / "none" / "sitecustomize.py").write_text("import sys\nsys.modules['datakit'] = None\n")
    cluster.count = int(late)
    cluster.up()
    if not late:
        cluster.workers.append(cluster.worker(path=cluster.folder / "none"))
    client = cluster.client()
    while late and cluster.files() < 2:
        time.sleep(0.01)
    if late:
        kill(cluster.workers.pop())
        cluster.workers.append(cluster.worker(path=cluster.folder / "none"))
    assert client.wait(timeout=60) == 1
    said = (cluster.folder / "said").read_text()
    assert re.search(r"StageError: the worker at tcp://\S+ cannot do our tasks \(.*datakit", said), said


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--nthreads", "2"), "has 2 threads: start it with --nthreads 1"),
        (("--memory-limit", "300MB"), "may have 300 MB: give it --memory-limit 512MB or more"),
    ],
)
def test_a_worker_that_is_started_otherwise_is_refused(cluster: Cluster, options: tuple[str, ...], why: str) -> None:
    cluster.count = 0
    cluster.up()
    cluster.workers.append(cluster.worker(*options))
    assert cluster.client().wait(timeout=60) == 1
    said = (cluster.folder / "said").read_text()
    assert f"StageError: the worker on {os.uname().nodename} {why}" in said, said


def test_a_worker_with_other_libraries_or_another_disk_is_refused(forty: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"datakit 0\.0\.0"):
        Guarded(str, Limits(), versions=("datakit 0.0.0", *versions()[1:])).check()
    with pytest.raises(StageError, match="does not see"):
        Guarded(str, Limits(), tmp_path / "work" / "tmp" / "token", versions()).check()


@pytest.mark.parametrize("files", [2, 5])  # while a task runs, and while a result is fetched
def test_a_scheduler_that_says_nothing_is_given_up(cluster: Cluster, files: int) -> None:
    cluster.up()
    client = cluster.client()
    while cluster.files() < files:
        time.sleep(0.01)
    assert cluster.scheduler is not None
    os.killpg(cluster.scheduler.pid, signal.SIGSTOP)
    assert client.wait(timeout=120) == 1  # the machine may be busy
    assert "the Dask scheduler does not answer" in (cluster.folder / "said").read_text()


def test_the_first_making_of_a_part_stays(forty: Path, tmp_path: Path) -> None:
    """A worker that was taken for dead ends its part late, and its images went otherwise: nobody sees its bytes."""
    recipe, out, work = recipe_of("forty"), tmp_path / "out", tmp_path / "out.work"
    datakit.build(recipe, forty, out, workers=0)
    (part,) = (work / "cut").rglob("*.parquet")
    (source,) = (work / "slice").rglob("*.parquet")
    before, staged = part.read_bytes(), {path: path.read_bytes() for path in part.parent.glob("*.staged")}
    job = run.Job(recipe.cut, source, part, work, {"forty": forty / "forty"}, frozenset({"unreadable"}))
    mark = hand.image_mark(
        *(pq.read_table(source).column(n)[0].as_py() for n in ("source", "name", "stamp", "file_bytes"))
    )
    alone.write_down(job, InHand("forty", "", mark), alone.Blame("kills_reader", "of another build"))
    assert run.make_part(job).funnel == run.read_done(part).funnel
    assert part.read_bytes() == before
    assert all(path.read_bytes() == data for path, data in staged.items())
    assert len(list(part.parent.glob("*.staged"))) == 2


def test_a_shard_that_an_orphan_ends_late_is_not_put(
    forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its build is gone, and another one with another recipe has written a shard of that name."""
    out, jobs = tmp_path / "out", []
    monkeypatch.setattr(pipeline, "write_shard", lambda job: jobs.append(job) or write_shard(job))
    datakit.build(recipe_of("forty"), forty, out, workers=0)
    datakit.build(recipe_of("forty", subset={"count": 10}), forty, out, workers=0)
    after = digests(out)
    hand.works_for(tmp_path / "out.work" / "tmp" / "of-a-build-that-is-gone")
    try:
        with pytest.raises(StageError, match="the build that it is for has ended"):
            write_shard(jobs[0])
    finally:
        hand.works_for(None)
    assert digests(out) == after


def test_freed_tiles_that_are_cut_otherwise_are_made_anew(forty: Path, tmp_path: Path) -> None:
    """Staged tiles were freed; when they are needed again an image is blamed, and all tiles behind it move."""
    recipe, out, work = recipe_of("forty"), tmp_path / "out", tmp_path / "out.work"
    datakit.build(recipe, forty, out, workers=0, free=True)
    (part,) = (work / "cut").rglob("*.parquet")
    row = pq.read_table(part, columns=["source", "name", "stamp", "file_bytes"]).slice(0, 1).to_pylist()[0]
    job = run.Job(recipe.cut, part, part, work, {})
    alone.write_down(job, InHand("forty", row["name"], hand.image_mark(*row.values())), alone.Blame("kills_reader", ""))
    shutil.rmtree(out)
    with pytest.raises(StageError, match="gave other tiles than before"):
        datakit.build(recipe, forty, out, workers=0)
    datakit.build(recipe, forty, out, workers=0)
    kept = pq.read_table(out / "samples.parquet", columns=["name"]).column("name").to_pylist()
    assert row["name"] not in kept
    datakit.build(recipe, forty, tmp_path / "fresh", work=tmp_path / "fresh.work", workers=0)
    assert len(set(kept)) == IMAGES - 1


def test_nobody_answers(forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CONNECT_S", 1.0)
    with pytest.raises(StageError, match="no Dask scheduler answers there"):
        datakit.build(recipe_of("forty"), forty, tmp_path / "out", scheduler="tcp://127.0.0.1:9")


# Images that no process survives


def bad_jpeg(path: Path, fault: str, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(100 + seed, 200, 170)).save(path, comment=f"fault:{fault}".encode())


@pytest.fixture
def readers_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that are started from now on have readers that break."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setattr(pipeline, "Limits", partial(Limits, clock=2.0))


BAD = {
    "segfault": "kills_reader",
    "leave": "kills_reader",
    "hang": "timed_out",
    "spin": "timed_out",
    "eat": "out_of_memory",
    "lack": "out_of_memory",
}


def test_bad_images_go_by_name_and_good_ones_stay(
    tmp_path: Path, readers_break: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for n, fault in enumerate([*BAD, f"once:{tmp_path / 'flag'}"]):
        kind = fault.partition(":")[0]
        bad_jpeg(data / "forty" / f"{kind}.jpg", fault, n)
        Image.fromarray(scene(n, 160, 190)).save(data / "forty" / f"good{n}.jpg")
    monkeypatch.setattr(listing, "PART_IMAGES", 3)
    recipe = recipe_of("forty")
    recipe = recipe.model_copy(
        update={"sources": (recipe.sources[0].model_copy(update={"max_unreadable_share": 0.45}),)}
    )
    options: dict[str, Any] = {"workers": 2, "memory_bytes": 1_200_000_000, "timeout_s": 3}
    datakit.build(recipe, data, out, **options)
    dropped = pq.read_table(out / "dropped.parquet", columns=["name", "dropped", "detail", "stage"]).to_pylist()
    assert {row["name"]: row["dropped"] for row in dropped} == {f"{kind}.jpg": why for kind, why in BAD.items()}
    assert {row["stage"] for row in dropped} == {"cut"}
    kept = pq.read_table(out / "samples.parquet", columns=["name"]).column("name").to_pylist()
    assert set(kept) == {"once.jpg", *(f"good{n}.jpg" for n in range(7))}
    assert (tmp_path / "flag").exists(), "it killed its reader once, and was not blamed"
    pictures = pq.read_table(out / "pictures.parquet", columns=["dropped"]).column("dropped").to_pylist()
    assert not set(pictures) & set(BAD.values()), "nobody looks at them again"
    told = status(tmp_path / "out.work")
    assert {one["name"]: one["reason"] for one in told[0]["blamed"]} == {f"{k}.jpg": why for k, why in BAD.items()}
    assert told[0]["state"] == "complete"
    assert "segfault.jpg: kills_reader: its process died of SIGSEGV" in "\n".join(lines(told))

    before = digests(out)
    datakit.build(recipe, data, out, **options)
    assert set(work_done(out)) == {"parts_there"}
    assert digests(out) == before

    monkeypatch.delenv("PYTHONPATH")  # the readers are mended
    datakit.build(recipe, data, out, workers=0, retry=["kills_reader", "timed_out"])
    kept = pq.read_table(out / "samples.parquet", columns=["name"]).column("name").to_pylist()
    assert len(set(kept)) == 12
    assert work_done(out)["images_opened"] == 4
    datakit.build(recipe, data, out, workers=0, retry=["out_of_memory"])
    datakit.build(recipe, data, tmp_path / "fresh", workers=0)
    assert digests(out) == digests(tmp_path / "fresh")


def test_nobody_is_blamed_for_what_an_earlier_image_did_to_its_process(
    tmp_path: Path, readers_break: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is short once, and an image that leaves a process in which later ones die; one dies anywhere."""
    data, out = tmp_path / "data", tmp_path / "out"
    faults = [f"short:{tmp_path / 'flag'}", "once:/", "poison", "segfault", "victim", "once:/"]
    for n, fault in enumerate(faults):
        bad_jpeg(data / "forty" / f"image{n}.jpg", fault, n)
    datakit.build(recipe_of("forty"), data, out, workers=1, timeout_s=30)
    assert (tmp_path / "flag").exists()
    assert pq.read_table(out / "dropped.parquet").column("name").to_pylist() == ["image3.jpg"]
    assert pq.read_table(out / "samples.parquet").num_rows == len(faults) - 1
    monkeypatch.delenv("PYTHONPATH")
    datakit.build(recipe_of("forty"), data, out, workers=0, retry=["kills_reader"])
    datakit.build(recipe_of("forty"), data, tmp_path / "fresh", workers=0)
    assert digests(out) == digests(tmp_path / "fresh")


def test_a_part_that_is_made_in_pieces_has_the_same_bytes(
    forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step it is of, and though images are dropped in it."""
    jobs: list[Any] = []
    make, draw = run.make_part, pipeline.draw
    monkeypatch.setattr(run, "make_part", lambda job: jobs.append(job) or make(job))
    monkeypatch.setattr(pipeline, "draw", lambda job: jobs.append(job) or draw(job))
    rules = [{"rule": "smaller_than", "side_px": 200}, {"rule": "dark", "luma_mean": 110}]
    datakit.build(recipe_of("forty", exclude={"rules": rules}), forty, tmp_path / "out", workers=0)
    assert {job.path.parent.parent.name for job in jobs} == {*STEPS, "out.work"}
    for job in jobs:
        before = {path: path.read_bytes() for path in job.path.parent.glob(f"{job.path.stem}.*")}
        for path in before:
            path.unlink()
        with disk.aside(job.work) as aside:
            job = replace(job, aside=aside) if hasattr(job, "aside") else job
            task, images = (draw if hasattr(job, "aside") else make), job.images()
            pieces = [job.only(some, aside) for some in (images[:3], images[3:4], images[4:]) if some]
            for piece in pieces:
                task(piece)
            task(job.joined([piece.path for piece in pieces]))
        assert {path: path.read_bytes() for path in job.path.parent.glob(f"{job.path.stem}.*")} == before


def test_too_many_unreadable_images_stop_the_build_with_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "forty"
    folder.mkdir(parents=True)
    for n in range(6):
        Image.fromarray(scene(n, 160, 190)).save(folder / f"good{n}.jpg")
    for n in range(4):
        (folder / f"bad{n}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture".ljust(50_000))
    recipe = recipe_of("forty")
    strict = recipe.model_copy(
        update={"sources": (recipe.sources[0].model_copy(update={"max_unreadable_share": 0.3}),)}
    )
    with pytest.raises(StageError, match=r"4 of 10 images could not be read \(40.0%\).*30.0%:\n  forty: bad0.jpg: unr"):
        datakit.build(strict, tmp_path / "data", tmp_path / "out", workers=0)
    told = status(tmp_path / "out.work")[0]
    assert told["state"] == "failed"
    assert "bad3.jpg" in told["error"]
    assert datakit.build(recipe, tmp_path / "data", tmp_path / "out", workers=0).samples == 6
    for n in range(4):  # mended, and as if at the same moment
        path = folder / f"bad{n}.jpg"
        stamp = path.stat().st_mtime_ns
        Image.fromarray(scene(20 + n, 160, 190)).save(path)
        path.write_bytes(path.read_bytes().ljust(50_000, b"\0"))
        os.utime(path, ns=(stamp, stamp))
    assert datakit.build(recipe, tmp_path / "data", tmp_path / "out", workers=0).samples == 6
    again = datakit.build(recipe, tmp_path / "data", tmp_path / "out", workers=0, retry=["unreadable"])
    assert again.samples == 10
    datakit.build(recipe, tmp_path / "data", tmp_path / "fresh", workers=0)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")
    assert status(tmp_path / "out.work")[0]["state"] == "complete"


def test_status_tells_which_of_two_builds_is_running(forty: Path, tmp_path: Path) -> None:
    """Both use one work folder; one was ended from outside."""
    work, told = tmp_path / "work", []
    datakit.build(recipe_of("forty"), forty, tmp_path / "one", work, workers=0)
    (tmp_path / "one" / "manifest.json").unlink()
    say = lambda line: told.append({Path(one["out"]).name: one["state"] for one in status(work)})  # noqa: E731
    datakit.build(recipe_of("forty"), forty, tmp_path / "two", work, workers=0, say=say)
    assert told[-1] == {"one": "stopped", "two": "running"}
    (tmp_path / "one").rename(tmp_path / "gone")
    assert {one["state"] for one in status(work)} == {"stopped", "complete"}


def test_a_drop_that_is_final_is_not_tried_again(forty: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="such a drop is final; give unreadable, label_unreadable, kills_reader"):
        datakit.build(recipe_of("forty"), forty, tmp_path / "out", workers=0, retry=["flat"])


def test_what_a_dead_process_had_in_hand_is_known(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    part, sample = tmp_path / "cut" / "spec" / "forty-0_0-abc.parquet", Sample(source="forty", name="a.jpg")
    with hand.working(part, tmp_path):
        assert list(hand.left(part, tmp_path).values()) == [None]
        with hand.holding(sample):
            assert list(hand.left(part, tmp_path).values()) == [InHand("forty", "a.jpg", hand.mark_of(sample))]
        assert list(hand.left(part, tmp_path).values()) == [None]
    assert hand.left(part, tmp_path) == {}


def test_compiling_is_no_time_of_the_image_in_hand(tmp_path: Path) -> None:
    """Where no cache can be written each process compiles, at the first image that it reads."""
    code = """
import sys
from pathlib import Path
import numpy as np
from datakit import hand, measure
from datakit.sample import Sample
part, work = Path(sys.argv[1], "cut", "spec", "a.parquet"), Path(sys.argv[1])
with hand.working(part, work, hand.Limits(cpu_s=1.0, clock=2.0)), hand.holding(Sample()):
    measure.measure(np.zeros((64, 64, 3), np.uint8), None)
    measure.sign(np.zeros((64, 64, 3), np.uint8))
    print("measured", flush=True)
    while len(sys.argv) > 2:
        pass
"""
    fresh = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=fresh)
    assert (done.returncode, done.stdout) == (0, "measured\n"), done
    (tmp_path / "numba").rename(tmp_path / "gone")
    spins = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "spin"], capture_output=True, text=True, env=fresh
    )
    assert (spins.returncode, spins.stdout) == (-signal.SIGPROF, "measured\n"), "what was left of its time counts on"


def killed(item: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_killed_from_outside_again_and_again_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(alone, "KILLS", 2)
    job = pipeline.Job(None, tmp_path, tmp_path / "cut" / "spec" / "part.parquet", tmp_path, {})  # type: ignore[arg-type]
    with pytest.raises(StageError, match=r"forty: a.jpg: its process was ended 2 times: SIGKILL. Is there too little"):
        alone.carefully(killed, Limits(), job, {tmp_path / "hand": InHand("forty", "a.jpg", "mark")})
    with pytest.raises(StageError, match="3 processes in a row died on it, with no image in hand"):
        alone.carefully(killed, Limits(), job, {})
    assert not (tmp_path / "blamed").exists()


GROUPS = {  # of a job in a container, by version of cgroups: limit, usage and cache of it, and of what it is in
    "0::/job/step\n": ("", "memory.max", "memory.current", "inactive_file"),
    "4:cpu:/x\n3:memory:/job/step\n0::/\n": (
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("line", GROUPS)
def test_what_is_left_of_the_memory_of_a_container(tmp_path: Path, line: str) -> None:
    top, limit, usage, cached = GROUPS[line]
    (tmp_path / "mine").write_text(line)
    assert alone.room_bytes(tmp_path, tmp_path / "mine") == 0
    for folder, most in (("job", "1000"), ("job/step", "max" if not top else str(1 << 62))):
        group = tmp_path / top / folder
        group.mkdir(parents=True)
        (group / limit).write_text(f"{most}\n")
        (group / usage).write_text("700\n")
        (group / "memory.stat").write_text(f"anon 600\n{cached} 50\n")
    assert alone.room_bytes(tmp_path, tmp_path / "mine") == 350
    assert alone.room_bytes(tmp_path, tmp_path / "nothing") == 0


def test_memory_that_a_container_lacks_is_an_error_of_the_image() -> None:
    """Before the kernel ends the container, and the worker that would tell with it."""
    code = f"""
from datakit import alone
alone.fail_first({10**9}, {3 * 10**8})
held = bytes(2 * 10**8)
try:
    bytes(2 * 10**8)
except MemoryError:
    print("no more")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "no more\n"


# Disks


class Disk:
    """A folder on a disk of its own; where none may be mounted, writing to it fails as on a full one."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.used, self.most = folder, 0, 0
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
        self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        if not self.mounted:
            patch.setattr(disk, "sync", self.sync)
            patch.setattr("datakit.run.sync", self.sync)

    def grow(self, most_bytes: int) -> None:
        self.most, self.used = most_bytes, 0
        if self.mounted:
            subprocess.run(["mount", "-o", f"remount,size={most_bytes}", str(self.folder)], check=True)

    def sync(self, path: Path) -> None:
        self.used += path.stat().st_size
        if self.used > self.most:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    folder = tmp_path / "small"
    folder.mkdir()
    small = Disk(folder, monkeypatch)
    yield small
    if small.mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_build_and_leaves_no_half_file(
    small_disk: Disk, forty: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_disk.folder / "out"
    monkeypatch.setattr(listing, "PART_IMAGES", A_PART)
    for most_bytes in (200_000, 600_000, 1_400_000, 2_600_000):
        small_disk.grow(most_bytes)
        with pytest.raises(StageError, match=r"the disk is full: free some space: .*Then run the same command again"):
            datakit.build(recipe_of("forty"), forty, out, workers=0)
        assert not (out / "manifest.json").exists()
        for part in (small_disk.folder / "out.work").glob("*/**/*.parquet"):
            pq.read_table(part)
        assert not list((small_disk.folder / "out.work" / "tmp").glob("*"))
    small_disk.grow(100_000_000)
    datakit.build(recipe_of("forty"), forty, out, workers=0)
    assert work_done(out)["parts_there"] > 10
    assert digests(out) == undisturbed


def test_a_source_that_vanishes_stops_the_build_and_blames_no_image(
    forty: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PART_IMAGES", A_PART)
    data = shutil.copytree(forty, tmp_path / "data")

    def vanish(line: str) -> None:
        if line.startswith("cut: 1 of"):
            (data / "forty").rename(data / "gone")

    recipe, out = recipe_of("forty"), tmp_path / "out"
    with pytest.raises(StageError, match=r"forty.*Then run the same command again"):
        datakit.build(recipe, data, out, workers=0, say=vanish)
    (data / "gone").rename(data / "forty")
    datakit.build(recipe, data, out, workers=0)
    assert digests(out) == undisturbed


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_two_hundred_kills(cluster: Cluster, undisturbed: dict[str, str], seed: int) -> None:
    storm(cluster, undisturbed, seed=100 + seed, kills=20)
    assert digests(cluster.out) == undisturbed
