"""benchmarks: codec.py on a small frame, load.py with few small pictures."""

import importlib.util

import numpy as np
import pytest
import torch
from compressai.models import ScaleHyperprior
from conftest import REPOSITORY, street

from roilib.codecs.roic import load_codec
from roilib.models.hyperprior import Hyperprior
from roilib.utils.pretrained import PRETRAINED_BASELINE, pretrained


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
    knobs, conditions = {"lmbda": 0.012, "alpha": 0.9}, [((96, 160), 1), ((70, 200), 2)]
    before = torch.get_num_threads()
    found, model = benchmark.measure(frames, vbr_run.weights, 2, knobs, ["cpu"], conditions)
    assert list(found) == conditions
    assert torch.get_num_threads() == before
    times = found[conditions[1]]
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
    rows = benchmark.summary(found)
    assert [(r["frame"], r["threads"]) for r in (rows[0], rows[-1])] == [
        ([96, 160], 1),
        ([70, 200], 2),
    ]
    assert {row["codec"] for row in rows} == {
        "roi_vbr",
        "roi_vbr + detector",
        benchmark.CAPPED,
        benchmark.TRAINED,
        benchmark.RANDOM,
        *benchmark.CONVENTIONAL,
    }
    assert all(0 < row["median"] <= row["p95"] <= row["p99"] for row in rows)


def test_frames_keep_their_pixels_at_every_size(benchmark):
    frame = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    assert benchmark.size_of("1242x375") == (375, 1242)
    assert np.array_equal(benchmark.fitted(frame, (4, 6)), frame[:4, :6])
    larger = benchmark.fitted(frame, (12, 20))
    assert larger.shape == (12, 20, 3)
    assert np.array_equal(larger[:5, :8], frame)
    assert np.array_equal(larger[5:10, :8], frame[::-1])


def test_the_baseline_has_the_trained_weights(benchmark):
    models = benchmark.baselines()
    ours = load_codec(pretrained(PRETRAINED_BASELINE)).model
    trained = models[benchmark.TRAINED]
    assert (trained.N, trained.M) == (64, 96)
    for name, value in ours.named_parameters():
        assert torch.equal(trained.get_parameter(name), value)
    x = torch.from_numpy(street(0)).permute(2, 0, 1)[None] / 255
    coded = trained.compress(x[..., :64, :128])
    x_hat = trained.decompress(coded["strings"], coded["shape"])["x_hat"]
    assert ((x_hat - x[..., :64, :128]) ** 2).mean() < 0.01  # untrained weights return noise


def test_a_convolution_has_a_mac_for_each_weight_and_pixel():
    complexity = script("complexity")
    layer = torch.nn.Conv2d(3, 5, 3, padding=1, device="meta")
    found, out = complexity.kmacs(
        lambda: layer(torch.empty(1, 3, *complexity.FRAME, device="meta"))
    )
    assert (found, out.shape[1]) == (3 * 5 * 9 / 1000, 5)


def test_published_models_are_counted_as_the_papers_are():
    complexity = script("complexity")
    theirs = complexity.published("same", ScaleHyperprior(8, 12))
    ours = complexity.papers("same", Hyperprior(8, 12).to("meta"))
    assert theirs["parameters"] == ours["parameters"]
    for part in ("encode", "decode"):  # theirs counts the prior's products, too
        assert theirs[part] == pytest.approx(ours[part], rel=1e-3)


@pytest.mark.slow
def test_memory_stays_flat_and_other_processes_make_the_same():
    load, numbers, rounds = script("load"), list(range(8)), 8
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
