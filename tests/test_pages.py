"""README.md and docs/ as a reader runs them, page by page, each from a folder of its own. See pages.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import given
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from pages import ROOT, Block, Reader, blocks, own, pages, understood
from PIL import Image
from servers import moto
from worlds import make_world, recipe_of

import datakit
from datakit import dng
from datakit import ids as mask_ids
from datakit.errors import DatakitError
from datakit.evaluate.imagenet_s import write_prediction
from datakit.raw import RawImage
from datakit.recipe import Recipe
from datakit.stream import Overlay

NOT_RUN = {  # each has its reason: what it needs is on no machine that tests run on
    ("docs/browsing.md", "sh", "needs another machine"),
    ("docs/clusters.md", "python", "needs SLURM"),
    ("docs/clusters.md", "python", "needs Kubernetes"),
    ("docs/training.md", "sh", "needs 8 GPUs"),
}
SMALL = {"batch_size=256": "batch_size=4", ", 256,": ", 4,", "mae()": "mae(32)", ", 32,": ", 4,"}
CHANGES = {  # texts of a page, and what stands for them here
    "README.md": SMALL,
    "docs/camera_raw.md": {"PHOTOS": "FOLDER/aodraw/images", '"OUT", 8': '"OUT", 2'},
    "docs/clusters.md": {
        "HOST": "127.0.0.1",
        "0.0.0.0": "127.0.0.1",
        " /shared": " shared",
        "--nworkers 16": "--nworkers 1",
    },
    "docs/evaluating.md": {"step-000390625": "step-000000004", "--seeds 5": "--seeds 2"},
    "docs/cards.md": {"256, transform=mae()": "4, transform=mae(32)"},
    "docs/imagenet_s.md": SMALL,
    "docs/loading.md": SMALL | {"/nvme": "nvme", "--step 1234": "--step 1", "--batch-size 256": "--batch-size 4"},
    "docs/models.md": {'"vit_b"': '"vit_s"', "(8, 3": "(2, 3"},
    "docs/pretraining.md": SMALL | {"step-000093600": "step-000000002", "00012": "00001", "epoch(12)": "epoch(1)"},
    "docs/resuming.md": {"step-000000750": "step-000000002", "--memory 16GB --workers 8": "--memory 2GB"},
    "docs/training.md": SMALL,
}
PHOTO = "FOLDER/aodraw/images/00000004.dng"


@dataclass(frozen=True)
class World:
    """What is made once: a home, two sets with their work folders, and a run."""

    home: Path
    scenes: Path
    classes: Path
    run: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    top = tmp_path_factory.mktemp("world")
    made = World(top / "home", top / "scenes", top / "classes", top / "run")
    given.home(made.home)
    recipe = str(ROOT / "recipes/opticalrs_files.yaml")
    own(["build", recipe, "--data", str(made.home / "scenes"), "--out", str(made.scenes)])
    labels = "sources.0.collection.layout={images: ['**/*.jpg'], labels: [{kind: class_folders}]}"
    own(["build", recipe, "--data", str(made.home / "AID"), "--out", str(made.classes), "--set", labels])
    own(["pretrain", "tiny", "--data", str(made.scenes), "--out", str(made.run)], "prune={}", "budget={samples: 24}")
    return made


@pytest.fixture(scope="module")
def bucket(world: World) -> Iterator[None]:
    """A store that speaks S3, with the scenes and the set that they became."""
    with moto() as port, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "key")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{port}"})
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        store.put(str(world.home / "scenes"), "bucket/scenes", recursive=True)
        store.put(str(world.scenes), "bucket/sets/rs", recursive=True)
        yield


def sets(world: World, **places: str) -> None:
    """Copies of what is made once: of which kind, at which places."""
    for kind, names in places.items():
        for name in names.split():
            shutil.copytree(getattr(world, kind), name)


def masks(world: World) -> None:
    """Predictions for the look-alike of ImageNet-S: the published masks; and masks of one class, to add."""
    (archive,) = Path("look/annotations").glob("ImageNetS50-*.zip")
    zipfile.ZipFile(archive).extractall("unpacked")
    there = Path("unpacked/ImageNetS50/validation-segmentation")
    for path in there.rglob("*.png"):
        ids = mask_ids.decode(path.read_bytes())
        write_prediction(np.where(ids == 1000, 0, ids), Path("predictions") / path.relative_to(there))
    shutil.copytree("look/truth/ImageNetS50/test-segmentation", "test_predictions")
    for path in Path("look/imagenet/train/n01443537").iterdir():
        write_prediction(np.ones((4, 4), int), Path("pseudo_labels") / f"{path.stem}.png")


def detections(world: World) -> None:
    """Detections on AODRaw: its own boxes."""
    coco = json.loads(Path("OUT/aodraw-test.coco.json").read_text())
    names = ("image_id", "category_id", "bbox")
    found = [{**{name: note[name] for name in names}, "score": 0.9} for note in coco["annotations"]]
    Path("results.json").write_text(json.dumps(found))


def teacher(world: World) -> None:
    """Shards, weights of a small teacher, and photos of which the noise can be told."""
    torch.save(timm.create_model("convnext_atto").state_dict(), "teacher.pt")
    sets(world, scenes="shards/scenes shards/imagenet", run="runs/scenes")
    (Path.home() / "photos").mkdir()
    told = dng.encode(RawImage(np.full((64, 64), 900, np.uint16), (512.0,) * 4, 16383, "RGGB", iso=800), (8e-3, 1e-4))
    (Path.home() / "photos/a.dng").write_bytes(told)


def masked(world: World) -> None:
    """Sets of tiles, and one to which masks were added."""
    sets(world, scenes="shards/scenes shards/masked", classes="shards/others")
    for row in pq.read_table("shards/masked/samples.parquet", columns=["key", "width", "height"]).to_pylist():
        Path("masks").mkdir(exist_ok=True)
        Image.new("L", (row["width"], row["height"]), 1).save(f"masks/{row['key']}.png")
    own(["add-column", "shards/masked", "seg.png", "--from", "masks"])


def licensed(world: World) -> None:
    """A set under two licences, and overlays of it."""
    make_world(Path("data"))
    plain = recipe_of("classes", "scenes").model_dump(mode="json")
    plain["sources"][1]["collection"]["licence"] = "CC0-1.0"
    datakit.build(Recipe.model_validate(plain), data=Path("data"), out="shards/scenes", workers=0)
    ids = pq.read_table("shards/scenes/samples.parquet").column("id").to_pylist()
    Overlay.write("clouds.parquet", "drop", ids[:2])
    Overlay.write("rare.parquet", "weight", ids[2:4], [2.5, 0.5])


def decided(world: World) -> None:
    """A set, and a person's decision on a picture that it left out."""
    sets(world, scenes="shards/scenes")
    key = pq.read_table("shards/scenes/dropped.parquet", columns=["key"])["key"][0].as_py()
    Path("decisions.json").write_text(json.dumps({"format": 1, "keep": [{"key": key}]}))


