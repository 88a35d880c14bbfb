"""Griffe extension: inner products <x, g> of docstrings, which Markdown takes for HTML tags."""

import re
from typing import Any

import griffe

_INNER_PRODUCT = re.compile(r"<([^<>=\n]+, [^<>=\n]+)>")


class InnerProducts(griffe.Extension):
    """Writes them with mathematical brackets."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _INNER_PRODUCT.sub(r"⟨\1⟩", obj.docstring.value)
