"""Slices as AODRaw publishes them, against a plain restatement of its rules that counts pixels."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit.boxes import slice_coco
from datakit.sample import Window
from datakit.stages.slice import grid

CATEGORIES = [{"supercategory": "none", "id": n, "name": name} for n, name in enumerate(["person", "car", "ignore"])]


def plain_starts(length: int, size: int, gap: int, even: bool) -> list[int]:
    """Where the published script begins windows: as many as needed, the last pushed back, then rounded down to even."""
    step = size - gap
    count = 1 if length <= size else math.ceil((length - size) / step + 1)
    begins = [step * n for n in range(count)]
    if count > 1 and begins[-1] + size > length:
        begins[-1] = length - size
    return [n // 2 * 2 if even else n for n in begins]


def plain_slices(coco: dict[str, Any], size: int, gap: int, iof: float, even: bool) -> dict[str, Any]:
    """The published rules, restated with pixels that are counted one by one; boxes are of whole pixels."""
    images, annotations = [], []
    for image in coco["images"]:
        ours = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        for left in plain_starts(image["width"], size, gap, even):
            for top in plain_starts(image["height"], size, gap, even):
                inside_image = np.zeros((size, size), bool)
                inside_image[: max(image["height"] - top, 0), : max(image["width"] - left, 0)] = True
                if not inside_image.mean() > 0.6:
                    continue
                kept, cut = [], []
                for a in ours:
                    x, y, w, h = a["bbox"]
                    pixels = [(u, v) for u in range(x, x + w) for v in range(y, y + h)]
                    shown = sum(left <= u < left + size and top <= v < top + size for u, v in pixels)
                    if shown and shown / len(pixels) >= iof:
                        kept.append((a, a["iscrowd"]))
                    elif shown:
                        cut.append((a, 1))
                both = kept + cut
                if not both or sum(crowd for _, crowd in both) == len(both):
                    continue
                tail = f"__{size}__{left}___{top}"
                images.append(
                    {
                        "id": len(images),
                        "ori_id": image["id"],
                        "x_start": left,
                        "y_start": top,
                        "slice_id": str(image["id"]) + tail,
                        "file_name": image["file_name"].split(".")[0] + tail + ".npy",
                        "height": size,
                        "width": size,
                        "tag": image["tag"],
                    }
                )
                for a, crowd in both:
                    x, y, w, h = a["bbox"]
                    x1, y1, x2, y2 = x - left, y - top, x + w - left, y + h - top
                    outline = [x1, y1, x1, y2, x2, y2, x2, y1]
                    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, size - 1), min(y2, size - 1)
                    annotations.append(
                        {
                            "segmentation": [outline],
                            "area": (x2 - x1) * (y2 - y1),
                            "ignore": 0,
                            "iscrowd": crowd,
                            "image_id": images[-1]["id"],
                            "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "category_id": a["category_id"],
                            "id": len(annotations),
                        }
                    )
    return {"images": images, "type": "instance", "categories": coco["categories"], "annotations": annotations}


@st.composite
def annotated(draw: st.DrawFn) -> tuple[dict[str, Any], int, int, float, bool]:
    """A COCO of a few images of some boxes, and size, gap, iof, even."""
    size = 2 * draw(st.integers(2, 8))
    gap = draw(st.integers(0, size - 1))
    images, notes = [], []
    for number in draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)):
        width, height = draw(st.integers(size, 3 * size + 1)), draw(st.integers(size, 3 * size + 1))
        tags = draw(st.lists(st.sampled_from(["fog", "rain", "low_light"]), unique=True))
        images.append({"id": number, "file_name": f"{number:08d}.ARW", "height": height, "width": width, "tag": tags})
        for _ in range(draw(st.integers(0, 5))):
            x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
            box = [x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y))]
            crowd, category = draw(st.integers(0, 1)), draw(st.integers(0, 2))
            note = {"image_id": number, "bbox": box, "iscrowd": crowd, "category_id": category, "id": len(notes)}
            notes.append(note)
    coco = {"images": images, "categories": CATEGORIES, "annotations": notes}
    return coco, size, gap, draw(st.sampled_from([0.25, 0.4, 0.5, 0.7])), draw(st.booleans())


@given(annotated())
def test_slices_are_those_of_the_published_rules(given_: tuple[dict[str, Any], int, int, float, bool]) -> None:
    coco, size, gap, iof, even = given_
    before = json.dumps(coco)
    found = slice_coco(coco, size_px=size, gap_px=gap, iof=iof, even=even)
    assert json.dumps(found) == json.dumps(plain_slices(coco, size, gap, iof, even))  # and keys in the same order
    assert json.dumps(coco) == before


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 10), st.data())
def test_an_even_grid_has_the_published_windows_once(width: int, height: int, half: int, data: st.DataObject) -> None:
    size, gap = 2 * half, data.draw(st.integers(0, 2 * half - 1))
    found = {(w.left, w.top) for w in grid(width, height, size_px=size, gap_px=gap, even=True)}
    lefts, tops = (plain_starts(side, size, gap, True) for side in (width, height))
    assert found == ({(x, y) for x in lefts for y in tops} if width > 1 and height > 1 else set())


def test_24_windows_of_a_24_megapixel_picture() -> None:
    windows = grid(6000, 4000, size_px=1280, gap_px=300, even=True)
    lefts, tops = (0, 980, 1960, 2940, 3920, 4720), (0, 980, 1960, 2720)
    assert windows == [Window(x, y, 1280, 1280) for y in tops for x in lefts]


def of_one(boxes: list[list[float]], width: int = 6000, height: int = 4000, **how: Any) -> dict[str, Any]:
    image = {"id": 7, "file_name": "00000007.ARW", "height": height, "width": width, "tag": ["fog", "low_light"]}
    notes = [{"image_id": 7, "bbox": b, "iscrowd": 0, "category_id": 1, "id": n} for n, b in enumerate(boxes)]
    return slice_coco({"images": [image], "categories": CATEGORIES, "annotations": notes}, **how)


def test_the_share_that_decides_is_of_the_whole_box() -> None:
    found = of_one([[1270, 100, 25, 10]])  # 10 of 25 columns are in the window at 0: 0.4; all are in that at 980
    assert [(i["x_start"], i["slice_id"], i["file_name"]) for i in found["images"]] == [
        (0, "7__1280__0___0", "00000007__1280__0___0.npy"),
        (980, "7__1280__980___0", "00000007__1280__980___0.npy"),
    ]
    first, second = found["annotations"]
    assert first["bbox"] == [1270, 100, 9, 10]  # up to the last pixel, not behind it
    assert first["area"] == 90
    assert first["segmentation"] == [[1270, 100, 1270, 110, 1295, 110, 1295, 100]]
    assert (first["iscrowd"], second["iscrowd"]) == (0, 0)
    assert found["images"][0]["tag"] == ["fog", "low_light"]


def test_crowds_follow_and_do_not_keep_a_window() -> None:
    found = of_one([[1271, 100, 25, 10], [5, 5, 10, 10]])
    by_image = {i["id"]: i["x_start"] for i in found["images"]}
    told = [(by_image[a["image_id"]], a["iscrowd"], a["bbox"][0]) for a in found["annotations"]]
    assert told == [(0, 0, 5), (0, 1, 1271), (980, 0, 291)]
    assert [i["x_start"] for i in of_one([[1271, 100, 25, 10]])["images"]] == [980]


def test_fractions_are_cut_off_towards_0() -> None:
    (note,) = of_one([[10.9, 20.9, 30.7, 5.2]], width=1280, height=1280)["annotations"]
    assert note["bbox"] == [10, 20, 30, 5]
    assert note["area"] == int(30.7 * 5.2)
    assert note["segmentation"] == [[10, 20, 10, 26, 41, 26, 41, 20]]


def test_repeated_windows_are_repeated() -> None:
    found = of_one([[1000, 100, 50, 50]], width=1280 + 981, height=1280)
    assert [(i["id"], i["x_start"]) for i in found["images"]] == [(0, 0), (1, 980), (2, 980)]
    assert len({a["id"] for a in found["annotations"]}) == 3


def test_an_image_that_fills_no_window_is_named() -> None:
    assert of_one([[10, 10, 50, 50]], width=1000, height=1280)["images"][0]["width"] == 1280
    with pytest.raises(ValueError, match=r"image 7 \(00000007.ARW\) of 700 x 1280 px fills 0.6 of no window"):
        of_one([[10, 10, 50, 50]], width=700, height=1280)
    with pytest.raises(ValueError, match="must be even"):
        of_one([], size_px=33, gap_px=0)
