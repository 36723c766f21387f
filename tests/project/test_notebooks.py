"""The notebooks, executed by papermill as the DAG executes them, with small parameters."""

import ast
import json
import math
import shutil

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import REPOSITORY as ROOT
from conftest import strictly

from roilib.evaluation import bootstrap, detection_rates
from roilib.evaluation.comparisons.bd_tables import metric_name
from roilib.evaluation.comparisons.families import families
from roilib.evaluation.comparisons.roi_modes import trade_table
from roilib.utils import notebooks

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "model_load_file": None,
    "N": 8,
    "M": 12,
    "max_steps": 4,
    "batch_size": 2,
    "compr_img_size": 64,
    "obj_det_img_size": 64,
}


OWN = {
    "weights": ["shipped"],
    "lmbda": [0.0004, 0.0012, 0.004, 0.012, 0.03, 0.06],
    "alpha": [0.5, 0.8],
}
OWN |= {
    "codecs": {
        "x265 ultrafast+zerolatency": {
            "quality": [24, 29, 34, 38, 42, 46],
            "qoffset": [0, -0.1, -0.3],
        }
    },
    "more": {
        "workers": 1,
        "at_bpp": [0.5, 99],
        "published": "report/results/reference/published/bmshj2018-hyperprior_kodak.json",
    },
}


def own_pictures(folder, root):
    """Parameters of notebook 05 for three pictures: with labels, with JSON boxes, with none."""
    own = folder / "own"
    own.mkdir()
    for i, name in enumerate(("left", "middle", "right")):
        shutil.copy(root / "training" / "image_2" / f"{i:06d}.png", own / f"{name}.png")
    shutil.copy(root / "training" / "label_2" / "000000.txt", own / "left.txt")
    (own / "middle.json").write_text("[[18, 50, 66, 80]]")
    return {
        "pictures": str(own),
        "logdir": str(folder / "own_runs"),
        "results": str(folder / "own_results"),
    }


@pytest.fixture(scope="module")
def executed(tiny_kitti, tmp_path_factory):
    """Run notebooks 01–07 once; the folder with `NN.ipynb`, runs, results and figures."""
    folder = tmp_path_factory.mktemp("workbook")
    data = {
        "dataset": "kitti",
        "data_root": str(tiny_kitti),
        "train_size_p1": 0.5,
        "logdir": str(folder / "runs"),
    }
    results = {"results": str(folder / "results")}
    jobs = [
        ("01_dataset_exploration", "01", {}),
        ("02_detector_hooks", "02", {}),
        ("03_baseline_training", "03", SMALL | {"devices": 2}),
        ("04_roi_training", "04", SMALL),
        ("04_roi_training", "04-zero", SMALL | {"zero_hooks": True}),
        (
            "04_roi_training",
            "04-vbr",
            SMALL
            | {"which": "roi_vbr", "N": 16, "M": 48, "lmbda": 0.012, "crop": "native", "ema": 0.9},
        ),
        (
            "05_evaluation",
            "05",
            results
            | {
                "codecs": {
                    "x264 medium": {"quality": [30, 40], "qoffset": [0, -0.2]},
                    "jpeg": {"quality": [30]},
                },
                "more": {"workers": 1},
            },
        ),
        ("05_evaluation", "05-own", own_pictures(folder, tiny_kitti) | OWN),
        ("06_figures", "06", results | {"figures": str(folder / "figures")}),
        ("07_playground", "07", {}),
    ]
    for notebook, name, values in jobs:
        notebooks.execute(
            ROOT / "notebooks" / f"{notebook}.ipynb", folder / f"{name}.ipynb", data | values
        )
    return folder


def shown(path):
    """Number of pictures among a notebook's outputs."""
    cells = nbformat.read(path, 4).cells
    return sum(
        "image/png" in o.get("data", {}) for c in cells if c.cell_type == "code" for o in c.outputs
    )


