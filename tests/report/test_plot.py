"""Scales, thinning and the SVG that comes of them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.report.plot import Marker, Plot, Series, draw_plot, thin_out
from llamafarm.report.scales import make_scale, show_ticks, step_scale

VALUES = st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=40)


def draw(values: list[float | None], **options: object) -> ElementTree.Element:
    series = Series("a<b>&", range(1, len(values) + 1), values)
    return ElementTree.fromstring(draw_plot(Plot("P", "unit", (series,), **options), 440, 250))  # type: ignore[arg-type]


@given(VALUES, st.booleans(), st.booleans())
def test_whatever_is_drawn_lies_in_the_picture(
    values: list[float | None], is_log: bool, from_zero: bool
) -> None:
    for element in draw(values, may_be_log=is_log, from_zero=from_zero).iter():
        for name, limit in (("x", 440), ("y", 250), ("cx", 440), ("cy", 250)):
            place = element.get(name)
            assert place is None or -1 <= float(place) <= limit + 1
        path = element.get("d")
        assert path is None or not set("nai") & set(path)


@given(VALUES, st.booleans())
def test_a_scale_holds_its_figures_and_its_ticks_rise(values: list[float | None], is_log: bool) -> None:
    kept = [
        value
        for value in values
        if value is not None and abs(value) < 1e100 and (not is_log or value > 1e-100)
    ]
    scale = make_scale(kept, is_log=is_log)
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert all(-1e-6 <= scale.place(value) <= 1 + 1e-6 for value in kept)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 4.1], ["0", "1", "2", "3", "4", "5"]),
        ([0.0, 0.002], ["0.0000", "0.0005", "0.0010", "0.0015", "0.0020"]),
        ([0.0, 2e-5], ["0", "5e−6", "1e−5", "1.5e−5", "2e−5"]),
        ([-1, 1], ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        ([0, 52000], ["0", "20,000", "40,000", "60,000"]),
    ],
)
def test_ticks_are_round(values: list[float], labels: list[str]) -> None:
    assert show_ticks(make_scale(values).ticks) == labels


def test_a_logarithmic_scale_has_ticks_of_its_own() -> None:
    assert show_ticks(make_scale([0.02, 3], is_log=True).ticks)[0] == "0.02"
    assert make_scale([1e-8, 10], is_log=True).ticks[0] == pytest.approx(1e-8)


def test_steps_have_whole_ticks() -> None:
    assert step_scale(0, 128).ticks == (0, 25, 50, 75, 100, 125)
    assert step_scale(1, 2).ticks == (1, 2)


def test_thinning_keeps_the_extremes_and_the_ends() -> None:
    points = [(step, math.sin(step / 3)) for step in range(10_000)]
    points[4321] = (4321, 50.0)
    points[8000] = (8000, -50.0)
    (thinned,) = thin_out(points, 200)
    assert len(thinned) <= 4 * 201
    assert {points[0], points[-1], points[4321], points[8000]} <= set(thinned)
    assert thinned == sorted(thinned)


def test_a_gap_parts_a_curve() -> None:
    points = [(1, 1.0), (2, None), (3, 2.0), (4, 3.0)]
    assert thin_out(points, 100) == [[(1, 1.0)], [(3, 2.0), (4, 3.0)]]
    curve = [
        element for element in draw([1.0, None, 2.0, 3.0]).iter() if element.get("class") == "curve line c1"
    ]
    assert curve[0].get("d", "").count("M") == 2


def test_axes_are_named_and_hovering_shows_figures() -> None:
    svg = draw(
        [1.0, 2.0],
        markers=(Marker(1, "best", "step 1<"), Marker(2, "", "odd", "finding")),
        level=(1.5, "limit"),
    )
    texts = [element.text for element in svg.iter() if element.tag == "text"]
    assert "unit (dotted: limit)" in texts
    assert "optimizer step" in texts
    titles = [element.text for element in svg.iter("title")]
    assert {"step 1<", "odd", "step 2\na<b>& 2.000"} <= set(titles)
    assert svg.get("aria-label") == "P: a<b>& from 1.000 at step 1 to 2.000 at step 2"


def test_wide_ranges_are_logarithmic_only_where_that_is_allowed() -> None:
    def unit(**options: object) -> bool:
        return any(
            "logarithmic" in (element.text or "") for element in draw([0.01, 10.0], **options).iter("text")
        )

    assert unit(may_be_log=True)
    assert not unit()
