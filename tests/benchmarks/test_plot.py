"""A table alone is enough for a picture."""

import pytest

from topklm.benchmarks import plot
from topklm.benchmarks.plot import draw_result
from topklm.benchmarks.timing import Plot, Result


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """figure(rows, plot): what is drawn, closed afterwards."""
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, target: drawn.append(figure))

    def make(rows, how=None):
        assert draw_result(Result("title", rows, [], how or Plot()), tmp_path / "x.png")
        return drawn[-1]

    yield make
    for one in drawn:
        plot.plt.close(one)


def bars(axis):
    """Name and length of each bar, from top to bottom."""
    names = {place: text.get_text() for place, text in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)}
    found = {patch.get_y() + patch.get_height() / 2: patch.get_width() for patch in axis.patches}
    return [(names[place], pytest.approx(found[place])) for place in sorted(found, reverse=True)]


def test_bars_need_nothing_but_rows(figure):
    rows = [{"impl": "a", "ms": 3.0, "speed": 1.0}, {"impl": "b", "ms": 1.5, "speed": 2.0}]
    (axis,) = figure(rows).axes
    assert bars(axis) == [("a", 1.0), ("b", 2.0)]
    assert axis.get_xlabel() == "speed"
    (axis,) = figure(rows, Plot(y="ms")).axes
    assert bars(axis) == [("a", 3.0), ("b", 1.5)]


def test_bars_of_one_name_are_told_apart_by_the_numbers_before(figure):
    rows = [{"impl": "a", "d": 1024, "ms": 3.0}, {"impl": "a", "d": 2048, "ms": 1.5}, {"impl": "b", "d": 64, "ms": 1.0}]
    (axis,) = figure(rows).axes
    assert bars(axis) == [("a, d 1,024", 3.0), ("a, d 2,048", 1.5), ("b, d 64", 1.0)]


def test_panels_and_a_column_that_is_not_all_numbers(figure):
    rows = [
        {"what": "reading", "rate": 50.0, "unit": "M tokens/s", "bar": ""},
        {"what": "opening", "rate": 0.5, "unit": "s", "bar": 1.0},
    ]
    axes = figure(rows, Plot(panels=("unit",))).axes
    assert [axis.get_title("left") for axis in axes] == ["M tokens/s", "s"]
    assert [bars(axis) for axis in axes] == [[("reading", 50.0)], [("opening", 0.5)]]
    assert [axis.get_xlabel() for axis in axes] == ["rate", "rate"]


def test_lines(figure):
    rows = [
        {"vary": vary, "value": value, "model": model, "tokens/s": 1000.0 / value}
        for vary in ("width", "depth")
        for value in (8, 2, 4)
        for model in ("TopK", "dense")
    ]
    axes = figure(rows, Plot(y="tokens/s", x="value", series="model", panels=("vary",), log=True)).axes
    assert [axis.get_title("left") for axis in axes] == ["width", "depth"]
    assert [axis.get_xlabel() for axis in axes] == ["value", "value"]
    for axis in axes:
        assert [line.get_label() for line in axis.lines] == ["TopK", "dense"]
        assert [line.get_xydata().tolist() for line in axis.lines] == [[[2, 500], [4, 250], [8, 125]]] * 2
        assert axis.get_xscale() == axis.get_yscale() == "log"
    (legend,) = axes[0].get_figure().legends
    assert [text.get_text() for text in legend.get_texts()] == ["TopK", "dense"]


@pytest.mark.parametrize("values", [(1.02, 2.3), (4, 30), (0.004, 0.9), (0.003, 8)])
def test_a_logarithmic_axis_has_a_few_ticks(figure, values):
    rows = [{"d": d, "ms": ms} for d, ms in zip((1, 2), values, strict=True)]
    (axis,) = figure(rows, Plot(y="ms", x="d", log=True)).axes
    low, high = axis.get_ylim()
    assert 3 <= sum(low <= tick <= high for tick in axis.get_yticks()) <= 9


def test_a_file(tmp_path):
    assert draw_result(Result("t", [{"name": "a", "n": 1}], []), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw(tmp_path):
    assert not draw_result(Result("t", [{"name": "a", "n": "many"}, {"name": "b", "n": 1}], []), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