Step = Callable[[World], object]
GIVEN: dict[str, Step] = {  # what lies in the folder before a page begins
    "docs/adding_a_collection.md": lambda world: given.harbours(),
    "docs/browsing.md": lambda world: sets(world, scenes="shards/scenes"),
    "docs/cards.md": licensed,
    "docs/checking.md": lambda world: sets(world, scenes="shards/scenes tars"),
    "docs/clusters.md": lambda world: shutil.copytree(world.home / "scenes", "shared/scenes"),
    "docs/evaluating.md": lambda world: sets(world, run="runs/scenes", classes="shards/resisc45"),
    "docs/loading.md": lambda world: sets(world, scenes="sets/rs", classes="sets/tars sets/other"),
    "docs/places.md": masked,
    "docs/pretraining.md": teacher,
    "docs/report.md": decided,
    "docs/training.md": lambda world: sets(world, scenes="shards/scenes"),
}
BEFORE: dict[tuple[str, str], Step] = {  # what is made before the block that has this text
    ("docs/camera_raw.md", 'raw.read("a.dng")'): lambda world: shutil.copy(PHOTO, "a.dng"),
    ("docs/camera_raw.md", "--dt results.json"): detections,
    ("docs/imagenet_s.md", "add-column"): masks,
}
LEFT: dict[str, tuple[str, ...]] = {  # what a reader finds in the folder afterwards
    "README.md": ("shards/scenes/index.arrow", "runs/tiny/export"),
    "docs/your_own_folders.md": ("shards/scenes/samples.parquet", "shards/mine/manifest.json"),
    "docs/adding_a_collection.md": ("drafts/harbours.yaml", "shards/harbours/manifest.json"),
    "docs/adding_a_rule.md": ("shards/green/manifest.json", "shards/contrast/manifest.json"),
    "docs/camera_raw.md": ("OUT/aodraw-test.coco.json", "OUT3/index.arrow", "OUT4/index.arrow", "DATA_ROOT"),
    "docs/clusters.md": ("shared/out/manifest.json",),
    "docs/report.md": ("shards/scenes/report.html", "scenes.html", "shards/scenes/decisions.json"),
    "docs/places.md": ("tiles.parquet", "out/yolo/data.yaml", "pairs.parquet"),
    "docs/pretraining.md": ("backbone/backbone.pth",),
    "docs/training.md": ("runs/tiny/export", "runs/scenes/export"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset
@pytest.mark.parametrize("page", [page for page in pages() if any(b.kind not in ("", "text") for b in blocks(page))])
def test_a_page_runs(
    page: str,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    one_thread: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    shutil.copytree(world.home, "home")
    for path in world.home.glob("*.txt"):
        shutil.copy(path, ".")
    if any("s3://" in block.text for block in blocks(page)):
        request.getfixturevalue("bucket")
    GIVEN.get(page, lambda world: None)(world)
    with Reader(changes_of(page)) as reader:
        for block in blocks(page):
            for step in (step for (of, text), step in BEFORE.items() if of == page and text in block.text):
                step(world)
            if not block.untested:
                reader.run(block)
    for name in LEFT.get(page, ()):
        assert Path(name).exists(), name


def changes_of(page: str) -> dict[str, str]:
    """Texts of a page, and what stands for them here: a port that is free and a key that there is, too."""
    changes = dict(CHANGES.get(page, {}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        changes["8786"] = str(free.getsockname()[1])
    if Path("shards/scenes").exists():
        changes[" KEY "] = f" {pq.read_table('shards/scenes/samples.parquet')['key'][0].as_py()} "
    return changes


def test_what_is_not_run_is_this_and_is_understood() -> None:
    found = {(page, b.kind, b.untested): understood(b) for page in pages() for b in blocks(page) if b.untested}
    assert found.keys() == NOT_RUN
    assert all(count for (_, kind, _), count in found.items() if kind == "sh")


def test_no_block_hides_what_it_is() -> None:
    """Commands and code stand in blocks that are run: not in those without a word, and not in indented ones."""
    for page in pages():
        for block in blocks(page):
            assert block.kind in ("sh", "python", "yaml", "text", "diff", ""), f"{page}:{block.line}: {block.kind}"
            if not block.kind:
                found = re.search(r"^(\S*datakit [a-z]|import |from \S+ import |make )", block.text, re.MULTILINE)
                assert not found, f"{page}:{block.line}"
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"^\n {4}\S", text, re.MULTILINE), f"{page}: an indented block"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name


def test_links_lead_somewhere() -> None:
    for page in [*pages(), "CONTRIBUTING.md"]:
        for link, part in re.findall(r"\]\(([^):#]*)(#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
            target = (ROOT / page).parent / link if link else ROOT / page
            assert target.exists(), f"{page}: {link}"
            assert not part or part[1:] in headings(target), f"{page}: {link}{part}"


def headings(path: Path) -> set[str]:
    """What a page's headings are linked by, as GitHub makes it of them."""
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("sh", "datakit check nowhere.yaml\n"),
        ("sh", "datakit bluid recipes/opticalrs.yaml\n"),
        ("sh", "false\n"),
        ("sh", "make nothing_of_this_name\n"),
        ("python", "import datakit\ndatakit.nothing\n"),
        ("yaml", "slice: {gird: {size_px: 3}}\n"),
        ("text", "something else\n"),
        ("diff", "--- a/datakit/rules.py\n+++ b/datakit/rules.py\n@@ -1 +1 @@\n-no such line\n+a line\n"),
    ],
)
def test_a_page_that_says_what_is_not_so_fails(
    kind: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, AttributeError, DatakitError, SystemExit)):
        Reader({}).run(Block("page", 1, kind, text))
