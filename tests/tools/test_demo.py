"""The page: what it makes is what the command makes, and a browser can use it."""

import contextlib
import io
import json
import shutil
import socket
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits, digits_edit, digits_text
from rae_jax.components.catalogue import component
from rae_jax.data.scenes import SceneSource, render
from rae_jax.evaluation import pictures
from rae_jax.experiment.editing import Editing
from rae_jax.experiment.generation import Generation
from rae_jax.experiment.weights import Weights
from rae_jax.interop.weights import save_weights
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog
from tools import demo

INSTRUCTION = "remove the two"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def drawn(config, name, place):
    """Weights of a component at `place` that are random; those of an untrained one say 0 to everything."""
    rng = np.random.default_rng(0)
    structure = component(config, name).structure()
    params = jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), structure)
    save_weights(place, params, {"component": name})
    return str(place)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run that has random weights of everything."""
    workdir, config = tmp_path_factory.mktemp("demo") / "run", digits.get_config("tiny")
    workdir.mkdir()
    config.stages = ()
    config.flow.num_classes = 10
    config.sampling.num_steps = 3
    for name in ("encoder", "decoder"):
        config[name].weights = "random"
    for name in ("flow", "flow_map"):
        config[name].weights = drawn(config, name, workdir / "given" / name)
    config.stats.weights = "identity"
    (workdir / "config.json").write_text(config.to_json_best_effort())
    (workdir / "classes.json").write_text(json.dumps([str(i) for i in range(10)]))
    return workdir, config


@pytest.fixture(scope="module")
def session(run):
    return demo.Session(run[0])


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """The directory of a run that has a mixture of transformers with random weights, and its config."""
    workdir, config = tmp_path_factory.mktemp("demo_edit"), digits_edit.get_config("tiny")
    config.stages, config.stats.weights, config.sampling.num_steps = (), "identity", 1
    config.encoder.weights = config.decoder.weights = "random"
    config.mixture.weights = drawn(config, "mixture", workdir / "given")
    (workdir / "config.json").write_text(config.to_json_best_effort())
    return workdir, config


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The file of a picture that is not square, and not opaque."""
    image = Image.fromarray(render(SceneSource("test").scene(0), "test")).resize((50, 40)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((50, 40)))
    place = tmp_path_factory.mktemp("picture") / "scene.png"
    image.save(place)
    return str(place)


@contextlib.contextmanager
def commanded(config, workdir, **sampling):
    """What the command edits and paints with, told so."""
    config = config.copy_and_resolve_references()
    config.sampling.update(sampling)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    with sharding.use(mesh):
        weights = Weights(config, {}, workdir, mesh, lambda text: None)
        yield Editing(config, weights, mesh, workdir, RunLog(workdir, active=False))


@pytest.fixture(scope="module")
def editor(mixture):
    return demo.Session(mixture[0])


def test_images_are_those_that_the_run_would_make(run, session):
    workdir, config = run
    assert session.steps == {3: "samples", 1: "samples_1step", 2: "samples_2step"}
    assert session.names == tuple("0123456789")
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    with sharding.use(mesh):
        weights, log = Weights(config, {}, workdir, mesh, lambda text: None), RunLog(workdir, active=False)
        generation = Generation(config, weights, mesh, workdir, log)
        expected = {way: generation.images(way, "7", np.arange(16, 24)) for way in generation.ways}
    for steps, way in session.steps.items():
        np.testing.assert_array_equal(session.images("7", steps, 1.0, seed=2), expected[way])
    with jax.no_tracing():  # nothing is compiled twice
        assert np.abs(session.images("7", 3, 1.0, 3).astype(int) - expected["samples"]).max() > 0
    assert np.abs(session.images("7", 3, 4.0, 2).astype(int) - expected["samples"]).max() > 0


def test_what_cannot_be_made_is_one_line(session, tmp_path, capsys):
    with pytest.raises(ValueError, match="no classes 12, but 0 to 9"):
        session.images("12", 1, 1.0, 0)
    with pytest.raises(SystemExit, match="there is no run"):
        demo.main([f"--workdir={tmp_path}"])


def test_edits_are_those_that_the_command_makes_and_nothing_is_compiled_twice(mixture, editor, picture, tmp_path):
    with commanded(mixture[1], tmp_path, num_steps=2, guidance_scale=3.0, image_guidance_scale=1.5) as editing:
        editing.write_edit(picture, INSTRUCTION)
    made = np.asarray(Image.open(tmp_path / "edit.png"))
    before, after = editor.edit(picture, INSTRUCTION, 2, 3.0, 1.5, seed=0)
    names = ["before", *(f"noise {i}" for i in range(4))]
    sheet = pictures.image_grid(np.stack([before, *after]), columns=5, captions=names, title=INSTRUCTION)
    np.testing.assert_array_equal(sheet, made)
    with jax.no_tracing():
        _, others = editor.edit(picture, INSTRUCTION, 2, 3.0, 1.5, seed=1)
        _, told = editor.edit(picture, "add a red seven", 2, 3.0, 1.5, seed=0)
    assert (others != after).any() and (told != after).any()
    with pytest.raises(RuntimeError, match="no_tracing"), jax.no_tracing():
        editor.edit(picture, INSTRUCTION, 1, 3.0, 1.5, seed=0)


def test_prompts_of_a_mixture_are_painted_as_the_command_paints_them(mixture, editor, tmp_path):
    prompt, config = "a red two at the top left", mixture[1].copy_and_resolve_references()
    assert editor.prompted and not editor.asks and editor.steps == {1: ""}
    config.mixture.task = "caption"
    with commanded(config, tmp_path, prompt=(prompt,) * 16, guidance_scale=2.0, batch_size=8) as editing:
        editing.write()
    painted = np.load(tmp_path / "samples.npz")["arr_0"]
    np.testing.assert_array_equal(editor.images(prompt, 1, 2.0, seed=1), painted[8:])
    with jax.no_tracing():
        np.testing.assert_array_equal(editor.images(prompt, 1, 2.0, seed=0), painted[:8])
    with pytest.raises(ValueError, match="has no text; say what is wanted"):
        editor.images(" ", 1, 2.0, 0)


