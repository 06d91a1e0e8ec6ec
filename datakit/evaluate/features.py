"""Frozen features of images, made once and kept: what a file of them is called tells all that they are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from ..disk import ahead, becoming
from ..errors import SourceError
from ..pretrain.objective import Encoder
from ..stream.augment import Crop, evaluation
from ..stream.decode import Decoder, Unreadable
from ..stream.normalise import scaled
from .images import Images, Rows

SAID = 5000  # images, between two lines of progress
VERSION = 1  # of what is made of an image
RESIZED = 256 / 224  # shorter side of an image by that of its middle that is seen (torchvision, timm: crop_pct 0.875)
Array = NDArray[Any]


@dataclass(frozen=True)
class Features:
    """Of N images: cls and mean, (N, D) float32, the token of the class and the mean of the patches' tokens; tokens:
    (N, L, D) float16 of the patches, mapped from a file, where they were asked for."""

    cls: Array
    mean: Array
    tokens: Array | None = None


def features(
    encoder: Encoder,
    images: Images,
    rows: Rows,
    cache: Path,
    *,
    tokens: bool = False,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    say: Callable[[str], None] = print,
) -> Features:
    """Features of some images, in the order of `rows`; from `cache`, a folder, if they were made before."""
    name = digest(encoder, images.digest(rows))
    paths = {kind: cache / f"{name}.{kind}.npy" for kind in ("cls", "mean", "tokens")}
    wanted = [kind for kind in paths if kind != "tokens" or tokens]
    if not all(paths[kind].exists() for kind in wanted):
        cache.mkdir(parents=True, exist_ok=True)
        make({kind: paths[kind] for kind in wanted}, encoder, images, rows, torch.device(device), batch_size, say)
    cls, mean = (np.load(paths[kind]) for kind in ("cls", "mean"))
    return Features(cls, mean, np.load(paths["tokens"], mmap_mode="r") if tokens else None)


def digest(encoder: Encoder, images: str) -> str:
    """Of an encoder's weights and how images are shown to it, and of the images."""
    state = xxhash.xxh3_128(f"{VERSION} {encoder.size_px} {encoder.numbers} {encoder.interpolation} {images}".encode())
    for name, value in sorted(encoder.tokens.state_dict().items()):
        state.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return state.hexdigest()


@torch.no_grad()
def make(
    paths: dict[str, Path],
    encoder: Encoder,
    images: Images,
    rows: Rows,
    device: torch.device,
    batch_size: int,
    say: Callable[[str], None],
) -> None:
    """Write features to files: whole ones, or none. Tokens go to their file as they are made."""
    module = encoder.tokens.to(device).eval()
    cls: list[Array] = []
    mean: list[Array] = []
    tokens: np.memmap[Any, Any] | None = None
    done = 0
    with ExitStack() as stack:
        aside = {kind: stack.enter_context(becoming(path, path.parent)) for kind, path in paths.items()}
        for pixels in batches(encoder, images, rows, batch_size):
            found = module(torch.from_numpy(pixels).to(device)).float().cpu()
            cls.append(found[:, 0].numpy())
            mean.append(found[:, 1:].mean(1).numpy())
            if "tokens" in paths:
                if tokens is None:
                    shape = (len(rows), *found[:, 1:].shape[1:])
                    tokens = np.lib.format.open_memmap(aside["tokens"], "w+", np.float16, shape)
                tokens[done : done + len(found)] = found[:, 1:].half().numpy()
            done += len(found)
            if done // SAID > (done - len(found)) // SAID:
                say(f"features of {done} of {len(rows)} images")
        if tokens is not None:
            tokens.flush()
        save(aside["cls"], np.concatenate(cls))
        save(aside["mean"], np.concatenate(mean))


def save(path: Path, array: Array) -> None:
    """np.save, under this very name."""
    with path.open("wb") as file:
        np.save(file, array)


def batches(encoder: Encoder, images: Images, rows: Rows, batch_size: int) -> Iterator[Array]:
    """The images' middles, normalised, (B, C, size_px, size_px) float32. SourceError names one that cannot be read."""
    show = shown(encoder, images)
    held: list[Array] = []
    for pixels in ahead(show, rows.tolist()):
        held.append(pixels)
        if len(held) == batch_size:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def shown(encoder: Encoder, images: Images) -> Callable[[int], Array]:
    """What makes an image's middle as the encoder wants it, (C, size_px, size_px) float32."""
    size = encoder.size_px
    (view,) = evaluation(size, round(size * RESIZED), encoder.interpolation).views
    decoder, nothing = Decoder(), np.empty(0)

    def show(row: int) -> Array:
        try:
            levels = decoder(images.read(row))
        except (OSError, Unreadable) as exc:
            raise SourceError(f"{images.where}: {images.names[row]}: cannot be read: {exc}") from None
        out = np.empty((levels.shape[2], size, size), np.float32)
        numbers = (tuple(encoder.numbers[0]), tuple(encoder.numbers[1]))
        whole = Crop(0, 0, levels.shape[1], levels.shape[0])
        view.render(levels, whole, nothing, scaled(numbers, np.iinfo(levels.dtype).max), out)
        return out

    return show