def finite(value):
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("01", 6),
        ("02", 2),
        ("03", 3),
        ("04", 4),
        ("04-zero", 4),
        ("04-vbr", 4),
        ("05", 1),
        ("05-own", 2),
        ("06", 6),
        ("07", 1),
    ],
)
def test_notebooks_show_their_figures(executed, name, pictures):
    assert shown(executed / f"{name}.ipynb") == pictures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    [("01_dataset_exploration", 0.0), ("02_detector_hooks", 1.0), ("07_playground", 1.0)],
)
def test_notebooks_show_the_other_part_where_theirs_is_empty(tiny_kitti, tmp_path, name, share):
    values = {"dataset": "kitti", "data_root": str(tiny_kitti), "train_size_p1": share}
    values |= {"logdir": str(tmp_path)}
    executed = tmp_path / "out.ipynb"
    notebooks.execute(ROOT / "notebooks" / f"{name}.ipynb", executed, values)
    assert shown(executed) > 0
    assert (tmp_path / name / "metrics.json").exists()


@pytest.mark.slow
def test_runs_end_in_finite_metrics(executed):
    runs = sorted((executed / "runs").glob("hyperprior*/metrics.json"))
    assert len(runs) == 3
    runs += (executed / "runs").glob("roi_vbr*/metrics.json")
    assert len(runs) == 4
    for path in runs:
        metrics = json.loads(path.read_text())
        assert metrics["steps"] == 4
        assert finite(metrics["history"])
        assert {
            "loss",
            "bpp_loss",
            "mse_loss",
            "roi_mse_loss",
            "bg_mse_loss",
            "psnr",
            "roi_psnr",
            "bg_psnr",
        } <= metrics["test"].keys()


@pytest.mark.slow
def test_every_file_of_numbers_has_its_origin_beside_it(executed):
    told = {
        path.parent: strictly(path)
        for name in ("hparams", "provenance")
        for path in executed.rglob(f"{name}.json")
    }
    assert {
        path.parent for path in (*executed.rglob("metrics.json"), *executed.rglob("records.json"))
    } == told.keys()
    assert len(told) == 4 + 6 + 2  # runs, notebooks, folders of results
    for about in told.values():
        assert {"commit", "dirty", "source", "packages", "python", "processor"} <= about[
            "environment"
        ].keys()
    own = told[executed / "own_results"]["parameters"]
    assert own == told[executed / "own_runs" / "05_evaluation"]["parameters"] | {
        "resamples": 1000,
        "seed": 0,
    }
    assert {name: own[name] for name in OWN} == OWN
    assert all(
        about["parameters"]["seed"] == 0
        for folder, about in told.items()
        if (folder / "splits.json").exists()
    )


@pytest.mark.slow
def test_a_cell_with_two_devices_starts_two_processes_and_shows_their_log(executed):
    (timing,) = (
        json.loads(path.read_text())
        for path in (executed / "runs").glob("hyperprior_eval_with_objs*/timing.json")
    )
    assert timing["processes"] == 2
    text = "".join(
        o.get("text", "")
        for c in nbformat.read(executed / "03.ipynb", 4).cells
        if c.cell_type == "code"
        for o in c.outputs
    )
    assert "4/4" in text


@pytest.mark.slow
def test_records_are_real_bytes_of_every_run_and_picture(executed):
    records = json.loads((executed / "results" / "records.json").read_text())
    assert len(records) == (4 + 4 + 1) * len({r["image"] for r in records})
    assert {r["codec"] for r in records} == {
        "hyperprior_eval_with_objs",
        "hyperprior_with_obj_features",
        "hyperprior_with_obj_features (zero_hooks)",
        "roi_vbr",
        "x264 medium",
        "jpeg",
    }
    assert finite(json.loads((executed / "runs" / "05_evaluation" / "metrics.json").read_text()))
    assert all(r["bytes"] > 0 and r["bpp"] > 0 and math.isfinite(r["psnr"]) for r in records)


