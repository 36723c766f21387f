"""Rewrite the result tables of README and docs/results.md from the records that are committed.

    python docs/result_tables.py            rewrite them
    python docs/result_tables.py --check    only say which are not those of the records

A table stands below a comment that names it: `<!-- table: speed -->`. TABLES says how each is made
from the files in report/results/reference.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from roilib.apps.drive import report
from roilib.codecs.registry import ANY_RATE, TUNED_FOR_YUV
from roilib.evaluation.tables.files import read_table
from roilib.evaluation.tables.headlines import full_chroma, headline_table, measure_table
from roilib.evaluation.tables.layout import (
    BD_COLUMNS,
    BOUNDS,
    COMPLEXITY_COLUMNS,
    COST_COLUMNS,
    SPEED_COLUMNS,
    markdown,
)
from roilib.evaluation.tables.rate_tables import speed_in_short, speed_table, table_of

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "report" / "results" / "reference"
PAGES = ("README.md", "docs/results.md")
MARKED = re.compile(r"(<!-- table: (?P<name>[^\n]+) -->\n)(?P<table>(?:[|-] ?[^\n]*\n)*)")

EQUAL_BACKGROUND_COLUMNS = {
    "label": "codec",
    "bg_loss": "background loss dB",
    "strength": "at α or qoffset",
    "roi_bd_rate": "ROI BD-rate %",
    **BOUNDS,
}
PAIRED_COLUMNS = {
    "anchor_label": "against",
    "bg_loss": "background loss dB",
    "bd_rate": "ROI BD-rate %",
    **BOUNDS,
}
BYTE_RATIO_COLUMNS = {
    "theirs_label": "against",
    "ratio": "bytes, ours/theirs",
    **BOUNDS,
    "reached": "points reached",
    "hull": "of",
}
DETECTION_AT_LOSS_COLUMNS = {
    "label": "codec",
    "bg_loss": "background loss dB",
    "strength": "α or qoffset",
    "agnostic_ap50_loss": "loss %",
    "agnostic_ap50_loss_low": "95 % from",
    "agnostic_ap50_loss_high": "to",
}
YUV_HEADLINE = {  # codecs of README's second table → labels
    "x265 slow 4:2:0": "x265 slow 4:2:0",
    "x265 medium 4:2:0": "x265 medium 4:2:0",
    "svtav1 6 4:2:0": "SVT-AV1 preset 6, 4:2:0",
}
HEADLINE = {  # codecs of README's first table → labels
    "x265 slow": "x265 slow",
    "x265 medium": "x265 medium",
    "x264 slow": "x264 slow",
    "avif": "AVIF",
    "jpeg": "JPEG",
}
SPEEDS = (  # codecs of README's table of times
    "bmshj2018-hyperprior N=128 (random weights)",
    *("roi_vbr", "roi_vbr + detector", "x265 medium"),
)
WITH_ROI = ("x264 medium", "x265 medium", "x265 slow", "roi_vbr")  # in the tables of ROI modes
DOMAINS = {  # pictures → folder of the records
    "KITTI, 24 frames": "shipped",
    "KITTI, the detector's boxes": "detected_boxes",
    "PandaSet, 16 frames": "pandaset",
    "Kodak, 24 photographs": "kodak",
    "rendered streets, 8 frames": "streets",
}


def read(name: str) -> pd.DataFrame:
    """Return a CSV of the reference results, named by folder and file without its ending."""
    folder, _, table = name.partition("/")
    return read_table(REFERENCE / folder, table)


def as_they_are(table: pd.DataFrame) -> str:
    """Return a table of texts as Markdown."""
    return markdown(table, {name: name for name in table})


def headline() -> str:
    """Our codec against others on KITTI, in short."""
    return as_they_are(
        headline_table(read("shipped/byte_ratios"), read("shipped/bd_rates"), HEADLINE)
    )


def domains(ours: str = "roi_vbr") -> str:
    """The headline of every set of pictures against x265, without the column of ROI BD-rates.

    The codec tuned for YUV is compared with x265 at 4:2:0.
    """
    yuv = ours == TUNED_FOR_YUV
    others = [f"x265 {preset}{' 4:2:0' * yuv}" for preset in ("medium", "slow")]
    found = []
    for pictures, folder in DOMAINS.items():
        ratios, rates = read(f"{folder}/{'yuv_' * yuv}byte_ratios"), read(f"{folder}/bd_rates")
        rows = headline_table(ratios, rates, dict(zip(others, others, strict=True)), ours)
        rows = rows.drop(columns="ROI BD-rate")
        rows.insert(0, "pictures", pictures)
        found.append(rows[rows.iloc[:, 2:].ne("–").any(axis=1)])
    return as_they_are(pd.concat(found))


def uniform() -> str:
    """BD-rates of all pixels alike."""
    rates = read("shipped/bd_rates")
    rates = rates[rates["bg_loss"].isna() & (rates["metric"] == "psnr")]
    rates = rates[rates["test"] == "roi_vbr"]
    return markdown(full_chroma(rates, "anchor"), BD_COLUMNS)


def measures(ours: str = "roi_vbr") -> str:
    """BD-rates by other measures of quality."""
    return as_they_are(measure_table(read("shipped/bd_rates"), ours))


def yuv_headline() -> str:
    """The codec tuned for YUV against codecs at 4:2:0, in short."""
    table = headline_table(
        read("shipped/yuv_byte_ratios"), read("shipped/bd_rates"), YUV_HEADLINE, TUNED_FOR_YUV
    )
    return as_they_are(table.drop(columns="ROI BD-rate"))


def yuv_byte_ratios() -> str:
    """Bytes of our codec tuned for YUV at equal ROI and background by YUV-PSNR."""
    ratios = read("shipped/yuv_byte_ratios")
    ratios = ratios[~ratios["theirs"].isin(ANY_RATE) & (ratios["ours"] == TUNED_FOR_YUV)]
    return markdown(ratios, BYTE_RATIO_COLUMNS)


def byte_ratios(folder: str) -> str:
    """Bytes at equal ROI and background."""
    ratios = full_chroma(read(f"{folder}/byte_ratios"), "theirs")
    ratios = ratios[ratios["ours"] == "roi_vbr"]
    return markdown(ratios, BYTE_RATIO_COLUMNS)


def equal_background() -> str:
    """Each ROI mode against its codec's own uniform mode."""
    table = read("shipped/equal_background")
    return markdown(table[table["label"].isin(WITH_ROI)], EQUAL_BACKGROUND_COLUMNS)


