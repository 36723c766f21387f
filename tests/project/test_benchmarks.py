"""benchmarks: codec.py on a small frame, load.py with few small pictures."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, street

from roilib.codecs.roic import load_codec


def script(name):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(
        f"{name}_benchmark", REPOSITORY / "benchmarks" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return script("codec")


@pytest.mark.slow
def test_stages_add_up_and_every_codec_is_timed(benchmark, vbr_run, monkeypatch):
    monkeypatch.setattr(benchmark, "BOXES", ((20, 20, 60, 60),))
    frames = [street(0), street(1)]
    times, model = benchmark.measure(
        frames, vbr_run.weights, 2, {"lmbda": 0.012, "alpha": 0.9}, ["cpu"]
    )
    assert len(model) == 8
    assert {len(values) for values in times.values()} == {4}  # rounds x frames, none of the warm-up
    for operation in ("encode", "decode"):
        stages = {
            key[3]: np.array(values)
            for key, values in times.items()
            if key[0] == "roi_vbr" and key[2] == operation and key[3] != "detector"
        }
        assert stages.keys() == {"total", "container", *benchmark.STAGES.values()}
        assert sum(v for name, v in stages.items() if name != "total") == pytest.approx(
            stages["total"]
        )
        assert all((values > 0).all() for values in stages.values())
    rows = benchmark.summary(times)
    assert {row["codec"] for row in rows} == {
        "roi_vbr",
        "roi_vbr + detector",
        benchmark.BASELINE,
        *benchmark.CONVENTIONAL,
    }
    assert all(0 < row["median"] <= row["p95"] <= row["p99"] for row in rows)


def test_a_convolution_has_a_mac_for_each_weight_and_pixel():
    complexity = script("complexity")
    layer = torch.nn.Conv2d(3, 5, 3, padding=1, device="meta")
    found, out = complexity.kmacs(
        lambda: layer(torch.empty(1, 3, *complexity.FRAME, device="meta"))
    )
    assert (found, out.shape[1]) == (3 * 5 * 9 / 1000, 5)


@pytest.mark.slow
def test_memory_stays_flat_and_other_processes_make_the_same():
    load, numbers, rounds = script("load"), list(range(8)), 15
    found, memory = load.measure(load_codec(), numbers * rounds, 96)
    assert found == found[:8] * rounds
    assert (
        memory[-1] - memory[len(memory) // 3] < 3
    )  # a picture and its latents, if they were kept, would be 10 MB by then
    assert load.by_processes(2, numbers, None, 96) == [found[:8]] * 2


def test_memory_that_rises_shows():
    flatness = script("load").flatness
    assert flatness(np.array([500.0] * 50 + [900.0] * 50))["kb_a_picture"] == pytest.approx(
        0, abs=1e-6
    )
    assert flatness(900 + np.arange(100) / 10)["kb_a_picture"] == pytest.approx(102.4)
