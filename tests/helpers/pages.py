"""What the page of an experiment shows."""

import json


def shown_claims(page, title):
    """The claims of a run, all of which its page shows, below a title and beside every figure."""
    html = page.read_text()
    assert f"<h1>{title}</h1>" in html
    judged = json.loads((page.parent / "claims.json").read_text())
    cells = html.replace("&#39;", "'").replace("&gt;", ">").replace("&amp;", "&")
    for claim in judged:
        assert f"<td>{claim['statement']}</td>" in cells
        assert f"<td>{claim['figure']}</td>" in cells
    assert html.count("<img") == len(list(page.parent.glob("figures/*.png"))) > 0
    assert "Missing from this page" not in html
    return judged
