"""The page of a run: one self-contained HTML file with figures, tables, claims and versions."""

from tfrobust.report.page import Claim, Page, Section, write

__all__ = ["Claim", "Page", "Section", "write"]
