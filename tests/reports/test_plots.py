from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from headstart.reports.plots import Line, Mark, curves, phase_marks, residuals, scatter

LINE = Line("loss", [1, 2, 3], [0.9, 0.5, 0.1])


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def test_equal_data_give_equal_bytes_whatever_the_users_settings():
    first = curves([LINE], x_label="epoch", title="t")
    with matplotlib.rc_context({"svg.hashsalt": "other", "font.size": 30, "axes.facecolor": "red"}):
        second = curves([LINE], x_label="epoch", title="t")
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second
    assert "20" not in re.findall(r"<dc:date>(\d\d)", first)


@pytest.mark.parametrize("draw", [scatter, residuals])
def test_every_figure_is_well_formed_and_takes_all_colours_from_the_page(draw):
    for svg in (draw([1.0, 2.0, 4.0], [1.5, 2.0, 3.0], title="t"), curves([LINE], x_label="epoch", title="t")):
        parsed(svg)
        assert "var(--accent)" in svg
        assert not re.findall(r"(?:fill|stroke): #(?!fff)", svg)
        assert "<style" not in svg
        assert "http" not in svg


def test_a_figure_is_told_in_words_and_the_words_are_escaped():
    svg = curves([LINE], x_label="epoch", title='a "quoted" <b>')
    assert parsed(svg).attrib["aria-label"] == 'a "quoted" <b>'
    assert parsed(svg).attrib["role"] == "img"


def test_phases_are_named_above_their_start_but_only_in_plain_letters():
    marks = [Mark(1, "head"), Mark(2.5, "$\\frac$ <script>"), Mark(2.8, "日本")]
    svg = curves([LINE], x_label="epoch", title="t", marks=marks)
    texts = [element.text for element in parsed(svg).iter() if element.tag.endswith("text")]
    assert "head" in texts
    assert "$\\frac$ <script>" in texts  # escaped in the source, not set as a formula
    assert "phase 3" in texts
    assert "<script>" not in svg


def test_a_phase_starts_between_its_first_epoch_and_the_one_before():
    events = [{"phase": 0, "epoch": 1}, {"phase": 0, "epoch": 2}, {"phase": 1, "epoch": 3}]
    assert phase_marks(events, at="epoch", names=["head"]) == (Mark(1, "head"), Mark(2.5, "phase 2"))


def test_a_million_steps_stay_a_small_picture():
    count = 1_000_000
    svg = curves([Line("loss", range(count), [1.0] * count)], x_label="step", title="t")
    assert len(svg) < 40_000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("y", [[float("nan")], [float("nan"), 0.5], [0.0], [1e-9, 5.0], [-1.0, 2000.0]])
def test_odd_values_are_drawn_without_a_warning(y: list[float]):
    parsed(curves([Line("loss", list(range(len(y))), y)], x_label="step", title="t", log=True))
    parsed(scatter([1.0] * len(y), y, title="t"))
    parsed(residuals([1.0] * len(y), y, title="t"))
