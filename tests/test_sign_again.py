"""A list signed again without `contain` leaves no parts of what was signed before under its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datakit.cli import main


def test_a_list_signed_again_without_parts_has_none_of_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "eval" / "a.png")
    sign = ["protect", "sign", str(tmp_path / "eval"), "-o", str(tmp_path / "list"), "--workers", "0"]
    assert main([*sign, "--set", "protect.contain={}"]) == 0
    assert (tmp_path / "list.parts").exists()
    assert main([*sign, "--set", "protect.contain=null"]) == 0
    assert (tmp_path / "list").exists()
    assert not (tmp_path / "list.parts").exists()
