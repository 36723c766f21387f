"""Measure weights, conventional codecs and detectors on a folder of pictures, as notebook 05 does.

pictures, labels ──► every codec at every setting ──► records ──► tables of rates and detections
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml
from tqdm import tqdm

from roilib.datasets.dataset import RoiDataset, evaluation_pictures
from roilib.evaluation import cache, detection_rates
from roilib.evaluation.detection import with_boxes
from roilib.evaluation.evaluate import provenance, refuse_training_pictures, write_records
from roilib.evaluation.tables.files import write_tables
from roilib.evaluation.tables.layout import DETECTION_COLUMNS, KNOB_COLUMNS, RATE_COLUMNS, markdown
from roilib.evaluation.tables.rate_tables import rate_table
from roilib.parameters import Parameters
from roilib.utils.device import resolve_device
from roilib.utils.files import read_text, write_json

MADE = (  # the first file marks a folder as made here
    "provenance.json",
    "records.json",
    "times.json",
    "rates.csv",
    "detection.csv",
)


def read_pictures(folder: Path) -> RoiDataset:
    """Read a folder of pictures and labels, or a KITTI root's test pictures."""
    if (folder / "training" / "image_2").is_dir():
        p = Parameters.parse({"dataset": "kitti", "data_root": str(folder)})
        return evaluation_pictures(p)
    return evaluation_pictures(Parameters.parse({}), str(folder))


def read_grids(path: Path | None) -> dict:
    """Read the settings of conventional codecs from a YAML file like those of params/codecs.

    Raises ValueError naming the file.
    """
    if path is None:
        return {}
    try:
        grids = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(grids, dict) or not all(isinstance(name, str) for name in grids):
        raise ValueError(f"{path}: not codecs with their qualities, as in params/codecs")
    return grids


def measure(
    folder: Path,
    out: Path,
    weights: Sequence[str],
    lmbdas: Sequence[float],
    alphas: Sequence[float],
    codecs: Path | None,
    detectors: Sequence[str],
    boxes: str,
    device: str,
    workers: int | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure codecs and detectors, write MADE to `out`, and return rates and detections.

    weights, detectors: files, or "shipped" (of weights also "shipped_yuv") for the pretrained ones.
    boxes: as for `with_boxes`. Points measured before are read from out/points. Raises ValueError
    for wrong settings or files.
    """
    data = with_boxes(read_pictures(folder), boxes)
    refuse_training_pictures([], data, weights)
    grids, looking = read_grids(codecs), cache.detector_files(detectors)
    where = str(resolve_device(device))
    points = cache.tasks([], data, lmbdas, alphas, grids, where, weights, looking)
    pairs = tqdm(cache.measure(points, out / "points", workers), total=len(points), mininterval=10)
    measured, times = (list(part) for part in zip(*pairs, strict=True))
    records, found = detection_rates.split_detections(measured)
    rates = rate_table(records)
    detection = detection_rates.detection_table(detection_rates.points(found))
    write_records(out, "records", records)
    write_records(out, "times", [seconds for seconds in times if seconds])
    write_tables(out, {"rates": rates, "detection": detection})
    asked = {"pictures": str(folder), "lmbda": list(lmbdas), "alpha": list(alphas)}
    asked |= {"weights": list(weights), "codecs": grids, "detectors": list(detectors)}
    asked |= {"boxes": boxes}
    write_json(out / "provenance.json", provenance(asked, data, [], weights, looking))
    return rates, detection


def text(rates: pd.DataFrame, detection: pd.DataFrame) -> str:
    """Return both tables as Markdown, without the columns that hold nothing."""
    parts = []
    for table, columns in (
        (rates, RATE_COLUMNS | KNOB_COLUMNS),
        (detection, DETECTION_COLUMNS | KNOB_COLUMNS),
    ):
        if len(table):
            held = {n: c for n, c in columns.items() if n in table and table[n].notna().any()}
            parts.append(markdown(table, held))
    return "\n\n".join(parts)
