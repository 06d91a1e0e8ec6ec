"""Noise by ISO: planted values come back, from profiles and from pictures; what cannot be told is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datakit import dng, noise
from datakit.cli import main
from datakit.errors import DatakitError, SourceError
from datakit.pretrain.unprocess import Camera
from datakit.raw import RawImage
from datakit.sources.synth_raw import drawn

BLACK, WHITE = (512.0, 512.0, 520.0, 512.0), 16383
SIZE = (640, 480)


def shot_of(seed: int, shot: float, read: float, iso: float, cfa: str = "RGGB", flat: bool = False) -> RawImage:
    """A drawn scene through a camera with such noise, dark in one part and light in another."""
    rng = np.random.default_rng(seed)
    scene, _ = drawn(rng, *SIZE)
    light = scene.mean(2) * np.geomspace(0.002, 1.4, SIZE[0])
    if flat:
        light = np.full_like(light, 0.3)
    signal = light + rng.standard_normal(light.shape) * np.sqrt(shot * light + read)
    blacks = np.tile(np.reshape(BLACK, (2, 2)), (SIZE[1] // 2, SIZE[0] // 2))
    mosaic = np.clip(np.rint(blacks + signal * (WHITE - blacks)), 0, WHITE).astype(np.uint16)
    return RawImage(mosaic, BLACK, WHITE, cfa, iso=iso, make="Datakit", model="Noisy")


def write(path: Path, image: RawImage, told: tuple[float, ...] = ()) -> Path:
    path.write_bytes(dng.encode(image, told))
    return path


PLANTED = {100: (2e-4, 1e-7), 800: (1.5e-3, 8e-6), 6400: (9e-3, 3e-4)}


def test_planted_noise_comes_back(tmp_path: Path) -> None:
    """Within 10 %, of scenes with texture and objects, from files of several ISOs, patterns and orientations."""
    paths = []
    for n in range(4):
        for iso, (shot, read) in PLANTED.items():
            image = shot_of(n, shot, read, iso, ("RGGB", "BGGR", "GRBG", "GBRG")[n])
            paths.append(write(tmp_path / f"{iso}-{n}.dng", replace(image, orientation=(1, 8, 6, 3)[n])))
    found = noise.by_iso(paths)
    assert [one.iso for one in found] == [100, 800, 6400]
    for one in found:
        shot, read = PLANTED[int(one.iso)]
        assert one.how == "fit", one
        assert one.files == 4
        assert one.shot == pytest.approx(shot, rel=0.1)
        rounding = 1 / 12 / (WHITE - 512) ** 2
        assert one.read == pytest.approx(read + rounding, rel=0.1)
        assert one.r2 is not None
        assert one.r2 > 0.95
    fields = noise.camera(found)
    camera = Camera.model_validate(fields)
    assert camera.shot == pytest.approx((2e-4, 9e-3), rel=0.1)
    slope, offset, spread = camera.read
    assert abs(slope * np.log(1.5e-3) + offset - np.log(8e-6)) < 0.5
    assert spread < 1


def test_a_profile_is_taken_as_it_is(tmp_path: Path) -> None:
    image = shot_of(0, 1e-3, 1e-6, 400, flat=True)
    one = write(tmp_path / "one.dng", image, (2e-3, 3e-6))
    three = write(tmp_path / "three.dng", image, (1e-3, 1e-6, 2e-3, 2e-6, 3e-3, 6e-6))
    assert noise.profile(one) == (2e-3, 3e-6)
    assert noise.profile(three) == pytest.approx((2e-3, 3e-6))
    assert noise.profile(write(tmp_path / "none.dng", image)) is None
    (found,) = noise.by_iso([one, three])
    assert (found.how, found.files, found.shot, found.r2) == ("profile", 2, pytest.approx(2e-3), None)
    fields = noise.camera([found])
    assert fields["read"][0] * np.log(2e-3) + fields["read"][1] == pytest.approx(np.log(3e-6))


def test_what_is_not_sure_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alike = write(tmp_path / "alike.dng", shot_of(0, 1e-3, 1e-6, 400, flat=True))
    (found,) = noise.by_iso([alike])
    assert found.how == "refused"
    assert "R^2" in found.refused
    small = replace(shot_of(0, 1e-3, 1e-6, 400), mosaic=shot_of(0, 1e-3, 1e-6, 400).mosaic[:64, :64])
    (found,) = noise.by_iso([write(tmp_path / "small.dng", small)])
    assert "give more files" in found.refused
    with pytest.raises(DatakitError, match="no ISO"):
        noise.camera([found])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no camera RAW"):
        noise.expanded([tmp_path / "empty"])
    assert main(["raw", "noise", str(alike)]) == 1
    assert "R^2" in capsys.readouterr().out


def test_the_command_prints_what_a_recipe_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(2):
        write(tmp_path / f"{n}.dng", shot_of(n, 1e-3, 1e-6, 200))
    write(tmp_path / "told.dng", shot_of(2, 1e-3, 1e-6, 3200), (8e-3, 1e-4))
    assert main(["raw", "noise", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "profile" in out
    assert "fit" in out
    plain = json.loads(out.splitlines()[-1])
    assert [one["iso"] for one in plain["noise"]] == [200, 3200]
    assert Camera.model_validate(plain["camera"]).shot[1] == pytest.approx(8e-3)
