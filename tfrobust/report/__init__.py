"""Run folders, figures and pages."""

from tfrobust.report import figures
from tfrobust.report.page import Claim, Page, Section, Verdict, write
from tfrobust.report.results import Results, RunFolderError
from tfrobust.report.runs import Run, versions

__all__ = [
    "Claim",
    "Page",
    "Results",
    "Run",
    "RunFolderError",
    "Section",
    "Verdict",
    "figures",
    "versions",
    "write",
]