def paired() -> str:
    """Our ROI mode against the others' at equal background loss."""
    rates = read("shipped/bd_rates")
    rates = rates[rates["bg_loss"].notna() & (rates["metric"] == "roi_psnr")]
    rates = rates[rates["test"] == "roi_vbr"]
    return markdown(rates[rates["anchor"].isin(WITH_ROI)], PAIRED_COLUMNS)


def detection() -> str:
    """AP50 that the pretrained detector loses at equal background loss."""
    seen = read("shipped/detection_at_loss")
    seen = seen[(seen["detector"] == "yolov8n_kitti") & seen["label"].isin(WITH_ROI[1:])]
    return markdown(seen, DETECTION_AT_LOSS_COLUMNS)


def published() -> str:
    """Our codec against published curves on Kodak."""
    table = read("kodak/published")
    return markdown(table[table["test"] == "roi_vbr"], BD_COLUMNS)


def arms(folder: str) -> str:
    """The paper's arms, best first for each loss."""
    costs = read(f"{folder}/costs").sort_values(["alpha", "cost"], ascending=[False, True])
    return markdown(costs, COST_COLUMNS)


def speed(short: bool = False) -> str:
    """Times of encoding and decoding; short: those of README."""
    measured = read_json("shipped/speed.json")
    if not short:
        return markdown(speed_table(measured), SPEED_COLUMNS)
    table = speed_table(speed_in_short(measured))
    return markdown(table[table["codec"].isin(SPEEDS)], SPEED_COLUMNS)


def complexity() -> str:
    """Arithmetic and parameters of the models."""
    table = table_of(read_json("shipped/complexity.json")["rows"])
    return markdown(table, COMPLEXITY_COLUMNS)


def drive(folder: str, network: str) -> str:
    """A drive over a thin link, without losses ("whole") or with them ("lossy")."""
    table = report.summary(read(f"{folder}/drive_frames"))
    return markdown(table[table["network"] == network], report.columns(table, network))


def verdicts() -> str:
    """A line a codec and rate on the real drive."""
    lines = report.verdicts(report.summary(read("drive_kitti/drive_frames")))
    return "\n".join(f"- {line}" for line in lines)


def read_json(name: str) -> dict:
    """Return a JSON file of the reference results."""
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "speed in short": lambda: speed(short=True),
    "pictures": domains,
    "pictures by YUV-PSNR": lambda: domains(TUNED_FOR_YUV),
    "all pixels alike": uniform,
    "other measures": measures,
    "yuv headline": yuv_headline,
    "other measures, tuned for YUV": lambda: measures(TUNED_FOR_YUV),
    "bytes on KITTI by YUV-PSNR": yuv_byte_ratios,
    "bytes on KITTI": lambda: byte_ratios("shipped"),
    "bytes on PandaSet": lambda: byte_ratios("pandaset"),
    "bytes on rendered streets": lambda: byte_ratios("streets"),
    "bytes with detected boxes": lambda: byte_ratios("detected_boxes"),
    "ROI modes": equal_background,
    "ROI modes compared": paired,
    "detection": detection,
    "published": published,
    "speed": speed,
    "complexity": complexity,
    "verdicts": verdicts,
    "real drive": lambda: drive("drive_kitti", "whole"),
    "real drive with losses": lambda: drive("drive_kitti", "lossy"),
    "real drive at 4:2:0": lambda: drive("drive_kitti_yuv", "whole"),
    "real drive at 4:2:0 with losses": lambda: drive("drive_kitti_yuv", "lossy"),
    "rendered drive": lambda: drive("drive", "whole"),
    "arms": lambda: arms("paper"),
    "arms, trained longer": lambda: arms("paper_longer"),
    "arms, from a better start": lambda: arms("paper_better_start"),
}


def refreshed(text: str) -> str:
    """Return a page with the tables of the records. Raises KeyError for an unknown table."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}\n", text)


def main() -> int:
    """Rewrite the pages, or check them; return the number of pages that differ, if they may not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check, differ = parser.parse_args().check, 0
    for name in PAGES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = refreshed(before)
        if after != before:
            differ += 1
            print(f"{name}: {'not the records' if check else 'rewritten'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return differ if check else 0


if __name__ == "__main__":
    sys.exit(main())
