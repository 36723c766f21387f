"""roilib.evaluation.evaluate: whole frames, real bytes, records."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import REPOSITORY, refusal, strictly, trained_run
from PIL import Image

from roilib.apps.playground.coding import Coder
from roilib.codecs.conventional import ConventionalCodec
from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset, split
from roilib.datasets.folder import folder_samples
from roilib.datasets.images import Sample
from roilib.datasets.kitti import kitti_samples
from roilib.engines.runs import Run, open_run
from roilib.evaluation.cache import detector_files, tasks
from roilib.evaluation.comparisons.bd_tables import bd_table
from roilib.evaluation.comparisons.byte_ratios import byte_ratio_tables
from roilib.evaluation.comparisons.families import families
from roilib.evaluation.comparisons.roi_modes import equal_background_table, trade_table
from roilib.evaluation.evaluate import (
    conventional_settings,
    evaluate,
    finished_runs,
    provenance,
    read_records,
    refuse_training_pictures,
    trained_settings,
    weights_file,
    write_records,
)
from roilib.evaluation.tables.files import read_table, write_tables
from roilib.evaluation.tables.rate_tables import one_rate_table, rate_order_table, rate_table
from roilib.metrics import psnr_from_mse
from roilib.models.detector import HookedDetector, frame_features
from roilib.parameters import Parameters
from roilib.roi import roi_mask
from roilib.utils.files import write_json
from roilib.utils.pretrained import PRETRAINED_CODECS, pretrained
from roilib.visualization import pictures
from roilib.visualization import rates as figures
from roilib.visualization.side_by_side import compare


@pytest.fixture(scope="module")
def trained(tiny_kitti, tmp_path_factory):
    """Two small models trained for long enough that their bytes mean something."""
    base = {
        "dataset": "kitti",
        "data_root": str(tiny_kitti),
        "logdir": str(tmp_path_factory.mktemp("runs")),
        "device": "cpu",
        "precision": "32",
    }
    base |= {
        "N": 8,
        "M": 12,
        "batch_size": 4,
        "num_workers": 0,
        "compr_img_size": 64,
        "train_size_p1": 0.67,
        "max_epochs": 6,
        "max_lr": 5e-3,
    }
    runs = []
    for options in (
        {"which": "hyperprior_eval_with_objs"},
        {"which": "hyperprior_with_obj_features", "alpha": 0.9, "mask_hooks": True},
    ):
        runs.append(trained_run(Parameters.parse(base | options | {"lmbda": 0.02})))
    return runs


def test_whole_frames_of_any_size_come_back_as_forward_says(trained, tiny_kitti):
    image, boxes, _ = RoiDataset(kitti_samples(tiny_kitti))[0]
    for run in trained:
        codec = load_codec(run.weights)
        for height, width in ((96, 160), (71, 130)):
            frame = image[:, :height, :width].permute(1, 2, 0).numpy()
            decoded = codec.decode(codec.encode(frame, boxes.numpy()))
            with torch.no_grad():
                x_hat = codec.model(*codec.inputs(frame, boxes.numpy()))["x_hat"][
                    0, :, :height, :width
                ].clamp(0, 1)
            assert decoded.shape == (height, width, 3)
            assert np.abs(decoded - x_hat.mul(255).permute(1, 2, 0).numpy()).max() <= 0.5 + 255e-4


@pytest.mark.parametrize("codec", ["a.safetensors", Path("a.safetensors")])
def test_a_file_is_no_codec(codec):
    assert refusal(list, evaluate(codec, RoiDataset([]))).startswith("a.safetensors: load_codec")
    assert refusal(Coder, codec).startswith("model is a codec, made by load_codec(FILE), not ")


def test_records_measure_what_was_decoded(trained, tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti))
    codec = load_codec(trained[0].weights)
    image, boxes, _ = data[1]
    original, inside = image.permute(1, 2, 0).numpy(), roi_mask(boxes.numpy(), 96, 160)
    stream = codec.encode(original, boxes.numpy())
    record, times = next(evaluate(codec, RoiDataset(data.samples[1:2])))
    error = (codec.decode(stream).astype(float) - original.astype(float)) ** 2
    assert record["bytes"] == len(stream)
    assert record["bpp"] == pytest.approx(8 * len(stream) / (96 * 160))
    assert record["psnr"] == pytest.approx(psnr_from_mse(error.mean(), 255))
    assert record["roi_psnr"] == pytest.approx(psnr_from_mse(error[inside].mean(), 255))
    assert record["bg_psnr"] == pytest.approx(psnr_from_mse(error[~inside].mean(), 255))
    car = roi_mask(boxes[:1].numpy(), 96, 160)  # the first box of each of these pictures
    assert record["car_psnr"] == pytest.approx(psnr_from_mse(error[car].mean(), 255))
    assert record["car_count"] + record["pedestrian_count"] >= record["roi_count"]
    assert (record["cyclist_psnr"], record["cyclist_count"]) == (None, 0)
    assert 0 < record["haarpsi"] < 1
    assert 0 < record["roi_haarpsi"] < 1
    assert record["roi_yuv_psnr"] != record["yuv_psnr"] != record["bg_yuv_psnr"]
    assert all(value > 0 for value in times["seconds"].values())


def test_features_continue_to_the_padded_frame():
    detector = HookedDetector()
    frame = torch.rand(1, 3, 100, 150, generator=torch.Generator().manual_seed(0))
    features, plain = frame_features(detector, frame, (128, 192)), detector.codec_features(frame)
    assert [tuple(f.shape[-2:]) for f in features] == [(16, 24), (8, 12), (4, 6)]
    for padded, f in zip(features, plain, strict=True):
        height, width = f.shape[-2:]
        assert torch.equal(padded[..., :height, :width], f)
        assert torch.equal(
            padded[..., height:, :width], f[..., -1:, :].expand_as(padded[..., height:, :width])
        )


def test_records_round_trip_and_errors_name_the_file(tmp_path):
    write_records(tmp_path / "a", "records", [{"bytes": 1}])
    assert read_records(tmp_path / "a") == [{"bytes": 1}]
    (tmp_path / "a" / "records.json").write_text("[{")
    for folder in ("a", "b"):
        with pytest.raises(ValueError, match=r"records\.json"):
            read_records(tmp_path / folder)


def test_finished_runs_are_found_and_missing_ones_named(trained, tmp_path):
    logdir = trained[0].folder.parent
    assert {run.folder for run in finished_runs(logdir)} == {run.folder for run in trained}
    assert [run.folder for run in finished_runs(logdir, [trained[1].folder.name])] == [
        trained[1].folder
    ]
    with pytest.raises(ValueError, match="hyperprior-none"):
        finished_runs(logdir, ["hyperprior-none"])
    with pytest.raises(ValueError, match="no finished training run"):
        finished_runs(tmp_path)
    assert finished_runs(tmp_path, needed=False) == []


def test_of_a_training_that_went_on_the_longest_run_is_measured(tiny_parameters, tiny_kitti):
    for values in ({"max_steps": 2}, {"max_steps": 3}, {"max_steps": 3, "max_lr": 0.02}):
        run = open_run(tiny_parameters(**values))
        run.weights.touch()
        write_json(run.folder / "metrics.json", {"steps": 1})
    runs, data = finished_runs(run.folder.parent), RoiDataset(kitti_samples(tiny_kitti)[:1])
    assert [r.parameters.max_steps for r in runs] == [3, 3]
    with pytest.raises(ValueError, match="differ in max_lr alone"):
        tasks(runs, data)
    (point,) = tasks(runs[:1], data)
    assert point.source == ("run", runs[0].folder.name)


def test_pictures_that_a_run_trained_on_are_refused(trained, tiny_kitti, tmp_path):
    samples = kitti_samples(tiny_kitti)
    refuse_training_pictures(trained, RoiDataset(samples[4:]))
    with pytest.raises(ValueError, match=r"splits\.json: trained on 000003 and 0 more of these"):
        refuse_training_pictures(trained, RoiDataset(samples[3:]))
    for sample in samples[3:5]:  # a copy of a training picture and one of a test picture
        shutil.copy(sample.path, tmp_path / f"{sample.id}-copy.png")
    with pytest.raises(ValueError, match=r"trained on 000003-copy and 0 more"):
        refuse_training_pictures(trained, RoiDataset(*folder_samples(tmp_path)))


def test_a_run_of_an_earlier_version_knows_its_pictures_by_id(tiny_kitti, tmp_path):
    run = Run(tmp_path, Parameters.parse({"dataset": "kitti", "data_root": str(tiny_kitti)}))
    write_json(run.splits, {"dataset": "kitti", "train": ["000003"], "test": ["000004"]})
    samples = kitti_samples(tiny_kitti)
    refuse_training_pictures([run], RoiDataset(samples[4:]))
    with pytest.raises(ValueError, match="trained on 000003 and 0 more"):
        refuse_training_pictures([run], RoiDataset(samples[3:]))


def test_provenance_names_code_parameters_and_time(trained, tiny_kitti):
    found = provenance(
        {"alpha": [0.9]},
        RoiDataset(kitti_samples(tiny_kitti)[:2]),
        trained,
        ["shipped"],
        detector_files(["shipped"]),
    )
    assert found["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert (found["parameters"], found["pictures"], list(found["detectors"])) == (
        {"alpha": [0.9]},
        2,
        ["yolov8n_kitti"],
    )
    about = found["weights"]["shipped"]
    assert weights_file("shipped_yuv") == pretrained(PRETRAINED_CODECS["yuv"])
    assert load_codec(weights_file("shipped_yuv")).name == "roi_vbr (yuv)"
    assert about["model"] == load_codec().id.hex()
    assert about["steps"] == about["parameters"]["max_steps"] > 0 < about["hours"]
    assert (
        found["pictures_sha256"]
        != provenance({}, RoiDataset(kitti_samples(tiny_kitti)[:1]))["pictures_sha256"]
    )
    assert set(found["runs"]) == {run.folder.name for run in trained}
    for about in found["runs"].values():
        assert about["steps"] == 60
        assert about["seconds"] > 0
        assert {"commit", "dirty", "source", "parameters", "precision", "threads"} <= about.keys()


def test_rate_table_pools_over_pictures(trained, tiny_kitti):
    records = [
        record
        for run in trained
        for record, _ in evaluate(load_codec(run.weights), RoiDataset(kitti_samples(tiny_kitti)))
    ]
    table = rate_table(records)
    assert len(table) == 2
    for _, row in table.iterrows():
        mine = [r for r in records if r["run"] == row["run"]]
        assert row["bpp"] == pytest.approx(np.mean([r["bpp"] for r in mine]))
        pooled = sum(r["roi_sse"] for r in mine) / sum(r["roi_count"] for r in mine)
        assert row["roi_psnr"] == pytest.approx(psnr_from_mse(pooled, 255))
        assert row["psnr_mean"] == pytest.approx(np.mean([r["psnr"] for r in mine]))
        assert row["roi_psnr_mean"] == pytest.approx(
            np.mean([r["roi_psnr"] for r in mine if r["roi_psnr"]])
        )
        cars = sum(r["car_sse"] for r in mine) / sum(r["car_count"] for r in mine)
        assert row["car_psnr"] == pytest.approx(psnr_from_mse(cars, 255))
    assert "cyclist_psnr" not in table


def test_one_model_is_measured_at_every_pair_of_knobs(vbr_run, trained, tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti)[:2])
    settings = trained_settings(vbr_run.parameters, [0.002, 0.02], [0.5, 0.95])
    records = [record for record, _ in evaluate(load_codec(vbr_run.weights), data, settings)]
    assert [(r["setting"]["lmbda"], r["setting"]["alpha"]) for r in records[::2]] == [
        (0.002, 0.5),
        (0.002, 0.95),
        (0.02, 0.5),
        (0.02, 0.95),
    ]
    table = rate_table(records)
    assert table["pictures"].tolist() == [2] * 4
    sharp, plain = (table[table["alpha"] == alpha].iloc[0] for alpha in (0.95, 0.5))
    assert sharp["bpp"] < plain["bpp"]
    assert sharp["bg_psnr"] < plain["bg_psnr"]
    one_rate = trained_settings(trained[0].parameters, [0.002], [0.9])
    assert one_rate == [{"lmbda": 0.02, "alpha": trained[0].parameters.alpha}]


def test_pictures_without_any_region_have_tables_and_figures(tmp_path):
    about = {
        "codec": "roi_vbr",
        "run": "a",
        "ms_ssim": None,
        "bytes": 1,
        "count": 30,
        "bg_count": 30,
    }
    about |= {"roi_count": 0, "roi_sse": 0.0, "roi_psnr": None}
    records = [
        about
        | {"image": image, "setting": {"lmbda": 0.001 * 2**i, "alpha": alpha}, "bpp": 0.1 * 2**i}
        | {"sse": 3e4 / 2**i, "bg_sse": 3e4 / 2**i, "psnr": 18.0 + 3 * i, "bg_psnr": 18.0 + 3 * i}
        for image in "xy"
        for alpha in (0.5, 0.8, 0.9)
        for i in range(7)
    ]
    rates = rate_table(records)
    assert rates["roi_psnr"].isna().all()
    codecs = families(records)
    trade = trade_table(codecs)
    assert trade["roi_bd_rate"].isna().all()
    assert trade["bg_loss"].to_numpy(float) == pytest.approx(0, abs=1e-9)
    assert equal_background_table(codecs)["roi_bd_rate"].isna().all()
    write_tables(tmp_path, {"rates": rates, "roi_trade": trade})
    again, trade = (read_table(tmp_path, name) for name in ("rates", "roi_trade"))
    pictures.plt.close(figures.rate_curves(again, trade))
    assert figures.alpha_sweep(again) is figures.roi_plane(trade) is None


def test_one_model_for_every_rate_is_compared_at_equal_psnr():
    curve = [
        {"codec": "roi_vbr", "alpha": 0.5, "lmbda": 0.01 * i, "psnr": 25 + 3 * i, "bpp": 0.1 * 2**i}
        for i in range(5)
    ]
    ones = [
        {
            "codec": "roi_vbr (fixed_rate)",
            "alpha": 0.5,
            "lmbda": i,
            "psnr": 25 + 3 * i,
            "bpp": 0.1 * 2**i / 1.02,
        }
        for i in (0.5, 2, 9)
    ]
    other = [{"codec": "roi_vbr", "alpha": 0.9, "lmbda": 0.01, "psnr": 28, "bpp": 9}]
    table = one_rate_table(pd.DataFrame(curve + ones + other))
    assert table["difference"][:2].tolist() == pytest.approx([2, 2], abs=1e-6)
    assert np.isnan(table["difference"][2])  # better than the curve's best
    assert one_rate_table(pd.DataFrame(ones)).difference.isna().all()


def test_pictures_whose_bytes_do_not_rise_with_lambda_are_counted():
    def record(image, lmbda, size, alpha=0.5):
        return {
            "run": "a",
            "codec": "roi_vbr",
            "image": image,
            "bytes": size,
            "setting": {"lmbda": lmbda, "alpha": alpha},
        }

    sizes = {"x": {3: 3, 1: 1, 2: 2}, "y": {3: 3, 1: 1, 2: 1}}
    records = [
        record(image, lmbda, size)
        for image, found in sizes.items()
        for lmbda, size in found.items()
    ]
    table = rate_order_table(
        [
            *records,
            record("x", 1, 5, 0.9),
            record("x", 2, 4, 0.9),
            records[0] | {"codec": "hyperprior"},
        ]
    )
    assert table.to_dict("records") == [
        {"run": "a", "alpha": 0.5, "pictures": 2, "not_rising": 1},
        {"run": "a", "alpha": 0.9, "pictures": 1, "not_rising": 1},
    ]
    assert rate_order_table([]).empty


FLAT_BOX = (48, 32, 96, 64)
GRID = {"quality": [12, 18, 24, 30, 36, 42], "qoffset": [0.0, -0.2]}


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A noisy box on grey, which some codecs give back as it was."""
    picture = np.full((96, 160, 3), 128, np.uint8)
    x0, y0, x1, y1 = FLAT_BOX
    picture[y0:y1, x0:x1] = np.random.default_rng(0).integers(0, 256, (y1 - y0, x1 - x0, 3))
    path = tmp_path_factory.mktemp("flat") / "flat.png"
    Image.fromarray(picture).save(path)
    return RoiDataset(
        [Sample("flat", path, np.array([FLAT_BOX], np.float32), np.zeros(1, np.int64))]
    )