@pytest.mark.slow
def test_a_folder_of_ones_own_is_one_parameter_away(executed):
    records = json.loads((executed / "own_results" / "records.json").read_text())
    assert {r["image"] for r in records} == {"left", "middle", "right"}
    assert {r.get("weights", r["codec"]) for r in records} == {
        "shipped",
        "x265 ultrafast+zerolatency",
    }
    assert len(records) == 3 * (6 * 2 + 6 * 3)
    assert all((r["roi_count"] > 0) == (r["image"] != "right") for r in records)
    assert all((r["car_count"] > 0) == (r["image"] == "left") for r in records)


@pytest.mark.slow
def test_tables_are_those_of_their_files(executed):
    folder = executed / "own_results"
    table = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    assert table.keys() >= {
        "rates",
        "bd_rates",
        "equal_background",
        "roi_trade",
        "byte_ratios",
        "byte_ratio_points",
        "yuv_byte_ratios",
        "detection",
        "detection_at_bpp",
        "published",
    }
    codecs = families(json.loads((folder / "records.json").read_text()))
    trade = trade_table(codecs)
    assert (folder / "roi_trade.csv").read_text() == trade.to_csv(index=False)
    seen = detection_rates.points(detection_rates.read_detections(folder))
    assert (folder / "detection.csv").read_text() == detection_rates.detection_table(seen).to_csv(
        index=False
    )
    assert set(table["equal_background"]["bg_loss"]) == {0.3, 0.5, 1.0}
    assert len(table["equal_background"]) == 2 * 3
    uniform = table["bd_rates"][table["bd_rates"]["bg_loss"].isna()]
    measured = map(metric_name, ("", "roi_", "bg_", *bootstrap.MEASURES))
    assert uniform["metric"].tolist() == list(measured)
    known = uniform.dropna(subset="low")  # few points give no interval for some measures
    assert "psnr" in set(known["metric"])
    assert (known["low"] <= known["bd_rate"]).all()
    assert set(table["detection"]["codec"]) == {
        "uncompressed",
        "roi_vbr",
        "x265 ultrafast+zerolatency",
    }
    assert set(table["detection_at_bpp"]["at_bpp"]) <= {0.5}


@pytest.mark.slow
def test_the_playgrounds_metrics_hold_every_codec_at_about_the_same_bytes(executed):
    records = json.loads((executed / "runs" / "07_playground" / "metrics.json").read_text())[
        "records"
    ]
    assert [r["codec"] for r in records] == ["roi_vbr", "JPEG", "AVIF", "x264 + ROI", "x265 + ROI"]
    assert all(0.8 * records[0]["bytes"] < r["bytes"] <= records[0]["bytes"] for r in records)
    assert "widgets" not in nbformat.read(executed / "07.ipynb", 4).metadata  # a figure stands in


@pytest.mark.slow
def test_figures_are_pdf_and_png(executed):
    made = {path.name for path in (executed / "figures").iterdir()}
    names = (
        "samples",
        "rate_psnr",
        "training",
        "detection",
        "roi_comparison",
        "bit_allocation",
    )
    assert made == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")}
    assert all((executed / "figures" / name).stat().st_size > 5000 for name in made)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_clean(notebook):
    content = nbformat.read(notebook, 4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert content.metadata.kernelspec.name == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert not any("def " in cell.source for cell in code)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_knows_every_parameter(notebook):
    cells = nbformat.read(notebook, 4).cells
    (source,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    assert assigned(source) == set(papermill.inspect_notebook(str(notebook)))


def assigned(source):
    """The names that code assigns to."""
    return {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_assigns_to_a_parameter_or_an_import(notebook):
    """Records say which parameters made them, read from the notebook's variables at its end."""
    code = [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    imported = {
        alias.asname or alias.name
        for source in code
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    }
    given = set(papermill.inspect_notebook(str(notebook)))
    assert not set().union(*map(assigned, code[1:])) & (given | imported)
