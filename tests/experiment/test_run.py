"""Opening a run: where its compiled programs are kept."""

from pathlib import Path

import jax
import pytest

from configs import digits
from rae_jax.experiment.run import open_run


@pytest.fixture
def no_cache():
    """JAX without a cache of compiled programs, as a user has it."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def opened(workdir: Path, **options) -> str | None:
    """Where programs are kept while the run is open."""
    config = digits.get_config("tiny")
    config.stages = ()
    with open_run(config, "configs/digits.py:tiny", workdir, **options):
        return jax.config.jax_compilation_cache_dir


def test_compiled_programs_are_kept_in_the_working_directory_unless_a_place_is_set_or_none_is_wanted(
    tmp_path, no_cache
):
    assert opened(tmp_path / "a", keep_programs=False) is None
    assert opened(tmp_path / "a") == str(tmp_path / "a" / "compiled")
    assert opened(tmp_path / "b") == str(tmp_path / "a" / "compiled")  # as if the user had said so
