"""Published weights, fetched from a server that plays the hub."""

import io
import shutil
import sys
import time
from pathlib import Path

import pytest

from fastervit_jax import create_model
from fastervit_jax.models import VARIANTS
from fastervit_jax.weights import hub as library
from tests.small.weights import SMALL, arrays, assert_same, random_model
from tests.weights.hub_server import Hub

torch = pytest.importorskip("torch")
constants = pytest.importorskip("huggingface_hub.constants")

NAME, FILE = "faster_vit_0_224", "fastervit_0_224_1k.pth.tar"


@pytest.fixture(scope="module")
def published():
    """The network that is published, and its file."""
    from fastervit_jax.weights.to_torch import state_to_torch

    model = random_model(NAME)
    buffer = io.BytesIO()
    torch.save({"state_dict": state_to_torch(arrays(model), model.config)}, buffer)
    return model, buffer.getvalue()


@pytest.fixture
def small_variants(monkeypatch):
    """Small networks under the published names."""
    for name in (NAME, "faster_vit_0_any_res"):
        monkeypatch.setitem(VARIANTS, name, {**VARIANTS[name], **SMALL})


@pytest.fixture
def hub(published, small_variants, monkeypatch, tmp_path):
    server = Hub(library.REPOSITORY, {FILE: published[1]})
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # The library waits between its attempts.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("FASTERVIT_JAX_CACHE", str(tmp_path / "cache"))
    yield server
    server.close()


def test_fetched_converted_and_cached(hub, published, monkeypatch, capsys):
    assert_same(create_model(NAME, pretrained=True), published[0])
    assert "NVIDIA Source Code License-NC" in capsys.readouterr().err
    assert ("GET", f"/{library.REPOSITORY}/resolve/main/{FILE}", None) in hub.requests

    # From now on neither the network nor torch nor the hub's library is needed.
    hub.close()
    hub.requests.clear()
    for module in ("torch", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    assert_same(create_model(NAME, pretrained=True), published[0])
    assert not hub.requests
    assert capsys.readouterr() == ("", "")


def test_a_damaged_cache_says_how_to_mend_it(hub, published, tmp_path):
    create_model(NAME, pretrained=True)
    directory = tmp_path / "cache" / "v1" / NAME
    (directory / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"cached copy. Delete {directory} to download it again"):
        create_model(NAME, pretrained=True)
    shutil.rmtree(directory)
    assert_same(create_model(NAME, pretrained=True), published[0])


def test_an_any_res_model_starts_from_its_siblings_weights(hub, published):
    create_model(NAME, pretrained=True)
    hub.requests.clear()
    with pytest.warns(UserWarning, match="Weights of faster_vit_0_224 for its sibling"):
        model = create_model("faster_vit_0_any_res", pretrained=True, resolution=(112, 240))
    assert not hub.requests
    ours, theirs = arrays(model), arrays(published[0])
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_other_classes_start_a_new_head(hub):
    with pytest.warns(UserWarning, match=r"New, with initial values \(2\): head"):
        model = create_model(NAME, pretrained=True, num_classes=4)
    assert model.config.num_classes == 4


@pytest.mark.parametrize("breaks", [2, 20])
def test_a_download_that_breaks_off(breaks, hub, published, tmp_path):
    """The library tries again a few times by itself; after that, calling again does."""
    hub.break_after = [len(published[1]) // 3] * breaks
    if breaks == 20:
        with pytest.raises(OSError, match=r"Cannot download .* Connect to the internet and"):
            create_model(NAME, pretrained=True)
        assert not list((tmp_path / "cache" / "v1").iterdir())
        hub.break_after = []
    assert_same(create_model(NAME, pretrained=True), published[0])


def test_a_damaged_download_is_fetched_again(hub, published):
    hub.damage = 1
    assert_same(create_model(NAME, pretrained=True), published[0])
    assert [request[0] for request in hub.requests].count("GET") == 2


def test_a_download_that_stays_damaged_is_refused(hub, tmp_path):
    hub.damage = 2
    with pytest.raises(
        ValueError, match="was downloaded twice, and both times its SHA-256 differed"
    ):
        create_model(NAME, pretrained=True)
    assert not list((tmp_path / "cache" / "v1").iterdir())


def test_without_network_and_cache(hub):
    hub.close()
    with pytest.raises(OSError, match=f"Cannot download {FILE} of .* from the Hugging Face"):
        create_model(NAME, pretrained=True)


def test_a_file_that_the_hub_does_not_have(hub):
    hub.files.clear()
    with pytest.raises(OSError, match=r"Cannot download .* from the Hugging Face"):
        create_model(NAME, pretrained=True)


@pytest.mark.parametrize("package", ["torch", "huggingface_hub"])
def test_without_what_the_first_conversion_needs(package, hub, monkeypatch):
    monkeypatch.setattr(
        library.importlib.util, "find_spec", lambda name: None if name == package else name
    )
    with pytest.raises(
        ImportError, match=f"Downloading the weights .* needs {package}, .*pip install"
    ):
        create_model(NAME, pretrained=True)
    assert not hub.requests


@pytest.mark.parametrize("place", ["/proc/nowhere", "file/below"])
def test_a_cache_that_cannot_be_written(place, hub, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTERVIT_JAX_CACHE", str(tmp_path / place))
    with pytest.raises(OSError, match=r"is not writable\. Set FASTERVIT_JAX_CACHE"):
        create_model(NAME, pretrained=True)
    assert not hub.requests


def test_weights_or_pretrained():
    with pytest.raises(ValueError, match="got both"):
        create_model(NAME, pretrained=True, weights="here")


def test_the_users_cache_directory(monkeypatch):
    monkeypatch.delenv("FASTERVIT_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert library.cache_directory() == Path("/some/cache/fastervit_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert library.cache_directory() == Path("/home/someone/.cache/fastervit_jax")


def test_every_square_model_has_a_file():
    assert {name for name in VARIANTS if not VARIANTS[name].get("any_res")} == set(library.FILES)
