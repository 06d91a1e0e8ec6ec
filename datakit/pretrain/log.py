"""What a run tells: lines of JSON and of TensorBoard every so many steps, means over these, and pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.tensorboard import SummaryWriter


class Log:
    """log.jsonl, tensorboard/ and pictures/ of a run's folder. step: where it goes on; later lines are taken out."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, values: dict[str, Any]) -> None:
        """One line; `step` is among the values."""
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        for name, value in values.items():
            if name != "step":
                self.board.add_scalar(name, value, values["step"])

    def picture(self, step: int, pixels: NDArray[np.uint8]) -> None:
        """pixels: (H, W, 3)."""
        (self.folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(self.folder / "pictures" / f"step-{step:09}.png")
        self.board.add_image("pictures", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.file.close()
        self.board.close()


def _lines(path: Path) -> list[str]:
    """The whole lines of a log; a kill may have cut the last one."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            json.loads(line)
        except ValueError:
            continue
        found.append(line)
    return found


class Meter:
    """Means over the steps since the last line, and where their time went. waited_s: for data."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.last: float | None = None  # loss that was told last
        self.start()

    def start(self) -> None:
        """Time counts from now on."""
        self.steps, self.waited_s, self.began = 0, 0.0, time.perf_counter()

    def add(self, values: dict[str, float]) -> None:
        """What a step came to."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, batch: int) -> dict[str, float]:
        """The means, images a second of all ranks, and the share of the time that this one waited for data."""
        found = {name: total / self.counts[name] for name, total in self.sums.items()}
        spent = max(time.perf_counter() - self.began, 1e-9)
        speed = {"images_per_s": round(self.steps * batch / spent, 2), "wait_share": round(self.waited_s / spent, 4)}
        self.sums, self.counts, self.last = {}, {}, found.get("loss", self.last)
        self.start()
        return {**found, **speed}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.counts, self.last = dict(state["sums"]), dict(state["counts"]), state["last"]
