"""Numbers at curves and axes: short, exact where they must be, and inside the picture."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from daps_robot.report.plots import compact, curve, tick
from daps_robot.report.style import LIGHT

STEPS = np.arange(1.0, 5.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.32549, "0.325"), (25.367, "25.4"), (999.4, "999"), (999.7, "1000"), (1540.3, "1540"), (9999.4, "9999"),
        (9999.8, "10k"), (15401.36, "15.4k"), (-15662.8, "−15.7k"), (-999_960, "−1M"), (1_254_000, "1.25M"),
        (0.0012345, "0.0012"), (-1.234e-7, "−1.2e−7"),
    ],
)  # fmt: skip
def test_the_value_at_the_end_of_a_curve(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.25"), (5000.0, "5000"), (-16000.0, "−16k"), (15655.0, "15.655k"), (1e-5, "1e−5"), (13.32, "13.32")],
)
def test_numbers_at_an_axis_are_exact(value: float, text: str) -> None:
    assert tick(value) == text


@pytest.mark.parametrize("end", [0.001234, 7.5, 1540.0, -9876.0, 15401.0, -15662.8, 123456.0, -1.25e6, -15_662.123])
@pytest.mark.parametrize("range_", [1e-3, 0.5])
def test_no_number_is_cut_off(end: float, range_: float) -> None:
    figure = curve(LIGHT, "nats", valid=np.stack([STEPS, end * (1 + range_ * STEPS[::-1] - range_)]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (ax,) = figure.axes
    labels = [label for label in ax.get_yticklabels() if ax.get_ylim()[0] <= label.get_position()[1] <= ax.get_ylim()[1]]
    for text in [*labels, *ax.texts]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text.get_text()


def test_the_legend_names_what_is_drawn() -> None:
    valid, nothing = np.stack([STEPS, STEPS]), np.stack([STEPS, np.full(4, np.nan)])
    (ax,) = curve(LIGHT, "nats", valid=valid, train=nothing).axes
    assert ax.get_legend() is None and len(ax.lines) == 1
    (ax,) = curve(LIGHT, "nats", valid=valid, train=np.array([[4.0], [9.0]])).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training", "validation"]
    assert ax.lines[0].get_marker() == "o"  # a single point is no line
