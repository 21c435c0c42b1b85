"""Checks a configuration before anything is computed."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from ml_collections import ConfigDict

from rae_jax.components import mixtures
from rae_jax.components.catalogue import CATALOGUE, FLOW_MAPS, component, trained_by, trained_components
from rae_jax.components.component import PRECISIONS, RANDOM, architecture
from rae_jax.components.conditions import condition
from rae_jax.components.decoders import decoded_size, decoder
from rae_jax.components.encoders import grid as encoder_grid
from rae_jax.components.language import layout, speaks
from rae_jax.components.latent_spaces import IDENTITY, latent_space
from rae_jax.data import conversation_batches, pack_batches, request_batches
from rae_jax.data.sources import count_classes, count_images
from rae_jax.data.transforms import transform
from rae_jax.experiment import latent_cache
from rae_jax.experiment.weights import WORKDIR
from rae_jax.experiment.workdir import ConfigError, begun, config_of, flat, progress
from rae_jax.files import local_path
from rae_jax.flow.flow_map import jump_times
from rae_jax.interop import hub
from rae_jax.interop.weights import is_weights, read_weights
from rae_jax.objectives.catalogue import OBJECTIVES, objective_of
from rae_jax.objectives.objective import Objective
from rae_jax.sampling.generator import generator, guiding_component, parts_beside, sample_keys
from rae_jax.sampling.prompted import prompted_generator
from rae_jax.spelling import nearest
from rae_jax.training import durations, sharding
from rae_jax.training.checkpoint_weights import DECAY
from rae_jax.training.sharding import BATCH_AXES, mesh_shape
from rae_jax.training.state import TrainState

PACKAGE = Path(__file__).parents[1]


def resolved(config: ConfigDict, workdir: Path | None = None) -> ConfigDict:
    """A copy of `config` with numbers for what it leaves to the data, as everything that runs it needs.

    In the place of `flow.num_classes=-1` comes the number of classes, and where there are none, samples are
    unconditional. Every duration is in steps, after those that the run in `workdir` has made if there is one;
    `data.train_images` counts what an epoch is of, if one is in epochs. Both are those of that run, and of the data
    otherwise. In paths, `~` is the home.

    Raises:
      ValueError: a path is an address, there is neither a run nor data, or a duration cannot be resolved.
    """
    config = config.copy_and_resolve_references()
    _make_local(config)
    data, before = config.data, begun(workdir) if workdir else {}
    if config.flow.num_classes == -1:
        config.flow.num_classes = (
            before["flow"]["num_classes"] if before else count_classes(data.source, data.train_split, data.path)
        )
    if config.flow.num_classes == 0:
        config.sampling.labels = "unconditional"
    if (of_epochs := durations.in_epochs(config)) and not data.train_images:
        data.train_images = before.get("data", {}).get("train_images", 0)
    if of_epochs and not data.train_images:
        try:
            data.train_images = count_images(data.source, data.train_split, data.path, data.held_out_share)
        except ValueError as error:
            raise ValueError(
                f"{of_epochs[0]} is in epochs, of a number of images that is not known: {error}. "
                "Without the images, set data.train_images"
            ) from error
    done = {stage: progress(workdir / stage) for stage in config.stages} if before else {}
    return durations.resolve(config, data.train_images, done)


def _make_local(config: ConfigDict) -> None:
    for section, fields in config.items():
        if isinstance(fields, ConfigDict):
            for field in ("path", "latents", "weights", "reference"):
                if isinstance(value := fields.get(field), str) and value and not _on_hub(field, value):
                    where = str(local_path(value, f"{section}.{field}"))
                    fields[field] = where if value.startswith("~") else value


def _on_hub(field: str, value: str) -> bool:
    return field == "weights" and value.startswith(hub.SCHEME)


def stage_of(config: ConfigDict, name: str, *, otherwise: int = -1) -> str:
    """The stage that a tool is to look at: `name`, or if it is empty the one at that place of the config's stages.

    Raises:
      ValueError: the config has no such stage.
    """
    sections = _sections(config)
    if not name and not config.stages:
        raise ValueError(f"the config has no stages; --stage may be one of {', '.join(sections)}")
    if name and name not in sections:
        raise ValueError(f"--stage={name}: the config has no such stage{nearest(name, sections)}; it describes "
                         f"{', '.join(sections)}")  # fmt: skip
    return name or config.stages[otherwise]


def _sections(config: ConfigDict) -> list[str]:
    """The names of the sections that describe a stage."""
    return [name for name, value in config.items() if isinstance(value, ConfigDict) and "objective" in value]


def check(config: ConfigDict, *, file: str, num_devices: int, weights: bool = True) -> None:
    """Raises `ConfigError` for the first thing in `config` that cannot work on `num_devices` devices.

    Without `weights` nobody asks whether those that it needs are there: what a run would cost does not depend on them.
    """
    try:
        _check(config, file=file, num_devices=num_devices, weights=weights)
    except ConfigError:
        raise
    except AttributeError as error:
        if not isinstance(error.obj, ConfigDict):
            raise
        raise ConfigError(
            f"{file}: {_path(config, error.obj) or 'a section'} has no field {error.name!r}, which is read in "
            f"{_place(error)}; add it in configs/base.py, or in configs/architectures.py if it is a model's"
        ) from error
    except (ArithmeticError, TypeError, FlaxError) as error:  # a value that a model's own code stumbled over
        raise ConfigError(f"{file}: a value cannot work: {type(error).__name__}: {error} ({_place(error)})") from error


def _path(config: ConfigDict, section: ConfigDict, above: str = "config") -> str:
    """Where `section` itself, not one that equals it, is in `config`; empty if it is not there."""
    if config is section:
        return above
    below = ((f"{above}.{name}", value) for name, value in config.items() if isinstance(value, ConfigDict))
    return next((found for path, value in below if (found := _path(value, section, path))), "")


def _place(error: Exception) -> str:
    """The last line of this package that led to `error`."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents]
    return f"{Path(places[-1].filename).relative_to(PACKAGE.parent)}, line {places[-1].lineno}: {places[-1].line}"


