"""CNN signatures against imagededup's own, with weights drawn at random, and stars against a search one by one."""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from worlds import SHARED, make_world, recipe_of, scene, work_done

import datakit
from datakit import image, listing, semantic
from datakit.errors import StageError
from datakit.sample import from_table, make_key
from datakit.semantic import Model, encoder, keep_stars_cosine, load, vector_files, vectors_of, weights_file
from datakit.staging import StagedFiles

SMALL: Model = "mobilenet_v3_small"
PHOTOS = SHARED / "dedup"
NAMES = ("classes", "scenes", "trouble")


def draw_weights(model: Model, seed: int = 0) -> Path:
    """Random weights where torch hub looks for those of a model."""
    import torch
    import torchvision.models

    torch.set_num_threads(2)
    torch.manual_seed(seed)
    file, _ = weights_file(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    more = {"image_size": 384} if model == "vit_b_16" else {}  # of the weights that imagededup asks for
    torch.save(getattr(torchvision.models, model)(weights=None, **more).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A hub folder with weights of the small model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # imagededup leaves TF32 on there: 1e-3
        yield draw_weights(SMALL)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A hub folder with nothing in it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return monkeypatch


def pictures() -> list[NDArray[np.uint8]]:
    return [scene(n, 150 + 40 * n, 130 + 25 * n, kind) for n, kind in enumerate(("houses", "river", "port", "coast"))]


# The encoder


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, datakit.semantic; print({'torch', 'torchvision', 'imagededup'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "efficientnet_b4", "vit_b_16"])
def test_vectors_are_imagededups(hub: Path, model: Model) -> None:
    some = pictures()[: {"efficientnet_b4": 2, "vit_b_16": 1}.get(model, 4)]
    if model != SMALL:
        draw_weights(model)
    encode = encoder(model, batch=len(some))
    vectors = encode(some)
    assert vectors.shape == (len(some), semantic.MODELS[model].dims)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for picture, vector in zip(some, vectors, strict=True):
        peer = encode.cnn.encode_image(image_array=picture)[0]
        assert np.allclose(vector, peer / np.linalg.norm(peer), atol=1e-5)
    if model != SMALL:
        weights_file(model)[0].unlink()  # 75 and 330 MB


def test_a_picture_has_one_vector_whatever_lies_beside_it(hub: Path) -> None:
    encode, some = encoder(SMALL), pictures()
    vectors = encode(some * 5)  # 20: two batches and a half
    assert np.array_equal(vectors, np.tile(vectors[:4], (5, 1)))
    assert np.array_equal(encode(some[::-1]), vectors[3::-1])
    assert np.array_equal(np.concatenate([encode([picture]) for picture in some]), vectors[:4])
    for batch in (1, 3, 7):
        assert np.abs(encoder(SMALL, batch)(some) - vectors[:4]).max() < 1e-5
    assert len({vector.tobytes() for vector in vectors}) == 4


def test_pictures_of_every_mode_and_none(hub: Path) -> None:
    encode = encoder(SMALL)
    shown = Image.fromarray(pictures()[0])
    plain = encode([shown, shown.convert("RGBA"), np.asarray(shown)])
    assert np.array_equal(plain, plain[[0, 0, 0]])
    gray = shown.convert("L")
    assert np.array_equal(encode([gray]), encode([np.repeat(np.asarray(gray)[:, :, None], 3, axis=2)]))
    assert encode([shown.quantize(16)]).shape == (1, 576)
    assert encode([]).shape == (0, 576)


def test_it_says_nothing(hub: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    import logging

    encoder(SMALL)(pictures())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.root.manager.disable == 0


@pytest.mark.skipif(not PHOTOS.exists(), reason="no shared photographs")
def test_photographs_get_the_vectors_of_encode_images(hub: Path) -> None:
    encode = encoder(SMALL)
    peers = encode.cnn.encode_images(PHOTOS)  # leaves out what cannot be read
    vectors = encode([Image.open(PHOTOS / name) for name in peers])
    theirs = np.stack(list(peers.values()))
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert len(peers) >= 10
    assert np.abs(vectors - theirs).max() < 1e-5


# Weights


def url_of(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Where torchvision looks for the small model's weights."""
    from torchvision.models import MobileNet_V3_Small_Weights

    monkeypatch.setattr(MobileNet_V3_Small_Weights.IMAGENET1K_V1.value, "url", url)


def test_weights_are_downloaded_and_checked(
    hub: Path, tmp_path: Path, no_hub: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sha256 = hashlib.sha256(hub.read_bytes()).hexdigest()
    for name in (f"small-{sha256[:8]}.pth", "small-00000000.pth"):
        shutil.copy(hub, tmp_path / name)
    url_of(no_hub, (tmp_path / "small-00000000.pth").as_uri())
    with pytest.raises(StageError, match="invalid hash"):
        encoder(SMALL)
    url_of(no_hub, (tmp_path / f"small-{sha256[:8]}.pth").as_uri())
    before = vector_files([Path("a.parquet")], tmp_path, SMALL)
    assert encoder(SMALL)(pictures()).shape == (4, 576)
    assert weights_file(SMALL)[0].read_bytes() == hub.read_bytes()
    assert vector_files([Path("a.parquet")], tmp_path, SMALL) == before
    assert capfd.readouterr() == ("", "")


def test_missing_weights_say_which_file_belongs_where(tmp_path: Path, no_hub: pytest.MonkeyPatch) -> None:
    url_of(no_hub, (tmp_path / "nowhere" / "mobilenet_v3_small-047dcff4.pth").as_uri())
    where = tmp_path / "torch" / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    with pytest.raises(StageError, match="cannot be downloaded") as told:
        encoder(SMALL)
    assert f"nowhere/mobilenet_v3_small-047dcff4.pth at {where}" in str(told.value)
    assert "signature: phash" in str(told.value)


def test_the_weights_have_the_names_that_torchvision_gives() -> None:
    urls = {model: weights_file(model)[1] for model in semantic.MODELS}  # type: ignore[arg-type]
    assert urls[SMALL] == "https://download.pytorch.org/models/mobilenet_v3_small-047dcff4.pth"
    assert all(f"/{model}" in url for model, url in urls.items())


class Harm:
    """What a pickle may do."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize("damage", ["short", "flipped", "empty", "code", "another"])
def test_damaged_weights_are_named(hub: Path, tmp_path: Path, no_hub: pytest.MonkeyPatch, damage: str) -> None:
    import torch

    file, good = weights_file(SMALL)[0], hub.read_bytes()
    file.parent.mkdir(parents=True)
    middle = len(good) // 2
    flipped = good[:middle] + bytes(255 - b for b in good[middle : middle + 64]) + good[middle + 64 :]
    contents = {"short": good[:middle], "flipped": flipped, "empty": b"", "code": pickle.dumps(Harm())}
    file.write_bytes(contents.get(damage, b""))
    if damage == "another":
        torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    no_hub.chdir(tmp_path)
    with pytest.raises(StageError, match="damaged or of another model") as told:
        encoder(SMALL)
    assert str(file) in str(told.value)
    assert not Path("harmed").exists()


# Vectors of parts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a build."""
    out = tmp_path_factory.mktemp("built") / "out"
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0, say=quiet)
    return out.with_name("out.work")


def quiet(_: str) -> None: ...


def measured(work: Path) -> list[Path]:
    return sorted((work / "measured").rglob("*.parquet"))


def test_every_kept_tile_gets_its_vector_once(hub: Path, built: Path) -> None:
    parts, said = measured(built), list[str]()
    files = vectors_of(parts, built, SMALL, said.append)
    assert files == vector_files(parts, built, SMALL)
    assert [file.stem for file in files] == [part.stem for part in parts]
    assert len({file.parent for file in files}) == 1
    assert f"{len(parts)} of {len(parts)} parts on the cpu" in said[-1]
    assert "not those that torchvision gives" in said[0]
    keys, vectors = load(files)
    kept = [s for part in parts for s in from_table(pq.read_table(part)) if not s.dropped]
    assert keys.to_pylist() == [s.key for s in kept]
    with StagedFiles(built) as staged:
        tiles = [image.decode(staged.read(s)) for s in kept]
    assert np.array_equal(vectors, encoder(SMALL)(tiles).astype(np.float16))
    before = {file: file.stat().st_mtime_ns for file in files}
    assert vectors_of(parts, built, SMALL, said.append) == files
    assert {file: file.stat().st_mtime_ns for file in files} == before
    files[0].unlink()
    vectors_of(parts, built, SMALL, said.append)
    assert said[-1].startswith("cnn: 1 of 1 parts")
    assert np.array_equal(load(files)[1], vectors)
    assert not list((built / "tmp").iterdir())


def test_a_vector_does_not_depend_on_the_part(
    hub: Path, world: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PART_IMAGES", 1)
    datakit.build(recipe_of(*NAMES), data=world, out=tmp_path / "out", workers=0, say=quiet)
    work = tmp_path / "out.work"
    found = []
    for folder in (built, work):
        keys, vectors = load(vectors_of(measured(folder), folder, SMALL, quiet))
        found.append({key: vector.tobytes() for key, vector in zip(keys.to_pylist(), vectors, strict=True)})
    assert len(measured(work)) > len(measured(built))
    assert found[0] == found[1]


def test_other_weights_have_other_files(hub: Path, built: Path, no_hub: pytest.MonkeyPatch) -> None:
    first = vector_files(measured(built), built, SMALL)
    draw_weights(SMALL, seed=1)
    second = vector_files(measured(built), built, SMALL)
    assert not set(first) & set(second)
    assert not set(second) & set(vector_files(measured(built), built, "vit_b_16"))


def test_a_part_with_nothing_kept_has_no_vectors(hub: Path, built: Path, tmp_path: Path) -> None:
    whole = pq.read_table(measured(built)[0])
    pq.write_table(whole.filter(pc.not_equal(whole.column("dropped"), "")), tmp_path / "none.parquet")
    keys, vectors = load(vectors_of([tmp_path / "none.parquet"], tmp_path, SMALL, quiet))
    assert len(keys) == 0
    assert vectors.shape == (0, 576)
    assert pa.types.is_fixed_size_list(pq.read_schema(next(tmp_path.rglob("cnn/*/none.parquet"))).field("vector").type)


def test_freed_tiles_are_asked_for(hub: Path, world: Path, built: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.work"
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0, free=True, say=quiet)
    with pytest.raises(StageError, match="without --free"):
        vectors_of(measured(work), work, SMALL, quiet)
    for folder in (work / "cut").iterdir():  # as it says
        shutil.rmtree(folder)
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0, say=quiet)
    assert len(load(vectors_of(measured(work), work, SMALL, quiet))[0]) > 5


def test_damaged_tiles_are_named(hub: Path, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "work")
    parts = measured(tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "cnn", ignore_errors=True)
    staged = next((tmp_path / "work" / "cut").rglob("classes-*.staged"))
    staged.write_bytes(bytes(staged.stat().st_size))
    with pytest.raises(StageError, match=r"classes-.*\.staged: classes-.*not an image"):
        vectors_of(parts, tmp_path / "work", SMALL, quiet)
    assert not list((tmp_path / "work" / "cnn").rglob("classes-*"))


# Stars


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)


def cosines(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """All cosines, from whole numbers: each is off by less than three roundings of float64."""
    whole = [[round(float(x) * 2**24) for x in row] for row in vectors]
    dot = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in whole] for a in whole]
    n = range(len(whole))
    return np.array([[dot[i][j] / math.sqrt(dot[i][i] * dot[j][j]) for j in n] for i in n]).reshape(len(n), len(n))


def one_by_one(
    cosine: NDArray[np.float64], least: float, agrees: NDArray[np.bool_], flat: NDArray[np.bool_], digest: NDArray[Any]
) -> tuple[list[int], list[float]]:
    star: list[int] = []
    for row in range(len(cosine)):
        if flat[row]:
            same = [r for r in range(row) if flat[r] and np.array_equal(digest[r], digest[row])]
        else:
            near = [r for r in range(row) if not flat[r] and star[r] == r and cosine[row, r] >= least]
            same = [r for r in near if agrees[r, row]]
        star.append(same[0] if same else row)
    return star, [1.0 if flat[r] or s == r else cosine[r, s] for r, s in enumerate(star)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_stars_are_those_of_a_search_one_by_one(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, dims, groups = data.draw(st.tuples(st.integers(0, 40), st.integers(1, 24), st.integers(1, 5)))
    noise = data.draw(st.sampled_from([0.0, 0.01, 0.2]))
    rows = rng.standard_normal((groups, dims))[rng.integers(0, groups, n)] + noise * rng.standard_normal((n, dims))
    vectors = unit(rows).astype(data.draw(st.sampled_from([np.float16, np.float32])))
    cosine = cosines(vectors)
    edges = [0.95, 0.5, -1.0, 1.0, *cosine[rng.random(cosine.shape) < 0.02].tolist()]  # some pairs lie just at it
    least = min(1.0, data.draw(st.sampled_from(edges)))
    agrees = rng.random((n, n)) < data.draw(st.sampled_from([1.0, 0.7, 0.2]))
    flat = rng.random(n) < data.draw(st.sampled_from([0.0, 0.3]))
    digest = rng.integers(0, 3, data.draw(st.sampled_from([(n,), (n, 2)]))).astype(np.uint64)
    wanted = one_by_one(cosine, least, agrees, flat, digest)

    def agree(kept: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.bool_]:
        assert (kept < row).all()
        return agrees[kept, row]

    for block in (1, 2, 5, 1024):
        star, found = keep_stars_cosine(vectors, least, agree, flat, digest, block=block)
        assert (star.dtype, found.dtype) == (np.int64, np.float32)
        assert star.tolist() == wanted[0]
        assert np.allclose(found, wanted[1], atol=1e-7)


@pytest.mark.parametrize("dims", [2, 3, 576, 1792])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_threshold_is_met_to_the_last_digit(dims: int, kind: type[np.floating[Any]]) -> None:
    rng = np.random.default_rng(dims)
    vectors = unit(1 + 0.3 * rng.standard_normal((2, dims))).astype(kind)
    least = float(cosines(vectors)[0, 1])
    assert keep_stars_cosine(vectors, least)[0].tolist() == [0, 0]
    assert keep_stars_cosine(vectors, np.nextafter(least, 2))[0].tolist() == [0, 1]
    assert keep_stars_cosine(vectors[[0, 0]], 1.0)[0].tolist() == [0, 0]


def test_many_rows_give_the_same_stars_in_blocks_of_any_size() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((300, 64))[rng.integers(0, 300, 3000)] + 0.2 * rng.standard_normal((3000, 64))
    vectors = unit(rows)
    found = [keep_stars_cosine(vectors, 0.95, block=block) for block in (64, 1000, 3000)]
    for star, cosine in found[1:]:
        assert np.array_equal(star, found[0][0])
        assert np.array_equal(cosine, found[0][1])
    star = found[0][0]
    assert np.array_equal(star[star], star)
    assert 300 <= len(np.unique(star)) < 2500
    kept = np.flatnonzero(star == np.arange(3000))
    close = vectors[kept].astype(np.float64) @ vectors[kept].T.astype(np.float64)
    np.fill_diagonal(close, 0)
    assert close.max() < 0.95 + 1e-6


def test_flat_rows_go_with_their_digest_alone() -> None:
    vectors = unit(np.ones((5, 4)))
    flat = np.array([True, False, True, False, True])
    for digest in (np.array([b"x", b"x", b"y", b"x", b"x"], "S16"), np.array([[1, 2], [1, 2], [1, 3], [1, 2], [1, 2]])):
        star, cosine = keep_stars_cosine(vectors, 0.9, flat=flat, digest=digest)
        assert star.tolist() == [0, 1, 2, 1, 0]
        assert cosine.tolist() == [1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="digests"):
        keep_stars_cosine(vectors, 0.9, flat=flat)
    assert keep_stars_cosine(vectors, 0.9, flat=np.zeros(5, bool))[0].tolist() == [0] * 5


@pytest.mark.parametrize("row", [[0, 0], [2, 0], [np.nan, 1]])
def test_vectors_that_have_no_length_of_1_are_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="length 1"):
        keep_stars_cosine(np.array([[1, 0], row], np.float32), 0.9)
    flat = np.array([False, True])
    keep_stars_cosine(np.array([[1, 0], row], np.float32), 0.9, flat=flat, digest=flat)


def test_a_recipe_asks_for_it(hub: Path, tmp_path: Path) -> None:
    """Tiles by cosine, the threshold changed without a pixel, the cosine in the record of what went."""
    data = tmp_path / "data" / "one"
    data.mkdir(parents=True)
    for n in range(3):
        Image.fromarray(scene(40 + n, 200, 160)).save(data / f"{n}.png")
    Image.fromarray(scene(40, 200, 160)).save(data / "again.jpg", quality=60)
    kept = {}
    for least in (0.99, 1.0):
        spec = {"signature": "cnn", "cosine": least}
        one = recipe_of("one", dedup=spec, prefer=["lossless"])
        datakit.build(one, data=tmp_path / "data", out=tmp_path / "out", workers=0)
        kept[least] = set(pq.read_table(tmp_path / "out" / "samples.parquet").column("name").to_pylist())
        if least == 0.99:
            rows = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
            gone = next(row for row in rows if row["name"] == "again.jpg")
            assert (gone["stage"], gone["dropped"], gone["lost_to"]) == ("dedup", "duplicate", make_key("one", "0.png"))
            assert 0.99 <= float(gone["detail"].removeprefix("cosine ")) < 1
    assert "again.jpg" not in kept[0.99]
    assert kept[1.0] == {"0.png", "1.png", "2.png", "again.jpg"}
    assert "images_opened" not in work_done(tmp_path / "out")
