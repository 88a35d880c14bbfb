"""Pages and figures: self-contained, escaped, whole or absent."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from tfrobust import figures, report


@pytest.fixture
def figure(tmp_path):
    drawn, axes = figures.new(1, 2)
    figures.trail(drawn, axes[0, 0], [1, 3, 2], [1, 2, 3], [10, 1000, 100], "weight")
    x = np.array([1.0, 2.0, np.nan, 4.0, np.inf, 3.0])
    figures.pointwise(axes[0, 1], x, x**2, diagonal=True, title="squares")
    return drawn, axes


def test_figures_are_saved_as_png_and_pdf(figure, tmp_path):
    path = figures.save(figure[0], tmp_path / "figures", "one")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert len(list(path.parent.iterdir())) == 2


def test_trails_follow_the_weights(figure):
    line = figure[1][0, 0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [1, 3, 2])


def test_pointwise_counts_only_what_it_draws(figure):
    axis = figure[1][0, 1]
    assert axis.get_title() == "squares\nSpearman 1.00, n = 4"
    assert len(axis.collections[0].get_offsets()) == 4


def test_image_grids_show_images_and_maps(rng, tmp_path):
    rows = [("image", rng.random((3, 8, 8, 1))), ("map", rng.normal(size=(3, 8, 8, 1)))]
    grid = figures.image_grid(rows)
    images = [axis.images[0] for axis in grid.axes]
    assert len(images) == 6
    assert images[0].get_clim() == (0, 1)
    low, high = images[3].get_clim()
    assert low == -high


def page(figure=None):
    return report.Page(
        title="A <run>",
        lead="What & where",
        sections=(
            report.Section("Table", table=pd.DataFrame({"a": [1.23456789, np.nan], "b": [1, 2]})),
            report.Section("Figure", "words", figure=figure),
        ),
        claims=(report.Claim("it <holds>", "not held", "r = 0.1", "Figure 3"),),
        settings={"seed": 0},
        versions={"python": "3"},
    )


def test_a_page_is_one_file_that_needs_no_other(figure, tmp_path):
    png = figures.save(figure[0], tmp_path, "one")
    html = report.write(page(png), tmp_path / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert "http" not in html
    assert "data:image/png;base64,iVBOR" in html
    assert "A &lt;run&gt;" in html
    assert "it &lt;holds&gt;" in html
    assert 'class="verdict not-held"' in html
    assert "<td>1.235</td>" in html
    assert "<td></td>" in html  # NaN


def test_words_are_aligned_left_and_numbers_right(tmp_path):
    table = pd.DataFrame({"name": ["net", ""], "share": ["3 of 4", "95.1%"], "n": [1.0, 2.0]})
    content = dataclasses.replace(page(), sections=(report.Section("T", table=table),))
    html = report.write(content, tmp_path / "a.html").read_text()
    assert '<th class="word">name</th><th>share</th><th>n</th>' in html
    assert '<td class="word">net</td><td>3 of 4</td><td>1</td>' in html


def test_a_missing_figure_leaves_no_half_page(tmp_path):
    with pytest.raises(OSError, match="none"):
        report.write(page(tmp_path / "none.png"), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_verdicts_are_four(tmp_path):
    verdicts = ("held", "not held", "not decided", "not tested")
    claims = tuple(report.Claim("", verdict, "", "") for verdict in verdicts)
    assert [claim.verdict for claim in claims] == list(verdicts)
    with pytest.raises(ValueError, match=r"one of .*'not decided'.*, got 'maybe'"):
        report.Claim("", "maybe", "", "")
    html = report.write(dataclasses.replace(page(), claims=claims), tmp_path / "a.html").read_text()
    shown = re.findall(r'<td class="verdict ([a-z-]+)">([a-z ]+)</td>', html)
    assert shown == [(verdict.replace(" ", "-"), verdict) for verdict in verdicts]
    assert all(f".{name} {{" in html for name, _ in shown)  # each has its colour
