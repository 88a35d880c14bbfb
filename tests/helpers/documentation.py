"""The documentation as the tests read it: pages, their blocks, their links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# inline code that begins with one of the two kinds of commands
_COMMAND = re.compile(r"^(?:tfrobust \w+|(?:\S+ )*?python -m (?:experiments|benchmarks)\.\S+).*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None
    """Why it is not run, as an HTML comment above it says."""


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        line = text[: match.start("text")].count("\n")
        yield Block(page, line, match["language"], match["text"], match["reason"])


def without_blocks(page):
    return _BLOCK.sub("", page.read_text())


def links(page):
    """Targets of all links and images of a page that lead into the repository."""
    return [link for link in _LINK.findall(without_blocks(page)) if "://" not in link]


def anchors(page):
    """Of a page's headings, as the site and the repository's pages make them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def commands(page):
    """Shell commands of experiments and of `tfrobust`, in blocks and in inline code."""
    fenced = [b.text for b in blocks(page) if b.language in ("", "bash", "sh")]
    lines = [line for text in fenced for line in text.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", without_blocks(page))
    for line in lines:
        line = line.split("#")[0].strip()
        if _COMMAND.match(line):
            yield line
