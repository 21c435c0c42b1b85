"""Opens a run: checks its config, takes its working directory, and hands out its stages on its mesh."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rae_jax.evaluation.report import write_environment, write_report
from rae_jax.experiment import dataset
from rae_jax.experiment.configuration import check, resolved
from rae_jax.experiment.results import measurable
from rae_jax.experiment.stages import Stages, open_sources
from rae_jax.experiment.workdir import check_shared, locked, remember
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog, open_wandb

PROGRAMS = "compiled"  # the folder of compiled programs in a working directory
SecondsAtPeak = Callable[[ConfigDict, str, jax.sharding.Mesh], float | None]


@contextlib.contextmanager
def open_run(
    config: ConfigDict,
    file: str,
    workdir: Path,
    *,
    images: bool = True,
    wandb: str = "",
    keep_programs: bool = True,
    seconds_at_peak: SecondsAtPeak = lambda config, stage, mesh: None,
) -> Iterator[Stages]:
    """The stages of the run of `config` in `workdir`, while nobody else has it.

    Args:
      file: of the config, for messages.
      images: whether the data are needed; generation does without.
      wandb: a project of Weights & Biases that gets metrics and pictures too.
      keep_programs: whether compiled programs are kept in the working directory, so that a restart does not compile
        them again. A cache that JAX has been told of otherwise (JAX_COMPILATION_CACHE_DIR) is used instead.
      seconds_at_peak: how long the devices would need for a stage's step at their peak, where that is known.

    Raises:
      ValueError: the config cannot work, its data are broken, or the working directory is another run's.
    """
    config = resolved(config, workdir)
    check(config, file=file, num_devices=jax.device_count())
    sources = open_sources(config, workdir) if images else {}
    first = jax.process_index() == 0
    with locked(workdir) if first else contextlib.nullcontext():
        check_shared(workdir)
        plain, changes = remember(config, workdir, file=file, write=first)
        if keep_programs and not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / PROGRAMS))
        if first:
            write_environment(workdir)
            if sources:
                dataset.record(workdir, config, sources)
        service = open_wandb(wandb, workdir, plain) if wandb and first else None
        log = RunLog(workdir, active=first, report=functools.partial(write_report, workdir), wandb=service)
        for line in changes:
            log.say(line)
        for tell, lines in zip((log.say, log.warn), dataset.summary(sources), strict=True):
            for line in lines:
                tell(line)
        if sources:
            config, lines = measurable(config, sources)
            for line in lines:
                log.warn(line)
        mesh = sharding.make_mesh(config.mesh.to_dict())
        at_peak = functools.partial(seconds_at_peak, config, mesh=mesh)
        try:
            with sharding.use(mesh):
                yield Stages(config, plain, sources, workdir, mesh, log, at_peak)
        finally:
            log.close()