def test_what_cannot_be_edited_is_one_line(editor, picture, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    for said, image, instruction, steps in (
        ("no.png cannot be read: not a readable image", str(tmp_path / "no.png"), INSTRUCTION, 1),
        ("none.png cannot be read", str(tmp_path / "none.png"), INSTRUCTION, 1),
        ("the instruction says nothing", picture, " ", 1),
        ("has 82 tokens with its markers, and room is for", picture, "q " * 40, 1),
    ):
        with pytest.raises(ValueError, match=said) as error:
            editor.edit(image, instruction, steps, 1.0, 1.0, 0)
        assert "\n" not in str(error.value)


def test_a_tab_is_there_for_what_the_run_can_do(mixture, tmp_path):
    gradio = pytest.importorskip("gradio")

    def tabs(config):
        (tmp_path / "config.json").write_text(config.to_json_best_effort())
        blocks = demo.page(demo.Session(tmp_path)).blocks.values()
        return [block.label for block in blocks if isinstance(block, gradio.Tab)]

    assert tabs(mixture[1]) == ["Generate", "Edit"]
    painting, talking = mixture[1].copy_and_resolve_references(), digits_text.get_config("tiny")
    painting.mixture.task = "caption"
    assert tabs(painting) == ["Generate"]
    talking.stages, talking.stats.weights = (), "identity"
    for name in ("encoder", "decoder", "language_model", "adapters", "text_dit"):
        talking[name].weights = "random"
    assert tabs(talking) == ["Generate", "Ask"]


def test_steps_are_those_that_there_are(mixture, picture, tmp_path):
    """Of a run that has a flow map alone."""
    gradio = pytest.importorskip("gradio")
    config = mixture[1].copy_and_resolve_references()
    config.sampling.num_steps, config.sampling.flow_map_times = 0, ((1.0, 0.0),)
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    with pytest.raises(ValueError, match=r"sampling\.num_steps=0 leaves the mixture out"):
        demo.Session(tmp_path)
    config.mixture.weights, config.flow_map.weights = "", "random"
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    session = demo.Session(tmp_path)
    assert session.steps == {1: "_1step"}
    with pytest.raises(ValueError, match="there are no samples in 3 steps, but in 1"):
        session.edit(picture, INSTRUCTION, 3, 1.0, 1.0, seed=0)
    with pytest.raises(ValueError, match="there are no samples in 3 steps, but in 1"):
        session.images("a red two", 3, 1.0, 0)
    steps = [block for block in demo.page(session).blocks.values() if getattr(block, "label", "") == "Steps"]
    assert [type(block) for block in steps] == [gradio.Radio] * 2


def test_without_gradio_it_is_named(session, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match="pip install gradio"):
        demo.page(session)


@contextlib.contextmanager
def browsing(session):
    """A browser that shows the page of a session, what waits in it, and what fetches the pixels of an image."""
    webdriver = pytest.importorskip("selenium.webdriver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = demo.page(session)
    demo.launch(page, server_port=port, prevent_thread_lock=True)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1400"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    deadline = time.monotonic() + 120

    def wait_for(selector, count=1, text=""):
        while True:
            found = [element for element in browser.find_elements("css selector", selector) if text in element.text]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, browser.page_source[:2000]
            time.sleep(0.5)

    def pixels(image):
        made = browser.execute_async_script(
            "const done = arguments[1]; fetch(arguments[0]).then(r => r.arrayBuffer())"
            ".then(b => done(Array.from(new Uint8Array(b))))",
            image.get_attribute("src"),
        )
        return np.asarray(Image.open(io.BytesIO(bytes(made))).convert("RGB"))

    try:
        browser.get(f"http://127.0.0.1:{port}")
        yield browser, wait_for, pixels
    finally:
        browser.quit()
        page.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_generates(session, tmp_path):
    pytest.importorskip("gradio")
    with browsing(session) as (browser, wait_for, pixels):
        (button,) = wait_for("#generate")
        button.click()
        shown = wait_for("#images .thumbnail-item img, #images img", 8)
        browser.save_screenshot(str(tmp_path / "page.png"))
        np.testing.assert_array_equal(pixels(shown[0]), session.images("0", 3, 1.0, 0)[0])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_edits(editor, picture, tmp_path):
    pytest.importorskip("gradio")
    (tmp_path / "no.png").write_bytes(b"no image")
    with browsing(editor) as (browser, wait_for, pixels):

        def choose(file):
            browser.refresh()
            (tab,) = wait_for("button[role=tab]", text="Edit")
            tab.click()
            if file:
                wait_for("#source input[type=file]")[0].send_keys(file)
                wait_for("#source img")
            return wait_for("#edit")[0]

        for file, said in (("", "an image or a number is missing"), (str(tmp_path / "no.png"), "cannot identify")):
            choose(file).click()
            wait_for(".toast-body", text=said)
        button, (words,) = choose(picture), wait_for("#instruction textarea")
        button.click()
        wait_for(".toast-body", text="the instruction says nothing")
        words.send_keys(INSTRUCTION)
        button.click()
        shown = wait_for("#edits .thumbnail-item img, #edits img", 5)
        browser.save_screenshot(str(tmp_path / "page.png"))
        before, after = editor.edit(picture, INSTRUCTION, 1, 2.0, 1.0, 0)
        np.testing.assert_array_equal([pixels(image) for image in shown], [before, *after])
