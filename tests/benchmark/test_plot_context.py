"""The plot of decode rates against context length."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks.plot_context import Axis, Point, plot, points


def result(model: str, *runs: tuple[int, str, float, str, bool]) -> dict[str, Any]:
    names = ("length", "attention", "decode_tok_s", "kv_dtype", "filled")
    return {
        "machine": {"cores": 2},
        "settings": {"model": model},
        "runs": [dict(zip(names, run, strict=True)) for run in runs],
    }


def test_points_are_medians_and_the_better_cache_of_llama() -> None:
    runs = [(4096, "dense", rate, "int8", False) for rate in (10.0, 90.0, 12.0)]
    runs += [(4096, "llama.cpp", 5.0, "f16", False), (4096, "llama.cpp", 6.0, "q8_0", False)]
    runs += [(1024, "dense", 20.0, "int8", False), (2**20, "sparse", 7.0, "int8", True)]
    assert points(result("m", *runs)) == {
        "dense": [Point(1024, 20.0, False), Point(4096, 12.0, False)],
        "sparse": [Point(2**20, 7.0, True)],
        "llama.cpp": [Point(4096, 6.0, False)],
    }


def test_a_plot_shows_every_point_inside_its_panel() -> None:
    runs = [(4096, "dense", 10.0, "int8", False), (2**20, "dense", 0.05, "int8", True)]
    image = plot([result("a & b", *runs), result("c", *runs, (4096, "sparse", 11.0, "int8", False))])
    tree = ElementTree.fromstring(image)
    space = "{http://www.w3.org/2000/svg}"
    circles = tree.findall(f".//{space}circle")
    assert len(circles) == 5 and sum(circle.get("fill") == "#ffffff" for circle in circles) == 2
    assert all(56 <= float(circle.attrib["cx"]) <= 440 for circle in circles)
    assert all(44 <= float(circle.attrib["cy"]) <= 272 for circle in circles)
    words = [text.text or "" for text in tree.iter(f"{space}text")]
    assert "a & b, 2 cores, cache int8" in words
    assert {"4K", "1M", "0.1", "10"} <= set(words)
    assert words.count("ours, dense") == 2 and words.count("ours, sparse") == 1


def test_an_axis_is_logarithmic() -> None:
    axis = Axis(1.0, 100.0, 0.0, 200.0)
    assert [axis.at(value) for value in (1.0, 10.0, 100.0)] == [0.0, pytest.approx(100.0), pytest.approx(200.0)]
