"""What all tests share: a program compiled by one test, or by a process that it starts, is not compiled by another."""

import os
import tempfile
from collections.abc import Generator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Gives this session's processes one compilation cache, unless the caller has named another."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # so it is in the workers, which inherit it
        return
    cache = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    config.add_cleanup(cache.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Says after everything else how many tests had no reference outputs to compare with."""
    yield
    from golden import DIRECTORY, NO_CASE

    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_CASE in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} golden tests were skipped: their reference outputs are not in {DIRECTORY}. "
            "Put them there, or name another directory with RAE_JAX_GOLDEN.",
            yellow=True,
        )
