"""Small tars for the loader, and what it gives of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from worlds import scene

from datakit.stream import Loader, mae

SIZES = (17, 5, 9)  # samples of each shard
SMALL = mae(32, normalise=None)


def jpeg(seed: int, width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(scene(seed, width, height)).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(n: int, **more: Any) -> list[tuple[str, bytes]]:
    fields = {"n": n, "gsd_m": 0.5 if n % 2 else -1.0, "label": f"class{n % 3}", **more}
    return [
        (f"s{n:03}.jpg", jpeg(n, 64 + n, 80)),
        (f"s{n:03}.cls", str(n % 3).encode()),
        (f"s{n:03}.json", json.dumps(fields).encode()),
    ]


def keys(loader: Loader) -> list[str]:
    return [key for batch in loader for key in batch.keys]