def _check(config: ConfigDict, *, file: str, num_devices: int, weights: bool) -> None:
    def refuse(text: str) -> None:
        raise ConfigError(f"{file}: {text}")

    if missing := [name for name in CATALOGUE if name not in config]:
        refuse(f"there is no section {missing[0]!r} for the component of that name in rae_jax/components/catalogue.py; "
               "add it in configs/base.py, with weights and dtype")  # fmt: skip
    sections = _sections(config)
    for stage in config.stages:
        if stage not in sections:
            refuse(f"stages names {stage!r}, which is no section with an objective{nearest(stage, sections)}; "
                   f"there are {sections}")  # fmt: skip
        name = config[stage].objective
        if name not in OBJECTIVES:
            refuse(f"{stage}.objective={name!r} is unknown{nearest(name, list(OBJECTIVES))}; "
                   f"there are {sorted(OBJECTIVES)}")  # fmt: skip
        if unknown := [part for part in trained_components(config, stage) if part not in CATALOGUE]:
            refuse(f"stage {stage!r} trains {unknown[0]!r}, which is none of the components; set {stage}.trains to "
                   f"some of them: {list(CATALOGUE)}")  # fmt: skip
    if not 0 <= config.seed < 2**32:
        refuse(f"seed={config.seed}; random numbers are drawn from seeds of 0 to {2**32 - 1}")
    if config.dtype not in PRECISIONS:
        refuse(f"dtype={config.dtype!r} is not one of {list(PRECISIONS)}")
    try:
        shape = mesh_shape(config.mesh.to_dict(), num_devices)
    except ValueError as error:
        refuse(str(error))
    shards = 1
    for axis in BATCH_AXES:
        shards *= shape[axis]
    for stage in config.stages:
        train = config[stage].train
        whole = shards * train.gradient_accumulation
        if train.batch_size < 1 or train.batch_size % whole:
            lower, upper = train.batch_size // whole * whole, (train.batch_size // whole + 1) * whole
            parts = f" times {train.gradient_accumulation} accumulated parts" if train.gradient_accumulation > 1 else ""
            refuse(f"{stage}.train.batch_size={train.batch_size} is not divisible by the {shards} data-parallel "
                   f"devices{parts}; use {f'{lower} or ' if lower else ''}{upper}")  # fmt: skip
        if config[stage].objective != "latent_statistics" and train.steps < 1:
            refuse(f"{stage}.train.steps={train.steps}; a stage needs at least one step, or {stage}.train.epochs")
    try:
        num_jumps = [len(jump_times(times)) - 1 for times in config.sampling.flow_map_times]
    except ValueError as error:
        refuse(f"sampling.flow_map_times: {error}")
    if len(set(num_jumps)) < len(num_jumps):
        refuse("sampling.flow_map_times has two lists of the same length, which would make the same file of samples")
    if config.autoencoder in ("rae", "rpiae"):
        _check_autoencoder(config, refuse)
    given = {name for name, value in config.items() if isinstance(value, ConfigDict) and value.get("weights")}
    available = set(config.stages) | given
    try:
        _check_guided_flow_map(config)
        _check_sampling(config, available)
        if weights:
            _check_weights(config)
    except ValueError as error:
        refuse(str(error))
    readers = []
    for stage in config.stages:
        try:
            objective = trace(config, stage)
        except ValueError as error:
            refuse(f"{stage}: {error}")
        flips = transform(config[stage].train.transform, config.data.image_size).flips
        if (objective.reads_conversations or objective.reads_requests) and flips:
            refuse(f"{stage}.train.transform={config[stage].train.transform!r} mirrors images, of which words may tell "
                   "left and right; use 'resize' or 'center_crop'")  # fmt: skip
        if objective.reads_latents:
            readers.append(stage)
            try:
                latent_cache.check_settings(config, stage)
            except ValueError as error:
                refuse(str(error))
        train, evaluation = config[stage].train, objective.evaluation
        if train.evaluate_every and evaluation is None:
            refuse(f"{stage}.train.evaluate_every={train.evaluate_every}, but {config[stage].objective!r} has nothing "
                   "to evaluate while it trains; set it to 0")  # fmt: skip
        better = evaluation.better if train.evaluate_every else {}
        if train.best_metric and train.best_metric not in better:
            refuse(f"{stage}.train.best_metric={train.best_metric!r} is not one of the metrics that the stage "
                   f"evaluates, {list(better)}{'' if better else f'; set {stage}.train.evaluate_every'}")  # fmt: skip
        needs = evaluation.needs if train.evaluate_every else {}
        for needed in (objective.frozen | objective.initial | needs) if weights else ():
            if not config[needed].weights and trained_by(config, needed, before=stage) is None:
                makers = [name for name in sections if needed in trained_components(config, name)]
                maker = needed if needed in makers else " or ".join(makers)
                if not maker:
                    refuse(f"stage {stage!r} needs pretrained weights of {needed!r}: set {needed}.weights")
                refuse(f"stage {stage!r} needs trained weights of {needed!r}: put {maker!r} before it in stages, "
                       f"or set {needed}.weights")  # fmt: skip
    if config.data.latents and config.stages and not readers:
        refuse(f"data.latents={config.data.latents!r}, but all of the stages {list(config.stages)} read images; "
               "set it to ''")  # fmt: skip


