"""The HTML pages of tools, on a phone."""

import pytest

from brainq_torch.data.synthesis.phantom import write_phantoms
from tests.support.chromium import Chromium
from tests.support.handmade_study import write_study
from tools.audit.__main__ import main as audit
from tools.report.__main__ import main as report


@pytest.fixture
def pages(tmp_path):
    write_phantoms(tmp_path / "images", 12, 4, seed=3, size=32)
    assert audit([str(tmp_path / "images"), "--html", str(tmp_path / "audit.html")]) == 0
    assert report([str(write_study(tmp_path / "study", 40, 8)), "--resamples", "10"]) == 0
    return [tmp_path / "audit.html", tmp_path / "study" / "report.html"]


def test_no_page_is_wider_than_a_phone(pages, tmp_path):
    """Of a table that is, the table scrolls."""
    browser = Chromium(tmp_path / "profile")
    try:
        for page in pages:
            browser.send("Page.navigate", url=page.as_uri())
            browser.wait_for(f"location.href === '{page.as_uri()}' && document.readyState === 'complete'")
            assert browser.width_on_a_phone() == 390, page.name
    finally:
        browser.close()
