"""Shared fixtures. Shapes in signatures are enforced (jaxtyping, beartype), unless CHECK_SHAPES=0."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile many programs and run each a few times: most of the time would go to LLVM. Commands inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# No example has a deadline: beside other work any of them may be slow.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
if os.environ.get("CHECK_SHAPES", "1") != "0":  # a tenth of the time of tests that trace much
    install_import_hook(["conformer", "kernels"], "beartype.beartype")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`slow_but("a", "b")`: all cases of a test are slow but those whose ids are "a" and "b"."""
    for item in items:
        marker = item.get_closest_marker("slow_but")
        if marker and item.callspec.id not in marker.args:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Traces make many objects: else the collector would go through all that was imported again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="module")
def optimised():
    """Programs are compiled as a user does: for results whose bits must survive every optimisation."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def speech_data() -> pathlib.Path:
    """The folder of real-speech packs: $SPEECH_DATA, or shared/data beside the checkout."""
    folder = pathlib.Path(os.environ.get("SPEECH_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real speech is not at {folder}: set SPEECH_DATA to the folder that holds the packs")
    return folder


@pytest.fixture(scope="session")
def looking_ahead(tmp_path_factory) -> pathlib.Path:
    """models/words_micro as an ONNX file whose chunks of 320 ms see 320 ms ahead."""
    from conformer.artefacts.formats import FORMATS

    for package in (*FORMATS["onnx"].interpreters, *FORMATS["onnx"].converters):
        pytest.importorskip(package)
    from conformer.export.pipeline import export

    folder = tmp_path_factory.mktemp("looking_ahead")
    model = pathlib.Path(__file__).parents[1] / "models" / "words_micro"
    return folder / export(model, "onnx", "float32", 8, 8, folder, look_ahead=8).file


@pytest.fixture(scope="session")
def cases() -> pathlib.Path:
    """The folder of small inputs with known answers, shared/cases beside the checkout."""
    folder = pathlib.Path(__file__).parents[2] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"the small inputs with known answers are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of public formats' checkpoints with their outputs, shared/golden beside the checkout."""
    folder = pathlib.Path(__file__).parents[2] / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"checkpoints with known outputs are not at {folder}")
    return folder
