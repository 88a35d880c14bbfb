"""Figures as PNG alone, which takes half as long; `tests/report` holds that both are written."""

import pytest

from tfrobust.report import figures


@pytest.fixture(autouse=True, scope="module")
def _pictures_only():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "FORMATS", ("png",))
        yield
