"""roilib.engines.meters: means, speed and whether a training has diverged."""

import math
from types import SimpleNamespace

import pytest

from roilib.engines.meters import MAX_SKIPPED, Health, Means, Speed


def test_means_are_over_the_true_pixels():
    means = Means()
    means.add(
        {"loss": 1.0, "mse_loss": 0.5, "roi_mse_loss": 0.1, "bg_mse_loss": 0.9},
        pictures=3,
        roi_share=0.5,
    )
    means.add(
        {"loss": 5.0, "mse_loss": 0.2, "roi_mse_loss": 0.0, "bg_mse_loss": 0.2},
        pictures=1,
        roi_share=0.0,
    )
    result = means.result()
    assert result["loss"] == pytest.approx(2.0)
    assert result["roi_mse_loss"] == pytest.approx(0.1)  # the picture without objects says nothing
    assert result["bg_mse_loss"] == pytest.approx((3 * 0.5 * 0.9 + 0.2) / 2.5)
    assert result["psnr"] == pytest.approx(10 * math.log10(1 / result["mse_loss"]))
    empty = Means()
    empty.add({"loss": 1.0, "roi_mse_loss": 0.0}, pictures=2, roi_share=0.0)
    assert empty.result() == {"loss": 1.0}
    exact = Means()
    exact.add({"mse_loss": 0.0}, pictures=1, roi_share=0.0)
    assert exact.result() == {"mse_loss": 0.0}
    again = Means()
    again.load_state_dict(means.state_dict())
    assert again.result() == result


def test_speed_counts_pictures_and_the_wait_for_data(monkeypatch):
    now = 0.0
    monkeypatch.setattr("roilib.engines.meters.time", SimpleNamespace(perf_counter=lambda: now))

    def pass_time(seconds):
        nonlocal now
        now += seconds

    def slow():
        for batch in range(3):
            pass_time(0.05)
            yield batch

    speed = Speed()
    for _ in speed.waiting(slow()):
        speed.pictures += 8
        pass_time(0.15)
    report = speed.report()
    assert report["data_wait_share"] == pytest.approx(0.25)
    assert report["pictures_per_second"] == pytest.approx(24 / 0.6)
    assert report["process_mb"] > 50
    assert speed.report()["data_wait_share"] == 0


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run():
    health = Health()
    for _ in range(MAX_SKIPPED - 1):
        health.check(math.nan, False, "run")
    health.check(1.0, True, "run")
    assert (health.skipped, health.in_a_row) == (MAX_SKIPPED - 1, 0)
    for _ in range(MAX_SKIPPED - 1):
        health.check(math.inf, False, "run")
    with pytest.raises(ValueError, match=r"^run: diverged, 50 steps in a row [^\n]+$"):
        health.check(math.inf, False, "run")


def test_a_loss_that_explodes_ends_the_run_and_a_noisy_one_does_not():
    health = Health()
    for step in range(1000):
        health.check(1 + step % 7, True, "run")
    with pytest.raises(ValueError, match="its mean loss rose"):
        health.check(10_000.0, True, "run")
