"""Diagrams are SVG with the values in the right places."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from hf_feedback.evaluation.diagnostics import Bin
from hf_feedback.evaluation.report.svg_charts import (
    ACCENT,
    GREY,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    line_chart,
    nice_ticks,
    reliability_diagram,
)

SVG = "{http://www.w3.org/2000/svg}"


def circles(svg, color=ACCENT):
    found = [one for one in ET.fromstring(svg).iter(f"{SVG}circle") if one.get("fill") == color]
    return [(float(one.get("cx")), float(one.get("cy"))) for one in found]


def words(svg):
    return [one.text for one in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("low", "high"), [(0.83, 0.91), (0, 1), (0.5, 0.5), (0, 0), (-3, 250), (1e-5, 2e-5), (0.1, 0.1000001)]
)
def test_ticks_are_round_and_cover_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    steps = {f"{b - a:.1e}" for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1
    assert steps.pop()[:3] in ("1.0", "2.0", "5.0")


def test_points_stand_at_their_values():
    svg = line_chart({"accuracy": [0.5, 0.75, 1.0]}, [1, 2, 3], "accuracy", percent=True)
    (x1, y1), (x2, y2), (x3, y3) = circles(svg)
    assert (x1, x2, x3) == pytest.approx((LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT))
    assert y3 == pytest.approx(TOP)
    assert y2 == pytest.approx((y1 + y3) / 2, abs=0.1)
    assert y1 < HEIGHT
    assert {"50%", "100%", "accuracy", "iteration"} <= set(words(svg))


def test_a_gap_divides_a_line():
    svg = line_chart({"a": [1.0, None, 2.0, float("nan"), 3.0, 4.0]}, range(1, 7), "a line")
    (path,) = [one.get("d") for one in ET.fromstring(svg).iter(f"{SVG}path")]
    assert len(circles(svg)) == 4
    assert re.sub(r"[\d.,]", "", path).split() == ["M", "M", "ML"]


def test_a_chart_of_nothing_is_drawn():
    assert circles(line_chart({"a": [None]}, [1], "nothing")) == []


def test_a_marked_iteration_is_named():
    assert "K = 2" in words(line_chart({"a": [1.0, 2.0]}, [1, 2], "a line", marked=2))


def test_words_are_escaped_and_long_names_stay_in_the_picture():
    names = ["<b>&subscription_cancel", "subscription_renewal", "product_question"]
    svg = line_chart({name: [0.1, 0.2] for name in names}, [1, 2], "<i>")
    assert "<b>" not in svg
    assert "<i>" not in svg
    legend = [one for one in ET.fromstring(svg).iter(f"{SVG}text") if one.get("text-anchor") == "start"]
    assert [one.text[:4] for one in legend] == [name[:4] for name in names]
    assert all(float(one.get("x")) + 6.3 * len(one.text) <= WIDTH for one in legend)


def test_a_reliability_diagram_has_a_circle_for_each_bin_that_is_not_empty():
    full = Bin(low=0.4, high=0.5, count=4, confidence=0.5, accuracy=1.0)
    empty = Bin(low=0.5, high=0.6, count=0, confidence=None, accuracy=None)
    svg = reliability_diagram([full, empty], "reliability")
    ((x, y),) = circles(svg)
    diagonal = next(one for one in ET.fromstring(svg).iter(f"{SVG}line") if one.get("stroke") == GREY)
    left, bottom, right, top = (float(diagonal.get(name)) for name in ("x1", "y1", "x2", "y2"))
    assert x == pytest.approx((left + right) / 2)
    assert y == pytest.approx(top)
    assert bottom > top
