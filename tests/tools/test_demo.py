"""The page: what it generates is what the command generates, and a browser can use it."""

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

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.experiment.generation import Generation
from rae_jax.experiment.weights import Weights
from rae_jax.interop.weights import save_weights
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog
from tools import demo

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
    rng = np.random.default_rng(0)
    for name in ("flow", "flow_map"):  # an untrained one says 0 to everything
        params = jax.tree.map(
            lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), component(config, name).structure()
        )
        save_weights(workdir / "given" / name, params, {"component": name})
        config[name].weights = str(workdir / "given" / name)
    config.stats.weights = "identity"
    (workdir / "config.json").write_text(config.to_json_best_effort())
    (workdir / "classes.json").write_text(json.dumps([str(i) for i in range(10)]))
    return workdir, config


@pytest.fixture(scope="module")
def session(run):
    return demo.Session(run[0])


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
    assert np.abs(session.images("7", 3, 1.0, 3).astype(int) - expected["samples"]).max() > 0
    assert np.abs(session.images("7", 3, 4.0, 2).astype(int) - expected["samples"]).max() > 0


def test_what_cannot_be_made_is_one_line(session, tmp_path, capsys):
    with pytest.raises(ValueError, match="no classes 12, but 0 to 9"):
        session.images("12", 1, 1.0, 0)
    with pytest.raises(SystemExit, match="there is no run"):
        demo.main([f"--workdir={tmp_path}"])


def test_without_gradio_it_is_named(session, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match="pip install gradio"):
        demo.page(session)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_generates(session, tmp_path):
    pytest.importorskip("gradio")
    webdriver = pytest.importorskip("selenium.webdriver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = demo.page(session)
    page.launch(server_port=port, prevent_thread_lock=True, quiet=True)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 120

        def wait_for(find):
            while not (found := find()):
                assert time.monotonic() < deadline, browser.page_source[:2000]
                time.sleep(0.5)
            return found

        (button,) = wait_for(lambda: browser.find_elements("css selector", "#generate"))
        button.click()
        shown = wait_for(lambda: browser.find_elements("css selector", "#images img"))
        wait_for(lambda: len(browser.find_elements("css selector", "#images .thumbnail-item img, #images img")) >= 8)
        source = shown[0].get_attribute("src")
        made = browser.execute_async_script(
            "const done = arguments[1]; fetch(arguments[0]).then(r => r.arrayBuffer())"
            ".then(b => done(Array.from(new Uint8Array(b))))",
            source,
        )
        browser.save_screenshot(str(tmp_path / "page.png"))
        pixels = np.asarray(Image.open(io.BytesIO(bytes(made))).convert("RGB"))
        np.testing.assert_array_equal(pixels, session.images("0", 3, 1.0, 0)[0])
    finally:
        browser.quit()
        page.close()
