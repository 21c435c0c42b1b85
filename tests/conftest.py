"""What all tests share: a program compiled by one test, or by a process that it starts, is not compiled by another."""

import os
import signal
import tempfile
from collections.abc import Generator

import pytest

# Tests compile many programs and run each a few times: compiling without optimisation takes a third of the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
if QUICK_TO_COMPILE not in os.environ.get("XLA_FLAGS", ""):  # workers inherit it
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}".strip()

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which tests send, and whoever started this may have ignored

# Files of minutes go to the workers first, so that none is left with one when the others are done.
LONGEST = (
    "test_contract.py", "test_main.py", "test_parallel.py", "test_pivot.py", "test_reconstruction.py",
    "test_performance_table.py", "test_compile_report.py", "test_cache_latents.py", "test_convert.py",
    "test_notebook.py", "test_rpiae.py", "test_rac.py", "test_finetune.py", "test_resume.py", "test_signals.py",
)  # fmt: skip


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