def _check_autoencoder(config: ConfigDict, refuse: Callable[[str], None]) -> None:
    """Whether the encoder's patches fill its images and the decoder's patches those of the data."""
    encoder, size = config.encoder, config.data.image_size
    try:
        architecture(encoder, "encoder", "vision_transformer")
        if config.decoder.family == "vit":
            architecture(config.decoder, "decoder", "vit_decoder")
    except ValueError as error:
        refuse(str(error))
    if encoder.input_size % encoder.model.patch_size:
        patch = encoder.model.patch_size
        refuse(f"encoder.input_size={encoder.input_size} is not divisible by encoder.model.patch_size={patch}; "
               f"use {encoder.input_size // patch * patch} or {(encoder.input_size // patch + 1) * patch}")  # fmt: skip
    if config.decoder.family == "vit" and (grid := config.decoder.model.grid_size) < 0:
        refuse(f"decoder.model.grid_size={grid} is less than 0, which stands for the encoder's grid")
    if (decoded := decoded_size(config)) != size:
        vit = config.decoder.family == "vit"
        grid = decoder(config).module.grid_size if vit else encoder_grid(config)
        patch = "decoder.model.patch_size=" if vit else "the decoder's upsampling "
        refuse(f"the decoder makes images of {decoded} pixels ({grid} x {patch}{decoded // grid}), "
               f"data.image_size is {size}; they must be equal")  # fmt: skip


