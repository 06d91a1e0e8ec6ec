"""Labels from files made on the spot, in every layout, whole and damaged."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit.boxes import Box
from datakit.errors import SourceError
from datakit.manifest import ClassFolders, CocoJson, DotaText, VocXml
from datakit.sample import Sample
from datakit.sources.labels import Labelled, LabelReader

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "rs"
IMAGE = Sample(name="images/P1.png")
NOTHING = Labelled(boxes=[])
COCO = CocoJson(path="instances.json", images="train")


def reader(labels, files: Mapping[str, bytes | str]) -> Callable[[str], Labelled]:
    plain = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}
    read = LabelReader(labels if isinstance(labels, tuple) else (labels,), plain.get)
    return lambda name: read(Sample(name=name))


def dota(text: bytes | str) -> Labelled:
    return reader(DotaText(), {"labelTxt/P1.txt": text})("images/P1.png")


def voc(*objects: str) -> Labelled:
    text = '<?xml version="1.0"?>\n<annotation>\n' + "\n".join(objects) + "\n</annotation>"
    return reader(VocXml(), {"Annotations/7.xml": text})("images/7.jpg")


def coco(plain: object) -> Labelled:
    return reader(COCO, {"instances.json": json.dumps(plain)})("train/a/1.jpg")


def one(**note: object) -> dict[str, object]:
    image = {"id": 1, "file_name": "./a/1.jpg", "date_captured": "2024-01-01"}
    return {"images": [image], "categories": [{"id": 3, "name": "ship"}, {"id": 4, "name": "ignore"}],
            "annotations": [{"id": 8, "image_id": 1, "category_id": 3, **note}]}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "level", "label"),
    [("airport/1.jpg", 1, "airport"), ("airport/a/1.jpg", 2, "airport"), ("1.jpg", 1, ""), ("a/1.jpg", 2, "")],
)
def test_class_is_the_folder(name, level, label):
    assert reader(ClassFolders(level=level), {})(name) == NOTHING._replace(label=label)


def test_folders_that_are_no_class_are_skipped():
    read = reader(ClassFolders(skip=("test", "misc")), {})
    assert [read(name).label for name in ("train/bridge/1.jpg", "test/1.jpg", "train/misc/1.jpg", "test/a/1.jpg")] == [
        "bridge", "", "", "a",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["images/P1.png", "P1.png", "a/b/P1.png"])
def test_no_label_file_is_no_error(name):
    assert reader((ClassFolders(level=9), DotaText(), VocXml(), COCO), {})(name) == NOTHING


def test_of_several_places_of_a_label_file_the_first_that_is_there_is_read():
    several = (DotaText(path="a/{stem}.txt"), DotaText(path="b/{stem}.txt"), VocXml(path="b/{stem}.xml"))
    xml = "<a><object><name>plane</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    files = {"b/P1.txt": "1 1 9 1 9 9 1 9 ship 0", "b/P1.xml": f"{xml}</object></a>"}
    assert [box.category for box in reader(several, files)("P1.png").boxes] == ["ship", "plane"]
    both = files | {"a/P1.txt": "1 1 9 1 9 9 1 9 tank 0"}
    assert [box.category for box in reader(several, both)("P1.png").boxes] == ["tank", "plane"]


def test_a_file_of_many_images_is_parsed_once_for_all_folders_that_it_may_be_of():
    asked: list[str] = []
    data = json.dumps(one(bbox=[1, 1, 5, 5])).encode()

    def read(name: str) -> bytes:
        asked.append(name)
        return data

    labels = LabelReader((CocoJson(path="i.json", images="x"), CocoJson(path="i.json", images="{dir}/..")), read)
    assert [len(labels(Sample(name=name)).boxes) for name in ("y/a/1.jpg", "z/a/1.jpg", "1.jpg")] == [1, 1, 0]
    assert asked == ["i.json"]


@pytest.mark.parametrize("template", ["../{stem}.txt", "{dir}/../../{stem}.txt", "/{stem}.txt", "{dir}/../.."])
def test_a_path_out_of_the_collection_is_never_read(template):
    def read(name: str) -> bytes:
        pytest.fail(f"read {name}")

    assert LabelReader((DotaText(path=template), CocoJson(path=template)), read)(IMAGE) == NOTHING
    assert LabelReader((CocoJson(path="a.json", images="../x"),), read)(IMAGE) == NOTHING


def test_templates_take_folder_stem_and_name():
    asked: list[str] = []
    template = "{dir}/../txt/./{stem}/{name}.txt"
    LabelReader((DotaText(path=template),), lambda name: asked.append(name))(Sample(name="./a/images/P1.{stem}.png"))
    assert asked == ["a/txt/P1.{stem}/P1.{stem}.png.txt"]


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("{dir}/{stem:-4}_mask.png", "a/855_mask.png"),  # DeepGlobe
        ("{dir}/{stem:+4}.png", "a/sat.png"),
        ("{stem:-0}.{stem:+0}", "855_sat.855_sat"),
        ("x{stem:-7}{stem:-99}{stem:+99}", "x"),
        ("{stem:4}{dir:-1}", "{stem:4}{dir:-1}"),
        ("{dir}/../m/{folder}/{stem}.png", "m/a/855_sat.png"),
    ],
)
def test_templates_take_parts_of_the_stem(template, path):
    asked: list[str] = []
    LabelReader((DotaText(path=template),), lambda name: asked.append(name))(Sample(name="a/855_sat.jpg"))
    assert asked == [path]


@given(st.text("ab_.-", min_size=1, max_size=9), st.integers(0, 12))
def test_the_two_parts_of_a_stem_make_the_stem(stem, count):
    asked: list[str] = []
    file = f"{stem}.jpg" if stem.strip(".") else "a.jpg"
    whole = file[:-4]
    read = LabelReader((DotaText(path=f"x{{stem:-{count}}}/x{{stem:+{max(len(whole) - count, 0)}}}"),), asked.append)
    read(Sample(name=file))
    head, tail = (part[1:] for part in asked[0].split("/"))
    assert head + tail == whole


def test_dota_lines_and_headers():
    found = dota(
        "\ufeffimagesource:GoogleEarth\r\ngsd:0.25\r\nacquisition dates:2016-05-04\r\n\r\n"
        "1 2 3 2 3.5 4 1 4 ship 1\r\n0 0 1 0 1 1 0 1 small-vehicle\r\n \r\n0 0 1 0 1 1 0 1 a:b 0"
    )
    assert found.boxes == [
        Box("ship", (1.0, 2.0, 3.0, 2.0, 3.5, 4.0, 1.0, 4.0), difficult=True, kind="quad"),
        Box("small-vehicle", (0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0), kind="quad"),
        Box("a:b", (0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0), kind="quad"),
    ]
    assert (found.label, found.gsd_m, found.acquired) == ("", 0.25, "2016-05-04")


@pytest.mark.parametrize(
    "head",
    ["", "gsd:null", "gsd:None", "gsd:", "gsd:0", "gsd: 0.0", "gsd:NaN", "acquisition dates:None", "imagesource:GF"],
)
def test_dota_unknown_headers_are_unknown(head):
    assert dota(head) == NOTHING


@pytest.mark.parametrize(
    ("line", "difficult"),
    [
        ("1 2 3 2 3 4 1 4 ship", False),
        ("1 2 3 2 3 4 1 4 ship 0.0", False),
        ("1 2 3 2 3 4 1 4 ship 1.0", True),
        ("1 2 3 2 3 4 1 4 ship -1", True),
        ("1 2 3 2 3 4 1 4 ship 2", True),
        ("1,2,3,2,3,4,1,4,ship,0", False),
        ("1, 2, 3, 2, 3, 4, 1, 4, ship, 1,", True),
        ("1 2 3 2 3 4 1 4,ship,1", True),
    ],
)
def test_dota_lines_that_leave_nothing_to_guess(line, difficult):
    (box,) = dota(line).boxes
    assert box == Box("ship", (1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 1.0, 4.0), difficult=difficult, kind="quad")


def test_dota_metres_may_have_their_unit():
    assert [dota(f"gsd:{text}").gsd_m for text in ("0.5", "0.5m", "0.5 m")] == [0.5] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gsd:1\n1 2 3 4 5 6 ship 0", r"labelTxt/P1\.txt, line 2: expected x1 y1 .* found '1 2 3"),
        ("1 2 3 4 5 6 7 8 storage tank 0", "line 1: expected x1 y1"),
        ("\r\n\r\n1 2 3 4 5 6 7 nan ship 0", "line 3: expected a number, found 'nan'"),
        ("1 2 3 4 5 6 7 8 ship maybe", r"difficult \(0 or 1\)"),
        ("gsd:-1", "line 1: expected metres a pixel above 0, or null, found '-1'"),
        ("gsd:m", "line 1: expected a number, found ''"),
        ("1,2,3,4,5,6,7,8,,0", "line 1: expected x1 y1"),
        ("1,2,3,4,5,6,7,8,storage,tank,0", "line 1: expected x1 y1"),
        ("1 2 3 4 5 6 7 1e300 ship 0", "line 1: expected a number, found '1e300'"),
        ("gsd:fine", "line 1: expected a number, found 'fine'"),
        (b"gsd:1\n\xff\xfe", "line 2: expected UTF-8 text, found byte 0xff"),
    ],
)
def test_dota_damage_is_told_by_file_and_line(text, message):
    with pytest.raises(SourceError, match=message):
        dota(text)


@given(st.text() | st.text("0123456789. \n\rgsd:ship-e", max_size=80) | st.binary())
def test_dota_reads_or_refuses_anything(text):
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    with contextlib.suppress(SourceError):
        assert all(len(box.points) == 8 for box in dota(data).boxes)


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_xml_and_json_are_read_or_refused(text):
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    for labels in (VocXml(path="x"), CocoJson(path="x")):
        with pytest.raises(SourceError, match="x"):
            reader(labels, {"x": b"<a b=" + data})("1.jpg")


def test_voc_shapes():
    bndbox = "<bndbox><ymin>2</ymin><xmin>1</xmin><xmax>4</xmax><ymax>3</ymax></bndbox>"
    sides = ("left_top", "right_top", "right_bottom", "left_bottom")
    given_corners = "".join(f"<x_{side}>{i}</x_{side}><y_{side}>{i * i}</y_{side}>" for i, side in enumerate(sides))
    numbered = "".join(f"<x{i}>{i}</x{i}><y{i}>{i * i}</y{i}>" for i in range(1, 4))
    listed = "".join(f"<point>{p}</point>" for p in ("0,0", "2.5,0", "2,2", "0,2", "0,0"))
    turn = f"<cx>10</cx><cy>20</cy><w>4</w><h>2</h><angle>{math.pi / 2}</angle>"
    found = voc(
        f"<object><name> ship </name><difficult>1</difficult>{bndbox}<part><name>bow</name>{bndbox}</part></object>",
        f"<object><name>plane</name><robndbox>{given_corners}</robndbox>{bndbox}</object>",
        f"<object><name>car</name><robndbox>{turn}</robndbox></object>",
        f"<object><name>lake</name><polygon>{numbered}</polygon></object>",
        f"<object><possibleresult><name>A220</name></possibleresult><points>{listed}</points></object>",
    )
    assert found.boxes == [
        Box("ship", (1.0, 2.0, 4.0, 2.0, 4.0, 3.0, 1.0, 3.0), difficult=True, kind="box"),
        Box("plane", (0.0, 0.0, 1.0, 1.0, 2.0, 4.0, 3.0, 9.0), kind="quad"),
        Box("car", (11.0, 18.0, 11.0, 22.0, 9.0, 22.0, 9.0, 18.0), kind="quad"),
        Box("lake", (1.0, 1.0, 2.0, 4.0, 3.0, 9.0), kind="polygon"),
        Box("A220", (0.0, 0.0, 2.5, 0.0, 2.0, 2.0, 0.0, 2.0), kind="quad"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<object>\n<name>a</name><bndbox>\n<xmin>1</xmin></bndbox></object>", "line 4: expected <ymin> in <bndbox>"),
        ("<object><name>a</name>\n<polygon><x1>1</x1><x2>2</x2></polygon></object>", "line 4: expected 3 or more"),
        ("<object><name>a</name>\n<points><point>1;2</point></points></object>", "expected a number, found '1;2'"),
        (
            "<object><name>a</name>\n<polygon><x1>1</x1><y1>1</y1><y2>2</y2><x2>2</x2><x3>3</x3><y3>4</y3></polygon></object>",
            "line 4: expected 3 or more",
        ),
        ("\n<object><name>a</name></object>", "line 4: expected <name> and one of points, polygon"),
        ("<object>", r"7\.xml, line 4: expected XML, found: mismatched tag"),
    ],
)
def test_voc_damage_is_told_by_file_and_line(text, message):
    with pytest.raises(SourceError, match=message):
        voc(text)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp037"])
def test_voc_refuses_a_doctype_however_it_is_written(codec):
    laughs = '<!DOCTYPE a [<!ENTITY l "ha"><!ENTITY m "&l;&l;&l;&l;&l;&l;">]>\n<a>&m;</a>'
    data = f'<?xml version="1.0" encoding="{codec.removesuffix("-sig")}"?>\n{laughs}'.encode(codec)
    with pytest.raises(SourceError, match=r"without a DOCTYPE|text in UTF-8|expected XML"):
        reader(VocXml(path="a.xml"), {"a.xml": data})("1.jpg")
    with pytest.raises(SourceError, match="line 3: expected XML without a DOCTYPE"):
        voc(laughs)


def test_voc_reads_the_encoding_it_declares():
    text = '<?xml version="1.0" encoding="gb2312"?><a><object><name>船</name><bndbox>'
    text += "<xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></a>"
    (box,) = reader(VocXml(path="a.xml"), {"a.xml": text.encode("gb2312")})("1.jpg").boxes
    assert box.category == "船"


def test_coco_shapes():
    corners = (10.0, 20.0, 13.0, 20.0, 13.0, 24.5, 10.0, 24.5)
    bbox = [10, 20, 3, 4.5]
    runs = {"counts": [1, 2], "size": [3, 1]}
    triangles = [[0, 0, 1, 0, 1, 1], [5, 5, 6, 5, 6, 6.5]]
    assert coco(one(bbox=bbox)).boxes == [Box("ship", corners, kind="box")]
    assert coco(one(bbox=bbox, segmentation=[[]])).boxes == [Box("ship", corners, kind="box")]
    assert coco(one(bbox=bbox, segmentation=runs, iscrowd=1)).boxes == [Box("ship", corners, ignore=True, kind="box")]
    assert coco(one(bbox=bbox, category_id=4)).boxes == [Box("ignore", corners, ignore=True, kind="box")]
    polygons = [Box("ship", tuple(map(float, t)), kind="polygon") for t in triangles]
    assert coco(one(bbox=bbox, segmentation=triangles)) == NOTHING._replace(boxes=polygons)
    more = one(bbox=bbox)
    more["annotations"] += one(bbox=bbox, image_id=2)["annotations"]
    assert len(coco(more).boxes) == 1
    line, flat = [[1, 1, 2, 2]], triangles[0]
    assert coco(one(bbox=bbox, segmentation=line)).boxes == [Box("ship", corners, kind="box")]
    assert coco(one(bbox=bbox, segmentation=[*line, triangles[0]])).boxes == polygons[:1]
    assert coco(one(bbox=bbox, segmentation=flat)).boxes == polygons[:1]


def packed(counts: list[int]) -> str:
    """Run lengths as text, after rleToString of COCO's maskApi.c, number by number."""
    text = ""
    for n, count in enumerate(counts):
        value, more = count - (counts[n - 2] if n > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_coco_run_lengths_without_a_bbox_are_the_bounds_of_their_px(height, width, data):
    mask = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    counts = [0]
    for n, px in enumerate(mask):  # down the columns; the first run is of 0
        if px != (len(counts) % 2 == 0):
            counts.append(0)
        counts[-1] += 1
        assert sum(counts) == n + 1
    inside = [divmod(n, height) for n, px in enumerate(mask) if px]
    for spelled in (counts, packed(counts)):
        found = coco(one(segmentation={"size": [height, width], "counts": spelled})).boxes
        if not inside:
            assert found == []
            continue
        left, top = (min(at[axis] for at in inside) for axis in (0, 1))
        right, bottom = (max(at[axis] for at in inside) + 1 for axis in (0, 1))
        corners = tuple(map(float, (left, top, right, top, right, bottom, left, bottom)))
        assert found == [Box("ship", corners, kind="box")]


def test_coco_run_lengths_of_large_numbers_are_unpacked():
    counts = [70_000, 33, 5, 900, 100_000 - 70_938]
    runs = {"size": [100, 1000], "counts": packed(counts)}
    assert coco(one(segmentation=runs)) == coco(one(segmentation={**runs, "counts": counts}))


@pytest.mark.parametrize("wrong", ["image", "category", "both"])
def test_coco_ids_may_be_text_in_one_list_and_numbers_in_the_other(wrong):
    plain = one(bbox=[1, 2, 3, 4])
    (note,) = plain["annotations"]
    note |= {"image_id": "1"} if wrong != "category" else {"category_id": 3.0}
    note |= {"category_id": "3"} if wrong == "both" else {}
    assert [box.category for box in coco(plain).boxes] == ["ship"]


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([], r"instances\.json: expected lists of images"),
        ({"images": [{"id": [], "file_name": "a"}]}, "expected lists of images"),
        (one(bbox=[1, 2, 3]), r"instances\.json, annotation 8: expected bbox"),
        (one(bbox=[1, 2, 3, math.inf]), "expected a number, found inf"),
        (one(bbox=[1, 2, 3, 4], category_id=9), "category_id 9 is not among the categories"),
        (one(segmentation=[[1, 2, 3, 4]]), "annotation 8: expected bbox"),
        (one(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 8: expected segmentation"),
        (one(segmentation=[1, 2, 3]), "annotation 8: expected segmentation"),
        (one(segmentation=[[1, 2, 3, 4, 5, 6], None]), "annotation 8: expected segmentation"),
        (one(segmentation={"size": [2, 2], "counts": [1, 2]}), "annotation 8: expected run lengths that fill"),
        (one(segmentation={"size": [2, 2], "counts": [5, -1]}), "annotation 8: expected run lengths that fill"),
        (one(segmentation={"size": [2], "counts": [2]}), "annotation 8: expected run lengths that fill"),
        (one(segmentation={"size": [2, 2], "counts": "é"}), "annotation 8: expected run lengths that fill"),
        (one(segmentation={"size": [2, 2], "counts": "4P"}), "annotation 8: expected run lengths that fill"),
        (one(bbox=[1, 2, 3, 4], image_id="one"), "no annotation is of one of its images: 1 annotations, the first of"),
        (one(bbox=[1, 2, 3, 4], image_id=[1]), "expected lists of images"),
        (
            {"images": [{"id": 1, "file_name": "a"}, {"id": "1", "file_name": "b"}]},
            "id 1 is text and number, of a and b",
        ),
    ],
)
def test_coco_damage_is_told(plain, message):
    with pytest.raises(SourceError, match=message):
        coco(plain)


@pytest.mark.parametrize("text", [json.dumps(one(bbox=[1, 2, 3, 4])), '{"images":\n[}'])
def test_a_coco_file_is_parsed_once_even_if_damaged(text):
    asked: list[str] = []
    files = LabelReader((COCO,), lambda name: asked.append(name) or text.encode())
    for _ in range(3):
        if "annotations" in text:
            assert len(files(Sample(name="train/a/1.jpg")).boxes) == 1
        else:
            with pytest.raises(SourceError, match=r"instances\.json, line 2: expected JSON"):
                files(Sample(name="train/a/1.jpg"))
    assert asked == ["instances.json"]


def test_layouts_add_up():
    files = {"ship/P1.txt": "gsd:2\n0 0 1 0 1 1 0 1 ship 0", "P1.xml": "<a/>"}
    labels = (ClassFolders(), DotaText(path="{dir}/{stem}.txt"), VocXml(path="{stem}.xml"))
    found = reader(labels, files)("ship/P1.png")
    assert (found.label, len(found.boxes), found.gsd_m) == ("ship", 1, 2.0)


FAIR1M = """<?xml version="1.0" encoding="utf-8"?>
<annotation>
  <source><filename>7.tif</filename><origin>GF2/GF3</origin></source>
  <research><version>1.0</version><provider>Company/School of team</provider><author>Cyber</author>
    <pluginname>FAIR1M</pluginname><pluginclass>object detection</pluginclass><time>2021-03</time></research>
  <size><width>1000</width><height>1000</height><depth>3</depth></size>
  <objects>
    <object>
      <coordinate>pixel</coordinate><type>rectangle</type><description>None</description>
      <possibleresult><name>Boeing737</name><probability>1.0</probability></possibleresult>
      <points><point>482.000000,331.500000</point><point>501.250000,352.000000</point>
        <point>481.000000,371.000000</point><point>461.750000,350.500000</point><point>482.000000,331.500000</point>
      </points>
    </object>
    <object>
      <coordinate>pixel</coordinate><type>rectangle</type><description>None</description>
      <possibleresult><name>other-vehicle</name></possibleresult>
      <points><point>1.0,2.0</point><point>5.0,2.0</point><point>5.0,9.0</point><point>1.0,9.0</point></points>
    </object>
  </objects>
</annotation>
"""
DIOR_R = """<annotation>
  <folder>DIOR</folder><filename>7.jpg</filename><source><database>DIOR</database></source>
  <size><width>800</width><height>800</height><depth>3</depth></size><segmented>0</segmented>
  <object>
    <type>robndbox</type><name>Expressway-toll-station</name><pose>Unspecified</pose><truncated>0</truncated>
    <difficult>0</difficult><angle>ANGLE</angle>
    <robndbox>INSIDE
      <x_left_top>357</x_left_top><y_left_top>332</y_left_top><x_right_top>382</x_right_top><y_right_top>296</y_right_top>
      <x_right_bottom>461</x_right_bottom><y_right_bottom>351</y_right_bottom>
      <x_left_bottom>436</x_left_bottom><y_left_bottom>387</y_left_bottom>
    </robndbox>
  </object>
</annotation>
"""
POLYGON = """<annotation><object><name>airplane</name><difficult>1</difficult>
  <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
  <polygon><x1>1</x1><y1>5</y1><x2>5</x2><y2>1</y2><x3>9</x3><y3>5</y3><x4>5</x4><y4>9</y4></polygon>
</object></annotation>"""


def test_relatives_of_voc():
    def of(text: str) -> list[Box]:
        return list(reader(VocXml(), {"Annotations/7.xml": text})("images/7.jpg").boxes)

    assert of(FAIR1M) == [
        Box("Boeing737", (482.0, 331.5, 501.25, 352.0, 481.0, 371.0, 461.75, 350.5), kind="quad"),
        Box("other-vehicle", (1.0, 2.0, 5.0, 2.0, 5.0, 9.0, 1.0, 9.0), kind="quad"),
    ]
    toll = Box("Expressway-toll-station", (357.0, 332.0, 382.0, 296.0, 461.0, 351.0, 436.0, 387.0), kind="quad")
    assert of(DIOR_R) == of(DIOR_R.replace("INSIDE", "<angle>0.6</angle>")) == [toll]
    assert of(POLYGON) == [Box("airplane", (1.0, 5.0, 5.0, 1.0, 9.0, 5.0, 5.0, 9.0), difficult=True, kind="quad")]


@pytest.mark.parametrize(("stem", "count", "gsd_m"), [("P0706", 536, 0.255589285596), ("P1234", 144, 1.0)])
def test_real_dota_files(stem, count, gsd_m):
    if not (REAL / "labelTxt" / f"{stem}.txt").exists():
        pytest.skip("the sample labels are not beside this checkout")
    read = LabelReader((DotaText(path="labelTxt/{stem}.txt"),), lambda name: (REAL / name).read_bytes())
    found = read(Sample(name=f"{stem}.png"))
    assert (len(found.boxes), found.gsd_m) == (count, gsd_m)
