"""Counts the clients that nobody here wrote: `@pytest.mark.foreign("mosquitto_pub")` names the one a test runs.

The end of the run says "N of M foreign clients pass". A client passes when all of its tests do; one that is missing on
this machine does not. Registered by tests/conftest.py, in every process: those of pytest-xdist send their reports on.
"""

from collections import defaultdict
from typing import Any

import pytest

PROPERTY = "foreign client"


class ForeignClients:
    """What became of the tests of each client."""

    def __init__(self) -> None:
        self._ends: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Let the name travel with the reports of a test."""
        for item in items:
            for mark in item.iter_markers("foreign"):
                item.user_properties.append((PROPERTY, mark.args[0]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """In the process that the person started: a test that passes says so when it is called, others in any part."""
        for key, name in report.user_properties:
            if key == PROPERTY and (report.when == "call" or report.outcome != "passed"):
                self._ends[str(name)].add(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The sum, and who is missing in it."""
        if not self._ends:
            return
        passing = [name for name, ends in self._ends.items() if ends == {"passed"}]
        terminalreporter.section("foreign clients")
        for name, ends in sorted(self._ends.items()):
            if name not in passing:
                terminalreporter.write_line(f"{name}: {', '.join(sorted(ends - {'passed'}))}")
        terminalreporter.write_line(f"{len(passing)} of {len(self._ends)} foreign clients pass")
