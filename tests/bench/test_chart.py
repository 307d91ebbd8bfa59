"""Charts show every point, at the place that its value says."""

from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from tests.bench.chart import HEIGHT, WIDTH, Chart, bars, number, svg

NAME = "{http://www.w3.org/2000/svg}"
LINEAR = Chart("Memory <MB>", "parties", {"evaluator": [(2, 10), (5, 20)], "dealer": [(2, 0)]})
STEEP = Chart("Sent", "rows", {"evaluator": [(10, 1), (100, 10), (1000, 100), (10_000, 10_000)]})


def parsed(rows: Sequence[Sequence[Chart]]) -> ElementTree.Element:
    return ElementTree.fromstring(svg(rows))  # noqa: S314  our own text


def heights(chart: Chart) -> list[float]:
    tree = parsed([[chart]])
    line = next(tree.iter(f"{NAME}polyline")).attrib["points"]
    return [float(point.split(",")[1]) for point in line.split()]


def test_lines_go_through_their_points() -> None:
    first, second = heights(LINEAR)
    bottom = next(float(line) for line in heights(Chart("", "", {"": [(1, 0), (2, 20)]})))
    assert first - second == pytest.approx(bottom - first, abs=0.2)


def test_powers_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    one, ten, hundred, most = heights(STEEP)
    assert one - ten == pytest.approx(ten - hundred, abs=0.2)
    assert hundred - most == pytest.approx(2 * (ten - hundred), abs=0.2)


def test_a_document_holds_all_charts_and_escapes_their_words() -> None:
    tree = parsed([[LINEAR, STEEP], [LINEAR]])
    assert (tree.attrib["width"], tree.attrib["height"]) == (str(2 * WIDTH), str(2 * HEIGHT))
    words = [text.text for text in tree.iter(f"{NAME}text")]
    assert words.count("Memory <MB>") == 2 and "rows" in words and "dealer" in words
    for circle in tree.iter(f"{NAME}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= WIDTH
        assert 0 <= float(circle.attrib["cy"]) <= HEIGHT


def test_bars_are_as_long_as_their_values() -> None:
    title, *rows = bars(LINEAR).splitlines()
    assert title == "Memory <MB>"
    assert [row.count("█") for row in rows] == [21, 40, 1]
    title, *rows = bars(STEEP).splitlines()
    assert title == "Sent (logarithmic)"
    assert [row.count("█") for row in rows] == [1, 11, 21, 40]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0314, "0.0314"), (999, "999"), (12_345, "12,345")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
    assert number(10_000) == "10^4"
