"""Untrusted weights files: one line that names the file, nothing large made, no code run."""

import json
import pickle
import re
import shutil

import pytest
import torch
from conftest import REPOSITORY, UNTRAINED, refusal, street, untrained_codec
from safetensors import safe_open
from safetensors.torch import save, save_file

from roilib.codecs import roic
from roilib.models.detector import HookedDetector
from roilib.models.weights import (
    build_model,
    detector_hash,
    detector_of,
    load_weights,
    read_weights,
    save_weights,
)
from roilib.parameters import Parameters
from roilib.utils.pretrained import PRETRAINED_CODECS, PRETRAINED_DETECTOR, pretrained

WITH_FEATURES = {"which": "hyperprior_with_obj_features", "N": 4, "M": 6}


def written(folder, **values):
    """The file of a small untrained model."""
    codec = untrained_codec(**values)
    save_weights(folder / "small.safetensors", codec.model, codec.parameters, step=1)
    return folder / "small.safetensors"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return written(tmp_path_factory.mktemp("plain"), which="hyperprior", N=8, M=12)


@pytest.fixture(scope="module")
def vbr(tmp_path_factory):
    return written(tmp_path_factory.mktemp("vbr"), which="roi_vbr", N=4, M=20)


def parts(path):
    """State and metadata of a file."""
    with safe_open(path, "pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata()


def changed(metadata, **values):
    return metadata | {"parameters": json.dumps(json.loads(metadata["parameters"]) | values)}


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


def filled(state, name, value):
    return state | {name: torch.full_like(state[name], value)}


HOSTILE = {
    "no metadata": ("plain", lambda s, m: (s, None), "not a roilib weights file"),
    "no parameters": ("plain", lambda s, m: (s, {"step": "1"}), "not a roilib weights file"),
    "parameters that are a list": (
        "plain",
        lambda s, m: (s, {"parameters": "[1]"}),
        "not a roilib weights file",
    ),
    "parameters that are a number": (
        "plain",
        lambda s, m: (s, {"parameters": "7"}),
        "not a roilib weights file",
    ),
    "parameters nested too deep": (
        "plain",
        lambda s, m: (s, {"parameters": "[" * 10**6}),
        "not a roilib weights file",
    ),
    "an unknown parameter": ("plain", lambda s, m: (s, changed(m, code="import os")), "code"),
    "N of another type": ("plain", lambda s, m: (s, changed(m, N="8")), "N: "),
    "a huge N": (
        "plain",
        lambda s, m: (s, changed(m, N=10**9)),
        "too small for a hyperprior of N=1000000000",
    ),
    "a huge M": ("plain", lambda s, m: (s, changed(m, M=10**12)), "too small for a hyperprior"),
    "a roi_vbr of huge N": ("vbr", lambda s, m: (s, changed(m, N=10**6)), "N 2 to 512"),
    "another N": ("plain", lambda s, m: (s, changed(m, N=4)), "not weights of a hyperprior"),
    "another model": (
        "plain",
        lambda s, m: (s, changed(m, which="hyperprior_with_obj_features")),
        "not weights of a hyperprior_with_obj_features",
    ),
    "no tensors": ("plain", lambda s, m: ({}, m), "too small"),
    "a missing tensor": ("plain", lambda s, m: (without(s, "g_a.0.weight"), m), "g_a.0.weight"),
    "a tensor too many": ("plain", lambda s, m: (s | {"g_x": torch.zeros(1)}, m), "g_x"),
    "no tables": (
        "plain",
        lambda s, m: (without(s, "entropy_bottleneck._quantized_cdf"), m),
        "not weights of a hyperprior",
    ),
    "another shape": (
        "plain",
        lambda s, m: (s | {"g_a.0.weight": torch.zeros(8, 3, 3, 3)}, m),
        "g_a.0.weight",
    ),
    "NaN": (
        "plain",
        lambda s, m: (filled(s, "g_s.0.bias", float("nan")), m),
        "g_s.0.bias has values that are not finite",
    ),
    "infinity": (
        "vbr",
        lambda s, m: (filled(s, "a_lin.1.weight", float("inf")), m),
        "a_lin.1.weight has values that are not finite",
    ),
    "tables of zeros": (
        "plain",
        lambda s, m: (filled(s, "entropy_bottleneck._quantized_cdf", 0), m),
        "probability tables",
    ),
    "tables longer than they are": (
        "plain",
        lambda s, m: (filled(s, "gaussian_conditional._cdf_length", 10**6), m),
        "probability tables",
    ),
    "tables of negative length": (
        "vbr",
        lambda s, m: (filled(s, "entropy_bottleneck._cdf_length", -5), m),
        "probability tables",
    ),
    "negative frequencies": (
        "vbr",
        lambda s, m: (filled(s, "y_counts", -1), m),
        "probability tables",
    ),
    "weights that are integers": (
        "plain",
        lambda s, m: (s | {"g_a.0.weight": s["g_a.0.weight"].to(torch.int8)}, m),
        r"g_a\.0\.weight is torch\.int8, not torch\.float32",
    ),
    "integers that are weights": (
        "vbr",
        lambda s, m: (s | {"y_counts": s["y_counts"].float() + 0.5}, m),
        "y_counts is torch",
    ),
    "integers that are not exact": (
        "vbr",
        lambda s, m: (filled(s, "h_s_integer.layers.0.bias", 2**30), m),
        "sums are not exact",
    ),
    "shifts that are none": (
        "vbr",
        lambda s, m: (filled(s, "e_integer.0.0.layers.0.shift", -1), m),
        "sums are not exact",
    ),
    "a synthesis that is not exact": (
        "vbr",
        lambda s, m: (filled(s, "synthesis_integer.first.bias", 2**30), m),
        "sums are not exact",
    ),
    "a linear synthesis that is not exact": (
        "vbr",
        lambda s, m: (filled(s, "synthesis_integer.linear", -128), m),
        "sums are not exact",
    ),
    "no integers of the synthesis": (
        "vbr",
        lambda s, m: ({k: v for k, v in s.items() if "synthesis_integer" not in k}, m),
        "earlier version",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_are_one_line(name, request, tmp_path):
    source, change, message = HOSTILE[name]
    state, metadata = change(*parts(request.getfixturevalue(source)))
    save_file(state, tmp_path / "w.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"^[^\n]*w\.safetensors: [^\n]*{message}[^\n]*$"):
        roic.load_codec(tmp_path / "w.safetensors")


def test_files_that_are_cut_off_or_lie_about_their_length(plain, tmp_path):
    content, path = plain.read_bytes(), tmp_path / "w.safetensors"
    damaged = [content[:n] for n in (0, 7, 8, 100, len(content) // 2, len(content) - 1)]
    damaged += [
        b"\xff" * 8 + content[8:],
        content[:8] + b"\0" * 50,
        content + b"more",
        b"PK\3\4" + content,
    ]
    for other in damaged:
        path.write_bytes(other)
        with pytest.raises(
            ValueError, match=r"^[^\n]*w\.safetensors: not a roilib weights file[^\n]*$"
        ):
            read_weights(path)


class Bomb:
    """Runs code where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "last.ckpt"])
def test_pickled_weights_are_refused_unread_with_the_way_out(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    p = Parameters(which="hyperprior", model_load_file=str(tmp_path / name))
    for load in (
        lambda: roic.load_codec(tmp_path / name),
        lambda: load_weights(tmp_path / name, build_model(p), p),
    ):
        with pytest.raises(
            ValueError,
            match=rf"^[^\n]*{name}: pickled weights can run code[^\n]*export\.py[^\n]*$",
        ):
            load()
    assert not (tmp_path / "ran").exists()


def test_a_warm_start_from_a_hostile_file_is_one_line(plain, tmp_path):
    state, metadata = parts(plain)
    for which in ("hyperprior", "hyperprior_with_obj_features"):
        p = Parameters(which=which, N=8, M=12, zero_hooks=which != "hyperprior")
        for other in (
            without(state, "g_a.0.weight"),
            state | {"h_a.0.weight": torch.zeros(2, 2)},
            filled(state, "g_s.0.weight", float("nan")),
        ):
            (tmp_path / "w.safetensors").write_bytes(save(other, metadata))
            with pytest.raises(ValueError, match=r"^[^\n]*w\.safetensors: [^\n]*$"):
                load_weights(tmp_path / "w.safetensors", build_model(p), p)


def test_of_any_other_detector_a_warning_names_the_risk(tmp_path, recwarn):
    HookedDetector()
    HookedDetector(REPOSITORY / "data" / "weights" / PRETRAINED_DETECTOR)
    assert not [w for w in recwarn if "run code" in str(w.message)]
    content = pretrained(PRETRAINED_DETECTOR).read_bytes()
    (tmp_path / "copy.pt").write_bytes(content)
    HookedDetector(tmp_path / "copy.pt")
    assert not [w for w in recwarn if "run code" in str(w.message)]
    (tmp_path / "other.pt").write_bytes(b"x" + content)
    with (
        pytest.warns(UserWarning, match=r"other\.pt: .*can run code"),
        pytest.raises(ValueError, match=r"other\.pt: not an Ultralytics model"),
    ):
        HookedDetector(tmp_path / "other.pt")


def test_ultralytics_files_have_one_way_in():
    sources = {
        path: path.read_text()
        for pattern in ("roilib/**/*.py", "benchmarks/*.py", "data/**/*.py", "notebooks/*")
        for path in REPOSITORY.glob(pattern)
    }
    callers = [path.name for path, text in sources.items() if re.search(r"\bYOLO\(", text)]
    assert callers == ["detector.py"]
    assert all(
        "weights_only=True" in call
        for text in sources.values()
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text)
    )


def test_the_detector_that_a_weights_file_names_is_not_opened(tmp_path):
    """Unpickled, it would run code, though the caller has named safetensors alone."""
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    codec = roic.load_codec(
        written(tmp_path, detector_weights=str(tmp_path / "d.pt"), **WITH_FEATURES)
    )
    assert "if you trust it, name it (encode --detector" in refusal(codec.encode, street(0))
    assert not (tmp_path / "ran").exists()


def test_the_detector_of_weights_is_told_by_its_content(tmp_path):
    other = tmp_path / "d.pt"
    other.write_bytes(b"another")
    shutil.copy(pretrained(PRETRAINED_DETECTOR), tmp_path / "copy.pt")

    def find(name, given=None):
        p = Parameters(detector_weights=name and str(tmp_path / name), **WITH_FEATURES)
        save_weights(tmp_path / "w.safetensors", build_model(p), p, 1, **detector_hash(p))
        return detector_of(tmp_path / "w.safetensors", p, given)

    assert [find(None), find(None, other), find("copy.pt")] == [None, None, None]
    assert find("d.pt", other) == other
    assert "copy.pt: not the detector that" in refusal(find, "d.pt", tmp_path / "copy.pt")
    assert "name it" in refusal(find, "d.pt")


def test_a_detector_file_that_names_a_missing_module_installs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_output", lambda *words, **_: pytest.fail(f"ran {words}"))
    path = tmp_path / "b.pt"
    path.write_bytes(b"\x80\x02cno_such_module_of_roilib\nThing\n.")
    with (
        pytest.warns(UserWarning, match="can run code"),
        pytest.raises(ValueError, match=r"b\.pt: not an Ultralytics model"),
    ):
        HookedDetector(path)


@pytest.mark.parametrize("values", UNTRAINED)
def test_a_good_file_is_loaded(tmp_path, values):
    assert roic.load_codec(written(tmp_path, **values)).parameters.which == values["which"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("source", ["plain", "vbr"])
def test_weights_of_another_precision_load(request, tmp_path, source, dtype):
    state, metadata = parts(request.getfixturevalue(source))
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    save_file(cast, tmp_path / "w.safetensors", metadata)
    codec = roic.load_codec(tmp_path / "w.safetensors")
    assert codec.decode(codec.encode(street(0))).shape == street(0).shape


def test_a_training_from_the_pretrained_file_has_whole_constants():
    """The file has the least likelihood in fp16, which is 0."""
    p = Parameters(which="roi_vbr", N=96, M=768)
    model = build_model(p)
    load_weights(pretrained(PRETRAINED_CODECS["rgb"]), model, p)
    assert model.gaussian_conditional.likelihood_lower_bound.bound.item() == pytest.approx(1e-9)


def test_a_half_precision_file_keeps_the_constants(tmp_path):
    """As fp16 the least likelihood would be 0, and a training from this file lose infinite bits."""
    p = Parameters(which="hyperprior", N=8, M=12)
    save_weights(tmp_path / "w.safetensors", build_model(p), p, 0, half=True)
    state, _ = read_weights(tmp_path / "w.safetensors")
    assert state["g_a.0.weight"].dtype == torch.float16
    assert state["entropy_bottleneck.likelihood_lower_bound.bound"].item() == pytest.approx(1e-9)


def test_the_object_hyperprior_starts_as_the_images(plain):
    p = Parameters(N=8, M=12, model_load_file=str(plain), zero_hooks=True)
    model = build_model(p)
    load_weights(plain, model, p)
    model.eval()
    _, z, w = model.latents(torch.rand(1, 3, 64, 64))
    assert torch.equal(z, w)
    assert torch.equal(*(bottleneck(z)[1] for bottleneck in model.bottlenecks))
