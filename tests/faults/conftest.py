"""Prints the table of the faults at the end of a session."""

from collections.abc import Mapping
from typing import Any

import pytest

REPORTS: dict[str, Mapping[str, Any]] = {}
"""Scenario -> its report."""
COLUMNS = {
    "operations": "operations",
    "faults": "faults",
    "killed": "killed",
    "errors": "errors",
    "untidy": "untidy",
    "repaired": "repaired",
    "restored": "from a copy",
    "lost": "rows lost",
    "doubled": "rows doubled",
    "false": 'false "all as promised"',
    "seconds": "seconds",
}


@pytest.fixture(scope="session")
def reports() -> dict[str, Mapping[str, Any]]:
    """Where the tests put their reports."""
    return REPORTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Called by pytest."""
    if not REPORTS:
        return
    totals = {key: sum(report[key] for report in REPORTS.values()) for key in COLUMNS}
    width = max(map(len, [*REPORTS, "all"]))
    terminalreporter.section("faults")
    terminalreporter.line(f"{'':{width}}  {'  '.join(COLUMNS.values())}")
    for name, report in [*REPORTS.items(), ("all", totals)]:
        cells = (f"{report[key]:>{len(title)}.0f}" for key, title in COLUMNS.items())
        terminalreporter.line(f"{name:{width}}  {'  '.join(cells)}")
