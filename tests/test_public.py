"""The public names: what training code may rely on."""

from __future__ import annotations

import inspect

import pytest

import datakit
from datakit.stages.slice import grid


def test_names_are_sorted_and_there() -> None:
    assert datakit.__all__ == sorted(datakit.__all__)
    for name in datakit.__all__:
        assert getattr(datakit, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        datakit.nothing  # noqa: B018


def test_signatures_are_kept() -> None:
    assert list(inspect.signature(datakit.build).parameters)[:3] == ["recipe", "data", "out"]
    assert next(iter(inspect.signature(datakit.Recipe.load).parameters)) == "path"
    assert next(iter(inspect.signature(datakit.Manifest.load).parameters)) == "path"
    parameters = inspect.signature(grid).parameters
    assert list(parameters) == ["width", "height", "size_px", "gap_px", "even"]
    assert grid(1000, 600, 512) == [(0, 0, 512, 512), (488, 0, 512, 512), (0, 88, 512, 512), (488, 88, 512, 512)]
