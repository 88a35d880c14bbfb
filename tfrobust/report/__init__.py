"""Run folders, figures and pages."""

from tfrobust.report import figures
from tfrobust.report.page import Claim, Page, Section, Verdict, write
from tfrobust.report.runs import Run, RunFolderError, versions

__all__ = [
    "Claim",
    "Page",
    "Run",
    "RunFolderError",
    "Section",
    "Verdict",
    "figures",
    "versions",
    "write",
]
