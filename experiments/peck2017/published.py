"""What Peck 2017 prints, as far as it is known here.

The settings come from the project's design notes. The figures of the thesis's tables were not at
hand: `FIGURES` is where they go, and until then pages say so instead of a figure.
"""

from __future__ import annotations

__all__ = ["ADAM_ITERATIONS", "FIGURES", "HIDDEN", "MAX_EPSILON", "NOT_AT_HAND", "figure"]

# chapter 5: Caffe's LeNet-5 and its variants
ADAM_ITERATIONS = 10_000
# Algorithm 2.1: epsilon up to 100 for pixels in [0, 255]
MAX_EPSILON = 100 / 255
# tanh units of the hidden layers, section 4.4
HIDDEN = {"iris": (5,), "wine": (5, 3), "spambase": (7, 5, 3)}

NOT_AT_HAND = "not at hand"
# (table, row, column) to the figure as printed
FIGURES: dict[tuple[str, str, str], float] = {}


def figure(table: str, row: str, column: str) -> float | str:
    """A printed figure, or the words that it is not at hand."""
    return FIGURES.get((table, row, column), NOT_AT_HAND)
