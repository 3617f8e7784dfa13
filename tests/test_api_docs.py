"""docs/api.md is what the code says."""

from __future__ import annotations

from docs.api import PAGE, page
from serve.web.api import routers
from tests.fakes import FakeTraining


def test_the_page_is_made_from_the_code() -> None:
    made = page(routers(None, FakeTraining(None), None))  # type: ignore[arg-type]
    assert PAGE.read_text(encoding="utf-8") == made, "stale: run python -m docs.api"
