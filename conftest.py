"""What holds for every test: `HUSTINGS_NO_SKIP=1` makes a skipped test a failed one, as CI wants it."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure that keeps its reason."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("HUSTINGS_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which HUSTINGS_NO_SKIP forbids: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file (`pytest.importorskip`, a module-level skip)."""
    report = yield
    if report.skipped and os.environ.get("HUSTINGS_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which HUSTINGS_NO_SKIP forbids: {report.longrepr}"
    return report
