"""CNN signatures of tiles, by imagededup's own encoders, and the duplicates that they show.

A recipe asks for them with `signature: cnn`; pHash is the default. They are floats: another processor, number of
threads or release of PyTorch adds up in another order and gives other last digits. So a set made with `signature: cnn`
is made again, byte for byte, only on a machine like the first. The search itself is exact: the same vectors give the
same stars everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from . import disk, image, run, staging
from .errors import StageError
from .measure import Pixels
from .sample import Sample, digest, from_table

VERSION = 1  # raise it when a vector changes for the same tile
Model = Literal["mobilenet_v3_small", "vit_b_16", "efficientnet_b4"]
Vectors = NDArray[np.float16] | NDArray[np.float32]
Agree = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]

BATCH = {"cpu": 8, "cuda": 64}  # on 2 cores MobileNet takes 11.6 ms a tile one by one, 4.3 ms in eights or sixteens
AGAIN = "delete the folder of that file and build again, without --free"
MOST_THREADS = 16  # decode and resize: 7 ms a tile of 512 px, while the small network takes 4


class _Made(NamedTuple):
    """A model of imagededup: its class, the weights that the class asks torchvision for, and what it gives."""

    encoder: str  # in imagededup.utils.models
    weights: str  # of torchvision
    dims: int


MODELS: dict[str, _Made] = {
    "mobilenet_v3_small": _Made("MobilenetV3", "MobileNet_V3_Small_Weights.IMAGENET1K_V1", 576),
    "vit_b_16": _Made("ViT", "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", 768),
    "efficientnet_b4": _Made("EfficientNet", "EfficientNet_B4_Weights.IMAGENET1K_V1", 1792),
}


@dataclass(frozen=True)
class Encoder:
    """imagededup's encoder: pictures -> vectors of length 1.

    The network always sees `batch` pictures, the last ones filled up with zeros: its kernels depend on the shape of
    what they get, so a picture in a batch of another size would have other last digits (1e-7). Thus a tile's vector
    depends neither on the part that it lies in nor on what lies beside it.
    """

    cnn: Any  # imagededup.methods.CNN
    batch: int

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MOST_THREADS), "encoder")

    def __call__(self, pictures: Sequence[Image.Image | Pixels]) -> NDArray[np.float32]:
        """Pictures of any size, (H, W, 3) uint8 or Pillow's -> (N, D) float32, rows of length 1."""
        return self.encode(self.pool.map(self.prepare, pictures))

    def prepare(self, picture: Image.Image | Pixels) -> Any:
        """A picture as the tensor that the network takes; may run in any thread."""
        if isinstance(picture, Image.Image):  # as imagededup does it: by way of RGBA, so that Pillow does not warn
            picture = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGBA").convert("RGB"))
        return self.cnn.apply_preprocess(picture)

    def encode(self, tensors: Iterable[Any]) -> NDArray[np.float32]:
        """What `prepare` gave -> (N, D) float32, rows of length 1."""
        import torch

        waiting, rows = iter(tensors), [np.empty((0, MODELS[self.cnn.model_config.name].dims), np.float32)]
        # TF32 keeps 10 bits, and cuDNN picks other kernels from run to run unless told not to
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            while some := list(islice(waiting, self.batch)):
                filled = some + [torch.zeros_like(some[0])] * (self.batch - len(some))
                found = self.cnn.model(torch.stack(filled).to(self.cnn.device)).cpu().numpy()[: len(some)]
                lengths = np.sqrt(np.square(found, dtype=np.float64).sum(axis=1, keepdims=True))
                if not 0 < lengths.min() <= lengths.max() < np.inf:
                    raise StageError(f"{self.cnn.model_config.name} gives vectors without a direction: other weights?")
                rows.append((found / lengths).astype(np.float32))
        return np.concatenate(rows)