@pytest.mark.slow
def test_a_part_without_error_goes_through_files_tables_and_figures(flat, vbr_run, tmp_path):
    lmbdas = [0.001, 0.003, 0.01, 0.03, 0.06, 0.1]
    points = [
        (load_codec(vbr_run.weights), trained_settings(vbr_run.parameters, lmbdas, [0.5, 0.9]))
    ]
    for name in ("x264 medium", "x265 medium"):
        points.append((ConventionalCodec(name), conventional_settings(name, GRID)))
    measured = [
        record for codec, settings in points for record, _ in evaluate(codec, flat, settings)
    ]
    exact = [r for r in measured if r["bg_sse"] == 0]
    assert {r["codec"] for r in exact} == {"x264 medium", "x265 medium"}
    assert all(
        r["bg_psnr"] is None and r["bg_count"] > 0 and r["psnr"] > r["roi_psnr"] for r in exact
    )
    written = write_records(tmp_path, "records", measured)
    assert strictly(written) == measured
    records = read_records(tmp_path)
    rates, codecs = rate_table(records), families(records)
    assert rates["bg_psnr"].isna().sum() == rates["bg_psnr_mean"].isna().sum() == len(exact)
    comparison = bd_table(codecs)
    assert comparison[comparison["metric"] == "roi_psnr"]["bd_psnr"].notna().any()
    made = {
        "rates": rates,
        "bd_rates": comparison,
        "equal_background": equal_background_table(codecs),
        "roi_trade": trade_table(codecs),
    }
    made["byte_ratios"], made["byte_ratio_points"] = byte_ratio_tables(codecs)
    write_tables(tmp_path, made)
    again, trade = (read_table(tmp_path, name) for name in ("rates", "roi_trade"))
    pd.testing.assert_frame_equal(again[["bpp", "bg_psnr"]], rates[["bpp", "bg_psnr"]])
    for figure in (figures.rate_curves(again, trade), figures.alpha_sweep(again)):
        pictures.plt.close(figure)
    pictures.plt.close(figures.roi_plane(trade))
    (scene,) = compare([vbr_run], records, flat, [(0, np.array(FLAT_BOX, np.float32))])
    assert len(scene.panels) == 3
    pictures.plt.close(pictures.comparison([scene]))


