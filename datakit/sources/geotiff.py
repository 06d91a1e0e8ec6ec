"""Header facts of TIFF, GeoTIFF and COG files, through rasterio: bands by name, type, nodata, place."""

from __future__ import annotations

import json
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError

from ..image import COLOURS, GRAY, Header

OTHERS = {b"\x89PNG": "PNG", b"\xff\xd8\xff\xe0": "JPEG", b"\xff\xd8\xff\xe1": "JPEG"}  # that GDAL reads by rows
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
VISIBLE = {"red", "green", "blue", "yellow", "gray", "pan", "coastal"}
INFRARED = {"nir", "narrow_nir", "infrared", "tir", "swir", "swir_1", "swir_2", "water_vapour", "cirrus"}
RED_EDGES = {"red_edge", "red_edge_1", "red_edge_2", "red_edge_3"}
RADAR = {"vv", "vh", "hh", "hv"}
KNOWN_BANDS = frozenset(VISIBLE | INFRARED | RED_EDGES | RADAR)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def header(
    name: str, expected: tuple[str, ...], driver: str = "GTiff", opener: Any = None
) -> tuple[Header, dict[str, Any]]:
    """Header facts, and place (fields of `Sample`), of the TIFF, or what `driver` reads, that GDAL calls `name`.

    expected: band names that the manifest gives. opener: what opens the name, if GDAL itself does not.
    """
    with rasterio.open(name, driver=driver, opener=opener) as raster:
        interpretation = [c.name for c in raster.colorinterp]
        alpha = "alpha" in interpretation
        bands = band_names(raster, interpretation, expected)
        bits = raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "8")
        facts = Header(
            width=raster.width,
            height=raster.height,
            bands=bands,
            alpha=alpha,
            # GDAL spreads bilevel images over 0..255, but gives 2 to 7 bits as they are: nearly black
            dtype=f"uint{bits}" if raster.dtypes[0] == "uint8" and bits not in ("1", "8") else str(raster.dtypes[0]),
            format=driver,
            frames=max(len(raster.subdatasets), 1),
        )
        return facts, {"nodata": raster.nodata, **place(raster)}


def band_names(raster: Any, interpretation: list[str], expected: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the bands that are no alpha: the file's own where they are names, else the manifest's, else colours.

    Three bands are red, green and blue only where somebody says so: an infrared composite has three bands too.
    """
    kept = [i for i, name in enumerate(interpretation) if name != "alpha"]
    if interpretation[0] == "palette" and len(kept) == 1:
        return ("red", "green", "blue")
    described = [(raster.descriptions[i] or "").strip().lower().replace(" ", "_") for i in kept]
    if all(name in KNOWN_BANDS for name in described):
        return tuple(described)
    colours = tuple(interpretation[i] for i in kept)
    if sorted(colours) == sorted(COLOURS) and colours != COLOURS:
        return colours  # nobody writes blue, green, red unless it is so
    if str(raster.photometric or "").endswith("lab"):
        return ("lightness", "a", "b")
    if len(expected) == len(kept):
        return expected
    if colours in (COLOURS, GRAY):
        return colours
    return tuple(f"band{i + 1}" for i in kept)


def place(raster: Any) -> dict[str, Any]:
    """CRS, transform and ground control points, exact, as fields of `Sample`."""
    points, points_crs = raster.gcps
    transform = tuple(float(v) for v in raster.transform[:6])
    if points:
        gcps = json.dumps([[p.col, p.row, p.x, p.y, p.z or 0.0] for p in points])
        return {"crs": spelled(points_crs), "transform": None, "gcps": gcps}
    if transform == IDENTITY:
        return {"crs": spelled(raster.crs), "transform": None}
    return {"crs": spelled(raster.crs), "transform": transform}


def crs_of(text: str) -> str:
    """A CRS that WKT or a code gives, spelled as one of a file is. ValueError if PROJ does not know it."""
    try:
        return spelled(CRS.from_user_input(text))
    except (CRSError, CPLE_BaseError) as exc:
        raise ValueError(f"{text:.40}: {exc}") from None


def spelled(crs: Any) -> str:
    """EPSG:n where the file says so, else WKT."""
    if not crs:
        return ""
    authority = crs.to_authority(confidence_threshold=100)
    return ":".join(authority) if authority else str(crs.to_wkt())