def encoder(model: Model, batch: int | None = None) -> Encoder:
    """imagededup's encoder with torchvision's weights, on the GPU where PyTorch finds one.

    Weights that are not in torch hub's folder are downloaded, as torchvision does it. StageError where that fails.
    """
    with _quiet():
        from imagededup.methods import CNN  # type: ignore[import-untyped]
        from imagededup.utils import models  # type: ignore[import-untyped]
    made, (file, url) = MODELS[model], weights_file(model)
    with _quiet(), _only_weights():
        try:
            _check_whole(file)
            network = getattr(models, made.encoder)()
        except Exception as exc:  # of the network, the disk, the archive, the unpickler or the names of the layers
            what = "are damaged or of another model" if file.exists() else "are not there and cannot be downloaded"
            do = f"put {url} at {file}, or ask for `signature: phash`, which needs none"
            raise StageError(f"the weights of {model} {what} ({image.reason(exc)}): {do}") from exc
        cnn = CNN(verbose=False, model_config=models.CustomModel(model, network, network.transform))
    return Encoder(cnn, batch or BATCH[cnn.device.type])


def weights_file(model: Model) -> tuple[Path, str]:
    """Where the weights of a model belong, in torch hub's folder, and the page that gives them."""
    with _quiet():
        import torch.hub
        from torchvision.models import get_weight
    url: str = get_weight(MODELS[model].weights).url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2], url


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, progress bars and log lines below a warning; errors pass."""
    before, nothing = logging.root.manager.disable, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)  # imagededup gives its loggers levels of their own
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _only_weights() -> Iterator[None]:
    """torch.load reads tensors and runs no code of the file, whatever torchvision asks for (it asks for all)."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")  # torch refuses both at once
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


def vector_files(parts: Sequence[Path], work: Path, model: Model) -> list[Path]:
    """Where the vectors of parts lie, made or not: work/cnn/<digest>/<part>.parquet.

    The digest covers the model, its weights, and the libraries; the name of a part says what its tiles were made from.
    """
    import torch

    libraries = [f"{name} {metadata.version(name)}" for name in ("imagededup", "torchvision", "pillow")]
    made_with = [model, _weights_name(weights_file(model)[0]), f"torch {torch.__version__}", *libraries]
    folder = work / "cnn" / digest("cnn", str(VERSION), *made_with)
    return [folder / f"{part.stem}.parquet" for part in parts]