def test_shipped_weights_know_the_pictures_that_they_were_trained_on(shared_data):
    root = shared_data / "kitti"
    train, test = split(kitti_samples(root), None, root)
    refuse_training_pictures([], RoiDataset(test), ["shipped"])
    message = rf"shipped: trained on {train[-1].id} and 0 more of these pictures"
    with pytest.raises(ValueError, match=message):
        refuse_training_pictures([], RoiDataset([*test, train[-1]]), ["shipped"])


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "params" / "codecs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_profiles_conventional_codecs_have_settings(path):
    for name, grid in yaml.safe_load(path.read_text()).items():
        assert len(conventional_settings(name, grid)) == len(grid["quality"]) * len(
            grid.get("qoffset", [0])
        )


def test_roi_strengths_of_codecs_without_roi_are_refused():
    for name in ("svtav1 6 4:2:0", "jpeg"):
        assert conventional_settings(name, {"quality": [30], "qoffset": [0]})
        with pytest.raises(ValueError, match=f"{name}: this codec has no ROI"):
            conventional_settings(name, {"quality": [30], "qoffset": [0, -0.2]})
    with pytest.raises(ValueError, match="quality is a list of numbers from 1 to 63"):
        conventional_settings("svtav1 6 4:2:0", {"quality": [0]})
    with pytest.raises(ValueError, match="quality is a list of numbers from 0 to 51"):
        conventional_settings("x265 medium 4:2:0", {"quality": [52]})