def _check_sampling(config: ConfigDict, available: set[str]) -> None:
    """Traces generation with the velocity network on abstract values, and raises ValueError for what cannot work."""
    sampling, told = config.sampling, condition(config)
    guide = guiding_component(config)
    for name in ("num_samples", "batch_size"):
        if sampling[name] < 1:
            raise ValueError(f"sampling.{name}={sampling[name]}; it must be at least 1")
    if sampling.prompt and config.mixture.model and config.mixture.task == "edit":
        raise ValueError(f"sampling.prompt={list(sampling.prompt)} asks for images from nothing, and this "
                         "mixture edits; use --mode=edit, or set mixture.task='caption'")  # fmt: skip
    if speaks(config):
        _check_prompted(config, available)
    if "flow" not in available or not sampling.num_steps:
        return
    if guide and guide not in available:
        raise ValueError(f"sampling.guidance='autoguidance' needs trained weights of {guide!r}: put {guide!r} in "
                         f"stages, or set {guide}.weights, or sampling.guidance_scale=1.0")  # fmt: skip
    dropouts = {name: config[name].label_dropout for name in ("flow", guide) if name in config.stages}
    unconditional, guided = told.unconditional, sampling.guidance_scale != 1.0
    if unconditional and guided and not guide:
        raise ValueError("sampling.labels='unconditional' leaves classifier-free guidance nothing to push away from; "
                         "set sampling.guidance='autoguidance', or sampling.guidance_scale=1.0")  # fmt: skip
    for name, dropout in dropouts.items():
        if dropout >= 1 and not unconditional:
            raise ValueError(f"{name}.label_dropout={dropout} trains without classes; "
                             "set sampling.labels='unconditional'")  # fmt: skip
        if dropout <= 0 and (unconditional or (guided and not guide)):
            raise ValueError(f"{name}.label_dropout={dropout} never trains the null label, which "
                             f"{'unconditional sampling' if unconditional else 'classifier-free guidance'} needs; "
                             f"set {name}.label_dropout=0.1")  # fmt: skip
    parts = {name: component(config, name) for name in ("flow", *([guide] if guide else []))} | parts_beside(config)
    generate = generator(config, guide=guide)

    def run(key: jax.Array) -> jax.Array:
        params = {name: sharding.unbox(part.init(key)) for name, part in parts.items()}
        asked = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), told.example)
        return generate(params["flow"], params, sample_keys(0, jnp.arange(1)), asked)

    jax.eval_shape(run, jax.random.key(0))


def _check_guided_flow_map(config: ConfigDict) -> None:
    """Raises ValueError if a guided flow map would learn from a null condition that is never trained."""
    stages = set(config.stages)
    if not config.flow_map.guided:
        return
    teacher, stage, field = (
        ("text_dit", "text_to_image", "condition_dropout") if speaks(config) else ("flow", "flow", "label_dropout")
    )
    taught = "mid_training" in stages or ("flow_map" in stages and config.flow_map.eta > 0)
    trained = stage in stages and teacher in trained_components(config, stage)
    needed = {stage: field} if taught and trained else {}
    if "flow_map" in stages and config.flow_map.eta < 1:
        needed["flow_map"] = "label_dropout"
    for stage, field in needed.items():
        if config[stage][field] <= 0:
            raise ValueError(
                f"flow_map.guided learns guidance, but {stage}.{field}={config[stage][field]} never trains the null "
                f"condition, from which it pushes away; set {stage}.{field}=0.1"
            )


def _check_prompted(config: ConfigDict, available: set[str]) -> None:
    """Traces generation from prompts on abstract values, and raises ValueError for what cannot work."""
    asked = condition(config).chosen(1)  # prompts that are there, and not longer than the context
    stage, section = "text_to_image", config.text_to_image
    painted = "text_dit" in available or (stage in config.stages and "text_dit" in section.trains)
    if not painted or not config.sampling.num_steps:
        return
    if stage in config.stages and config.sampling.guidance_scale != 1.0 and section.condition_dropout <= 0:
        raise ValueError(
            f"{stage}.condition_dropout={section.condition_dropout} never trains the null condition, which "
            f"classifier-free guidance needs; set {stage}.condition_dropout=0.1"
        )
    names = ("text_dit", "language_model", "adapters", "stats", *latent_space(config).decoding)
    parts, generate = {name: component(config, name) for name in names}, prompted_generator(config)

    def run(key: jax.Array) -> jax.Array:
        params = {name: sharding.unbox(part.init(key)) for name, part in parts.items()}
        return generate(params["text_dit"], params, sample_keys(0, jnp.arange(1)), jax.tree.map(jnp.asarray, asked))

    jax.eval_shape(run, jax.random.key(0))


def _check_own(config: ConfigDict, name: str, weights: str) -> None:
    """Raises ValueError unless a stage of the config leaves, at `weights` in the working directory, a model of `name`.

    It has not been left yet: what can be compared is the architecture.
    """
    stage = Path(weights).parts[1] if len(Path(weights).parts) > 1 else ""
    if stage not in config.stages:
        raise ValueError(f"{name}.weights={weights!r}, but {stage!r} is none of the stages {list(config.stages)}")
    makers = [component(config, made) for made in trained_components(config, stage)]
    if component(config, name).structure() not in [made.structure() for made in makers]:
        raise ValueError(f"{name}.weights={weights!r} are of another architecture: {name}.model is not {stage}.model")
    train, step = config[stage].train, Path(weights).name.partition(DECAY)[0]
    kept, guides = train.keep_every_steps, guiding_component(config) == name
    if step.isdigit() and (guides or name != "guide") and (not kept or int(step) % kept or int(step) > train.steps):
        way_out = ", or sampling.guidance_scale=1.0" if guides else ""
        raise ValueError(
            f"{name}.weights={weights!r}, but of its {train.steps} steps the stage {stage!r} keeps the checkpoints of "
            f"every {kept or 'none'}: name one of them, or set {stage}.train.keep_every_steps{way_out}"
        )