def _weights_name(file: Path) -> str:
    """The name of a weights file, which ends in the first digits of its sha256; of another's weights all its digits."""
    if not file.exists():  # torchvision compares the digits when it has downloaded it
        return file.name
    with file.open("rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    return file.name if sha256.startswith(file.stem.rpartition("-")[2]) else f"{file.name} {sha256}"


def _check_whole(file: Path) -> None:
    """An error if weights that are not torchvision's own have a byte changed: torch.load compares no checksums."""
    if _weights_name(file) != file.name:
        with zipfile.ZipFile(file) as archive:
            if changed := archive.testzip():
                raise OSError(f"{changed} has another checksum")


def vectors_of(parts: Sequence[Path], work: Path, model: Model, say: Callable[[str], None]) -> list[Path]:
    """Files of the vectors of parts, one each; those that are there are not made again.

    A file has `key` and `vector` (D float16, which moves cosines above 0.8 by less than 1e-4) of every record that no
    stage has dropped, in the order of the part. parts: records of SCHEMA whose staged tiles lie below `work`. A tile
    takes 10 ms on 2 cores by mobilenet_v3_small, 160 by efficientnet_b4, 900 by vit_b_16.
    """
    files = vector_files(parts, work, model)
    waiting = [(part, file) for part, file in zip(parts, files, strict=True) if not file.exists()]
    with run.explained():
        for part, _ in waiting:
            _check_staged(part, work)
        if not waiting:
            return files
        file, url = weights_file(model)
        others = "" if _weights_name(file) == file.name else ", which are not those that torchvision gives"
        say(f"cnn: {model}: " + (f"weights of {file}{others}" if file.exists() else f"downloads {url}"))
        encode, start = encoder(model), time.monotonic()
        for n, (part, file) in enumerate(waiting, 1):
            table = _encode_part(encode, part, work)
            file.parent.mkdir(parents=True, exist_ok=True)
            with disk.aside(work) as folder:
                disk.commit(table, file, folder)
            left = (time.monotonic() - start) / n * (len(waiting) - n)
            more = f", about {left:,.0f} s left" if n < len(waiting) else ""
            say(f"cnn: {n:,} of {len(waiting):,} parts on the {encode.cnn.device}{more}")
    return files


def _check_staged(part: Path, work: Path) -> None:
    """StageError unless the staged tiles of a part's records are all there."""
    kept = run.kept_rows(pq.read_table(part, columns=["staged", "staged_offset", "staged_bytes", "dropped"]))
    ends = kept.append_column("end", pc.add(kept.column("staged_offset"), kept.column("staged_bytes")))
    for row in ends.group_by("staged").aggregate([("end", "max")]).to_pylist():
        if not staging.is_whole(work, row["staged"], row["end_max"]):
            raise StageError(f"{work / row['staged']} was freed, and `signature: cnn` needs its tiles: {AGAIN}")


def _encode_part(encode: Encoder, part: Path, work: Path) -> pa.Table:
    """Keys and vectors of the kept records of a part."""
    samples = list(from_table(run.kept_rows(pq.read_table(part))))
    order = sorted(range(len(samples)), key=lambda n: (samples[n].staged, samples[n].staged_offset))  # as they lie
    vectors = np.empty((len(samples), MODELS[encode.cnn.model_config.name].dims), np.float16)
    ahead = 8 * encode.batch  # encoded tiles in memory
    with staging.StagedFiles(work) as staged, image.quiet():
        for at in range(0, len(order), ahead):
            some = order[at : at + ahead]
            tiles = [(samples[n], staged.read(samples[n])) for n in some]
            vectors[some] = encode.encode(encode.pool.map(partial(_prepare_tile, encode), tiles))
    flat = pa.array(vectors.reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table({"key": pa.array([s.key for s in samples], pa.string()), "vector": lists})


def _prepare_tile(encode: Encoder, tile: tuple[Sample, bytes]) -> Any:
    try:
        return encode.prepare(image.decode(tile[1]))
    except Exception as exc:  # whatever Pillow says of bytes that are not what was written
        raise StageError(f"{tile[0].staged}: {tile[0].key}: {image.reason(exc)}: {AGAIN}") from exc


def load(files: Iterable[Path]) -> tuple[pa.ChunkedArray, NDArray[np.float16]]:
    """Keys and vectors of files of `vectors_of`, in their order: (N,) strings, (N, D) float16."""
    table = pa.concat_tables([pq.read_table(file) for file in files])
    dims = table.schema.field("vector").type.list_size
    chunks = [np.asarray(chunk.flatten()).reshape(-1, dims) for chunk in table.column("vector").chunks]
    return table.column("key"), np.concatenate([np.empty((0, dims), np.float16), *chunks])


GRID = 2.0**-24  # the step of the least float16: all of them lie on it
BLOCK = 1024  # rows compared at once with four times as many kept ones: 16 MB of cosines
PAIRS = 2048  # evaluated at once in float64: 19 MB of MobileNet's


def keep_stars_cosine(
    vectors: Vectors,
    least_cosine: float,
    agree: Agree | None = None,
    flat: NDArray[np.bool_] | None = None,
    digest: NDArray[Any] | None = None,
    block: int = BLOCK,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The row that each row goes with, itself where it is kept, and the cosine of the two: (N,) int64, (N,) float32.

    vectors: (N, D), rows of length 1 in order of preference, best first. A row is a duplicate only of a kept one: the
    first whose cosine with it is at least `least_cosine` and of which agree(kept rows, rows) says yes; `agree` may look
    at nothing but the pair. flat: (N,) rows that are never compared; one of them duplicates the first of those with the
    same digest, (N,) of a type that sorts or (N, 2) uint64.

    Components are taken to the nearest multiple of 2**-24. Sums of their products then have at most 49 bits: float64
    holds them exactly, so no order of adding, and hence no block and no machine, changes a result. Matrix products in
    float32 only find the pairs that are worth it. Memory: the vectors, 30 bytes a row, and up to 300 MB.
    Cost: N x kept x D. On 2 cores 20,000 rows of 576, all kept, take 3 s; a million would take 2 h, 4 million 32 h.
    """
    star, cosine = np.full(len(vectors), -1, np.int64), np.ones(len(vectors), np.float32)
    rows = np.arange(len(vectors))
    if flat is not None and flat.any():
        if digest is None:
            raise ValueError("flat rows need digests")
        still = rows[flat]
        _, first, group = np.unique(digest[flat], True, True, axis=0 if digest.ndim > 1 else None)
        star[still], rows = still[first[group.reshape(-1)]], rows[~flat]
    stars = _Stars(vectors, least_cosine, agree, _squares(vectors, rows, block), star, cosine)
    kept, count = np.empty(len(rows), np.int64), 0
    for at in range(0, len(rows), block):
        mine = rows[at : at + block]
        for near in range(0, count, 4 * block):
            mine = mine[star[mine] < 0]
            stars.join(mine, kept[near : min(near + 4 * block, count)])
        mine = mine[star[mine] < 0]
        stars.found(mine)
        new = mine[star[mine] == mine]
        kept[count : count + len(new)] = new
        count += len(new)
    return star, cosine


@dataclass(frozen=True)
class _Stars:
    """The stars so far; `star` and `cosine` are filled in."""

    vectors: Vectors
    least: float
    agree: Agree | None
    squares: NDArray[np.float64]  # of the lengths
    star: NDArray[np.int64]
    cosine: NDArray[np.float32]

    def join(self, rows: NDArray[np.int64], kept: NDArray[np.int64]) -> None:
        """Give each row to the first of the kept ones that it duplicates, if there is one."""
        row, centre = self.near(rows, kept)
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        turn = np.frexp(rank + 1)[1]  # each row tries 1, 2, 4, … of those near it, until one holds
        for t in range(1, turn.max(initial=0) + 1):
            now = (turn == t) & (self.star[rows[row]] < 0)
            a, b = rows[row[now]], kept[centre[now]]
            holds, cosine = self.holds(a, b)
            a, first = np.unique(a[holds], return_index=True)
            self.star[a], self.cosine[a] = b[holds][first], cosine[holds][first]

    def found(self, rows: NDArray[np.int64]) -> None:
        """Keep each row, in turn, that duplicates none of those kept before it."""
        row, centre = self.near(rows, rows)
        row, centre = row[centre < row], centre[centre < row]
        holds, cosine = self.holds(rows[row], rows[centre])
        self.star[rows] = rows
        for a, b, c in zip(rows[row[holds]], rows[centre[holds]], cosine[holds], strict=True):
            if self.star[a] == a and self.star[b] == b:  # ascending: b is settled before a is asked
                self.star[a], self.cosine[a] = b, c

    def near(self, rows: NDArray[np.int64], kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of pairs that may reach the least cosine, row by row."""
        single = np.float32
        a, b = (self.vectors[r].astype(single) / np.sqrt(self.squares[r, None].astype(single)) for r in (rows, kept))
        # D u |a| |b| bounds the error of a sum of D products (Higham 2002, 3.1); twice that covers the roundings before
        slack = (self.vectors.shape[1] + 8) * 2.0**-23
        row, centre = np.nonzero(a @ b.T >= single(self.least - slack))
        return row, centre

    def holds(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which rows are duplicates of their kept ones, were those kept; and all cosines."""
        cosine = np.empty(len(a))
        for at in range(0, len(a), PAIRS):
            some = slice(at, at + PAIRS)
            dots = np.einsum("ij,ij->i", _on_grid(self.vectors[a[some]]), _on_grid(self.vectors[b[some]]))
            cosine[some] = dots / np.sqrt(self.squares[a[some]] * self.squares[b[some]])
        holds = cosine >= self.least
        if self.agree is not None and holds.any():
            holds[holds] = self.agree(b[holds], a[holds])
        return holds, cosine.astype(np.float32)


def _on_grid(vectors: Vectors) -> NDArray[np.float64]:
    return np.rint(vectors.astype(np.float64) / GRID) * GRID


def _squares(vectors: Vectors, rows: NDArray[np.int64], block: int) -> NDArray[np.float64]:
    """(N,) the squared lengths of those rows, 1 for others; ValueError where they are not nearly 1."""
    squares = np.ones(len(vectors))
    for at in range(0, len(rows), block):
        some = rows[at : at + block]
        squares[some] = np.square(_on_grid(vectors[some])).sum(axis=1)
    if not (np.abs(squares - 1) < 0.02).all():  # float16 rounds a length of 1 by less than 0.0005
        raise ValueError("vectors must have length 1")
    return squares
