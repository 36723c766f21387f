"""BD-rates of codecs against each other and against published curves, with 95 % intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from roilib.evaluation.bootstrap import MEAN, MEASURES, PARTS, Curve, with_interval
from roilib.evaluation.comparisons.families import (
    LOSSES,
    OUTSIDE,
    Difference,
    Family,
    pairs,
    psnr_difference,
    rate_difference,
    who,
)
from roilib.utils.files import read_json


def bd_table(codecs: list[Family], losses: Sequence[float] = LOSSES) -> pd.DataFrame:
    """BD-rate and BD-PSNR of `pairs`: both uniform, and both at equal background loss.

    The same by the other MEASURES, where all records have them: "BD-PSNR" is then in their dB.
    Trained codecs of which one has no uniform mode are compared at equal α.
    """
    rows = []
    for anchor, test in pairs(codecs):
        if anchor.uniform and test.uniform:
            parts = [*PARTS, *_measures(anchor.uniform, test.uniform)]
            rows += [_bd_row(anchor.uniform, test.uniform, part) for part in parts]
            if anchor.has_roi and test.has_roi:
                for part in [p for p in parts if p.startswith(("roi_", "bg_"))]:
                    rows += _equal_background_rows(anchor, test, part, losses)
        else:
            same = [
                (a, t)
                for a in anchor.members
                for t in test.members
                if a.trained and a.strength == t.strength
            ]
            rows += [_bd_row(a, t, part) for a, t in same for part in PARTS]
    return pd.DataFrame(rows)


def _measures(*found: Curve) -> list[str]:
    """Return those of MEASURES that all these curves have."""
    return [name for name in MEASURES if all(name in curve.quality for curve in found)]


def _equal_background_rows(
    anchor: Family, test: Family, part: str, losses: Sequence[float]
) -> list[dict]:
    """Compare every strength with every strength, then interpolate along both to each loss."""
    rates, psnrs = (
        [[difference(a, t, part) for t in test.members] for a in anchor.members]
        for difference in (rate_difference, psnr_difference)
    )

    def between(differences: list[list[Difference]], loss: float, log: bool) -> Difference:
        values = [[np.log1p(d.rows / 100) if log else d.rows for d in row] for row in differences]
        rows = anchor.at_loss(loss, [test.at_loss(loss, row) for row in values])
        every = [d for row in differences for d in row]
        return Difference(
            100 * np.expm1(rows) if log else rows,
            min(d.overlap for d in every),
            min(d.points for d in every),
            "" if np.isfinite(rows[0]) else OUTSIDE,
        )

    return [
        _row(
            *(who(codec.uniform) | {"strength": codec.strength_at(x)} for codec in (anchor, test)),
            x,
            part,
            between(rates, x, log=True),
            between(psnrs, x, log=False),
            anchor.uniform.pictures,
        )
        for x in losses
    ]


def published_table(codecs: list[Family], path: str | Path) -> pd.DataFrame:
    """BD-rate and BD-PSNR of trained codecs' uniform modes against published curves.

    path: a JSON file with codec, bpp and psnr, means over the pictures, or a folder of them. The
    same pictures must have been measured. Their resamples move our curve only, since a published
    one is of means. Raises ValueError naming a file that is no such curve.
    """
    path = Path(path)
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return pd.DataFrame([row for one in paths for row in _published_rows(codecs, one)])


def _published_rows(codecs: list[Family], path: Path) -> list[dict]:
    try:
        content = read_json(path)
        points = sorted(zip(content["bpp"], content["psnr"], strict=True))
        name, (bpp, psnr) = str(content["codec"]), np.array(points, float).T
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a published curve of codec, bpp and psnr ({error})"
        ) from None
    rows = []
    for test in (codec.uniform for codec in codecs if codec.uniform and codec.uniform.trained):
        shape = (len(test.bpp), len(bpp))
        curve = {
            "bpp": np.broadcast_to(bpp, shape),
            "quality": {MEAN: np.broadcast_to(psnr, shape)},
        }
        anchor = Curve(
            name, "published", 0.0, True, False, tuple(bpp), **curve, pictures=test.pictures
        )
        rows.append(_bd_row(anchor, test, MEAN))
    return rows


def _bd_row(anchor: Curve, test: Curve, part: str) -> dict:
    rate, psnr = rate_difference(anchor, test, part), psnr_difference(anchor, test, part)
    return _row(who(anchor), who(test), None, part, rate, psnr, anchor.pictures)


def metric_name(part: str) -> str:
    """Return what tables call one of PARTS, MEAN or MEASURES."""
    if part in MEASURES:
        return f"{part}_mean" if part.endswith("psnr") else part
    return "psnr_mean" if part == MEAN else f"{part}psnr"


def _row(
    anchor: dict,
    test: dict,
    loss: float | None,
    part: str,
    rate: Difference,
    psnr: Difference,
    pictures: int,
) -> dict:
    """Return the cells of a comparison; anchor, test: of `who`."""
    row = {
        name if key == "codec" else f"{name}_{key}": value
        for name, columns in (("anchor", anchor), ("test", test))
        for key, value in columns.items()
    }
    notes = dict.fromkeys(note for note in (rate.note, psnr.note) if note)
    return (
        row
        | {"bg_loss": loss, "metric": metric_name(part)}
        | with_interval("bd_rate", rate.rows, "low", "high")
        | with_interval("bd_psnr", psnr.rows)
        | {"overlap": rate.overlap, "rate_overlap": psnr.overlap, "points": rate.points}
        | {"pictures": pictures, "note": "; ".join(notes)}
    )
