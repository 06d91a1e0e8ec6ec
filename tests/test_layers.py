"""Imports go one way: down. Outside packages have one door each. `import datakit` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import datakit

PACKAGE = Path(datakit.__file__).parent
LAYERS = [
    "errors arguments",
    "remote findings",
    "sample kernels disk ranges ids lonlat",
    "buckets validate hand windows",
    "boxes inherit columns measure manifest files index hamming alone bayer codec bands licences",
    "narrow scales piece raw tally",
    "image place staging stars looks footprints dng views points",
    "shots noise aligned",
    "pixels masks folders ground rules sides contain",
    "sources stages run",
    "dropped decisions",
    "engine recipe pictures listing card tables semantic crowd lookup",
    "guard series signing ondisk hints trouble samples croissant",
    "merge grouping",
    "decide",
    "collect plan query draft collections_page coco_left locate compare",
    "leave imagenet_s geoparquet undone",
    "kinds running copies imagenet_card",
    "origin",
    "imagenet_build",
    "pipeline status stream survey",
    "tar_check",
    "set_parts lint sheets charts",
    "verify report",
    "pretrain repair",
    "evaluate add_column export forms browse stats audit",
    "cli_raw cli_verify cli_map cli_report cli_protect",
    "cli_stream cli_evaluate cli_pretrain cli_forms cli_browse",
    "cli_export",
    "cli",
]
LEVEL = {name: n for n, names in enumerate(LAYERS) for name in names.split()}
DOORS = {
    "torch": {
        "stream.batch",
        "stream.columns",
        "stream.conventions",
        "stream.device",
        "stream.loader",
        "stream.ondevice",
        "stream.replay",
        "pretrain",
        "evaluate",
        "semantic",
    },
    "distributed": {"engine"},
    "timm": {
        "pretrain.backbone",
        "pretrain.exchange",
        "pretrain.formats",
        "pretrain.mae",
        "pretrain.masked",
        "pretrain.selectivemae",
        "evaluate.encoder",
    },
    "dask": {"engine"},
    "rawpy": {"raw"},
    "rasterio": {"image", "pixels", "masks", "place", "sources.geotiff", "sources.synth_world", "sources.synth_plant"},
    "numba": {"kernels", "stream.resample", "stream.huffman", "stream.dct"},
    "simplejpeg": {"stream.decode"},
    "imagededup": {"semantic"},
    "webdataset": {"stream.conventions"},
    "matplotlib": {"charts"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
    "lightning_fabric": {"pretrain.machine"},
    "fsspec": {"remote"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name != "__init__" and not name.startswith("bundled"):
            found[name.removesuffix(".__init__")] = path
    return found


def imported(name: str, path: Path) -> tuple[set[str], set[str]]:
    """Modules of datakit, and outside packages, that a file imports anywhere in it."""
    ours, others = set(), set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            if node.module:
                ours.add(".".join([*base, node.module]))
            else:
                ours |= {".".join([*base, alias.name]) for alias in node.names}
    return {o for o in ours if o and o != "__version__"}, others


def test_imports_go_down() -> None:
    for name, path in modules().items():
        top = name.split(".")[0]
        assert top in LEVEL, f"{name}: not in LAYERS"
        for other in imported(name, path)[0]:
            below = other.split(".")[0]
            if below == top:
                assert top in ("sources", "stream", "pretrain", "evaluate", "browse"), (
                    f"{name} must not import {other}: no stage imports another"
                )
            else:
                assert LEVEL[below] < LEVEL[top], f"{name} must not import {other}"


def test_outside_packages_have_one_door() -> None:
    for name, path in modules().items():
        for other in imported(name, path)[1] & set(DOORS):
            assert {name, name.split(".")[0]} & DOORS[other], f"{name} must not import {other}"


def test_importing_datakit_is_light() -> None:
    code = "import sys, datakit; print(sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1].split())))"
    heavy = "torch timm dask distributed rasterio numba pyarrow imagededup webdataset scipy"
    done = subprocess.run([sys.executable, "-c", code, heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_worker_imports_torch() -> None:
    code = "import sys, datakit.pipeline; print('torch' in sys.modules, 'imagededup' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_files_and_functions_are_short() -> None:
    """One idea a file, one thing a function: at most 380 lines and 45."""
    for name, path in modules().items():
        text = path.read_text()
        assert text.count("\n") <= 380, f"{name}: {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno
                limit = 80 if any("jit" in ast.unparse(d) for d in node.decorator_list) else 45
                assert lines <= limit, f"{name}.{node.name}: {lines} lines"
