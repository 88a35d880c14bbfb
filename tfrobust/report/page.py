"""Result pages: one HTML file with text, figures, tables and the verdicts on claims."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2
import pandas as pd

from tfrobust.errors import InputError
from tfrobust.files import atomic_path

__all__ = ["Claim", "Page", "Section", "Verdict", "write"]

Verdict = Literal["held", "not held", "not decided", "not tested"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper and the verdict of a run's results."""

    statement: str
    verdict: Verdict
    """Not decided: the results are compatible with either answer; not tested: no results."""
    figure: str
    """The numbers that the verdict rests on."""
    source: str
    """Its place in the paper."""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise InputError(f"verdict must be one of {get_args(Verdict)}, got {self.verdict!r}")


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with text, and a figure (the path of a PNG), a table or a link to another page."""

    title: str
    text: str = ""
    _: dataclasses.KW_ONLY
    figure: Path | None = None
    table: pd.DataFrame | None = None
    link: str | None = None
    """Relative to the page."""


@dataclasses.dataclass(frozen=True)
class Page:
    """The content of a run's page."""

    title: str
    lead: str
    """What was run on which data, in a sentence or two."""
    _: dataclasses.KW_ONLY
    sections: tuple[Section, ...]
    claims: tuple[Claim, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)


def write(page: Page, path: str | Path) -> Path:
    """Write a page as one HTML file that needs no other file and no network.

    Args:
        page: its content.
        path: of the file, which is written atomically.

    Raises:
        OSError: a figure could not be read, or the file not written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfrobust", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["inlined"] = _inlined
    environment.filters["rows"] = _rows
    environment.filters["words"] = _words
    html = environment.get_template("page.html.j2").render(page=page)
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _inlined(figure: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(Path(figure).read_bytes()).decode()


def _rows(table: pd.DataFrame) -> list[list[str]]:
    return [[_cell(value) for value in row] for row in table.itertuples(index=False)]


def _words(table: pd.DataFrame) -> list[bool]:
    """Whether each column holds words, which are aligned left."""
    columns = [table.iloc[:, place] for place in range(table.shape[1])]
    return [any(map(_is_word, column)) for column in columns]


def _is_word(value: Any) -> bool:
    """Whether a cell is text that does not begin as a number does."""
    return isinstance(value, str) and value[:1].isalpha()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return str(value)