def _check_weights(config: ConfigDict) -> None:
    """Raises ValueError unless the weights that the config names are there and fit the models that it describes."""
    for name in CATALOGUE:
        weights = config[name].weights
        if weights == IDENTITY and "stats" not in name:
            raise ValueError(f"{name}.weights={IDENTITY!r} is only for statistics")
        if weights.startswith(WORKDIR):
            _check_own(config, name, weights)
        elif weights not in ("", RANDOM, IDENTITY):
            component(config, name).check(weights)
            if "stats" in name:
                _check_measured_here(config, name, weights)
            if config.mixture.model and name in ("mixture", *FLOW_MAPS):
                _check_order(config, name, weights)


def _config_of_run(weights: str) -> dict[str, Any]:
    """The config of the run that has left `weights`, as plain values; empty if none has, as of official ones."""
    return config_of(read_weights(weights)[0].get("config") or {}).to_dict() if is_weights(weights) else {}


def _check_order(config: ConfigDict, name: str, weights: str) -> None:
    """Raises ValueError if `weights`, of a mixture or its flow map `name`, have learnt edits in the other order."""
    theirs = _config_of_run(weights).get("mixture", {})
    theirs_first, ours = theirs.get("text_first"), config.mixture.text_first
    if theirs.get("task") == "edit" and theirs_first != ours:
        raise ValueError(
            f"mixture.text_first={ours}, but {name}.weights={weights!r} have learnt edits with text_first="
            f"{theirs_first}; set it to that"
        )


def _check_measured_here(config: ConfigDict, name: str, weights: str) -> None:
    """Raises ValueError if the statistics at `weights`, which a run has left, are of other latents than this config's.

    They may be of the same shape. Of which latents an official file is cannot be told; training warns of what comes.
    """
    theirs = _config_of_run(weights)
    if not theirs:
        return
    ours = json.loads(config.to_json_best_effort())
    sections = latent_space(config).encoding if name == "stats" else ("encoder",)
    named = tuple(
        f"{section}.{field}" for section in sections for field in ("model", "input_size", "image_mean", "image_std")
    )
    now, before = flat(ours), flat(theirs)
    fields = sorted(field for field in now.keys() | before.keys() if field.startswith(named))
    changed = [field for field in fields if before.get(field) != now.get(field)]
    if changed:
        raise ValueError(
            f"{name}.weights={weights!r} are of other latents: {', '.join(changed)} differ from those of the run that "
            f"measured them. Measure them anew: put {name!r} into the stages"
        )


def example_batch(
    config: ConfigDict, stage: str, objective: Objective, *, latents: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one global batch of `stage`, whose `objective` this is.

    It is of latents computed before instead of images if the objective reads those, or if asked.
    """
    rows, size = config[stage].train.batch_size, config.data.image_size
    if objective.reads_conversations:
        return conversation_batches.shapes(layout(config), size, rows)
    if objective.reads_packs:
        return pack_batches.shapes(mixtures.rows(config), (size, size, 3), jnp.uint8, rows)
    if objective.reads_requests:
        return request_batches.shapes(mixtures.text_room(config), size, rows, edits=config.mixture.task == "edit")
    if latents or objective.reads_latents:
        content = {"latent": jax.ShapeDtypeStruct((rows, *latent_space(config).shape), jnp.bfloat16)}
    else:
        content = {"image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)}
    return content | {
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    }


def trace(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, once its whole step has been traced on abstract values: nothing is computed.

    Raises:
      ValueError: what any part of it found wrong with its arguments.
    """
    transform(config[stage].train.transform, config.data.image_size)
    objective = objective_of(config, stage)

    def run(key: jax.Array, batch: dict[str, jax.Array]) -> TrainState:
        initial, frozen = (
            {name: sharding.unbox(part.init(key)) for name, part in parts.items()}
            for parts in (objective.initial, objective.frozen)
        )
        state = objective.first_state(key, batch, initial).replace(frozen=frozen)
        return objective.train_step(state, batch)

    jax.eval_shape(run, jax.random.key(0), example_batch(config, stage, objective))
    return objective
