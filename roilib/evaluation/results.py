"""Result tables read back, as the curves of codecs, with what figures call them and how they draw them.

    rates.csv ──► curves: codec → ROI strength → points by rising rate ──► trades: what a strength gains inside and costs outside

Colour and marker belong to a codec, in all figures alike.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from roilib.codecs.registry import CODEC_NAMES, DRAWN, LOOKS, uniform_strength
from roilib.evaluation.comparisons import BUDGETS
from roilib.metrics import bd_psnr, bd_rate, rising
from roilib.parameters import BASELINES


def read_table(results: str | Path, name: str) -> pd.DataFrame:
    """A table of a results folder, empty where it has none. Raises ValueError naming a file that is no table."""
    path = Path(results) / f"{name}.csv"
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        return pd.DataFrame()
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table ({error})") from None


def read_json(results: str | Path, name: str) -> dict:
    """A JSON file of a results folder, empty where it has none. Raises ValueError naming a file that is not JSON."""
    path = Path(results) / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def curves(rates: pd.DataFrame) -> Iterator[tuple[str, dict[float, pd.DataFrame]]]:
    """(codec, strength → its points by rising rate) of every codec of a rates table, in LOOKS' order; of trainings with equal settings the first."""
    known = list(LOOKS)
    for codec in sorted(
        rates["codec"].unique(),
        key=lambda name: (known.index(name) if name in known else len(known), name),
    ):
        rows = rates[rates["codec"] == codec]
        knob = "alpha" if codec in CODEC_NAMES else "qoffset"
        has_strength = knob in rows and codec not in BASELINES
        rows = rows.assign(
            strength=rows[knob].fillna(uniform_strength(codec))
            if has_strength
            else uniform_strength(codec)
        )
        points = rows.drop_duplicates(
            ["strength", *(name for name in ("lmbda", "quality") if name in rows)]
        ).sort_values("bpp")
        by_strength = sorted(
            points.groupby("strength"),
            key=lambda pair: pair[0] if codec in CODEC_NAMES else -pair[0],
        )
        yield codec, dict(by_strength)


def drawn(rates: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that figures have room for: of a video encoder, as "x265 medium", one preset."""
    presets: dict[str, list[str]] = {}
    for codec in rates["codec"].unique():
        presets.setdefault(
            codec.partition(" ")[0] if codec not in CODEC_NAMES else codec, []
        ).append(codec)
    shown = [
        min(
            found,
            key=lambda codec: (*(codec.partition(" ")[2] != preset for preset in DRAWN), codec),
        )
        for found in presets.values()
    ]
    return rates[rates["codec"].isin(shown)]


def background_loss(uniform: pd.DataFrame, curve: pd.DataFrame) -> float:
    """Mean dB of background that a curve lies below its codec's uniform one at equal rate; NaN where their points with a PSNR share no rates."""
    uniform, curve = (c.dropna(subset="bg_psnr") for c in (uniform, curve))
    ends = [(c["bpp"].min(), c["bpp"].max()) for c in (uniform, curve)]
    low, high = max(e[0] for e in ends), min(e[1] for e in ends)
    if not low < high:
        return np.nan
    grid = np.linspace(np.log(low), np.log(high), 50)
    return float(
        np.mean(
            np.interp(grid, np.log(uniform["bpp"]), uniform["bg_psnr"])
            - np.interp(grid, np.log(curve["bpp"]), curve["bg_psnr"])
        )
    )


def within_budget(
    codec: str, by_strength: dict[float, pd.DataFrame], budget: float = BUDGETS[-1]
) -> float | None:
    """The strongest ROI mode whose background is at most `budget` dB below the codec's uniform mode, None if there is none or no uniform mode."""
    uniform = by_strength.get(uniform_strength(codec))
    if uniform is None:
        return None
    fitting = [
        s
        for s, curve in by_strength.items()
        if curve is not uniform and background_loss(uniform, curve) <= budget
    ]
    return fitting[-1] if fitting else None


def roi_gain(uniform: pd.DataFrame, curve: pd.DataFrame) -> dict[str, float | None]:
    """What a ROI strength gains inside and costs outside against its codec's uniform mode, both points by rising rate of a rates table:
    roi_bd_rate (%), bg_bd_psnr (dB), None where the curves do not overlap, and how far they do, roi_overlap and bg_overlap.
    """
    inside = [
        list(c[["bpp", "roi_psnr"]].iloc[rising(c["roi_psnr"])].itertuples(index=False, name=None))
        for c in (uniform, curve)
    ]
    outside = [
        list(c[["bpp", "bg_psnr"]].itertuples(index=False, name=None)) for c in (uniform, curve)
    ]
    (roi, roi_overlap), (bg, bg_overlap) = bd_rate(*inside), bd_psnr(*outside)
    return {
        "roi_bd_rate": roi,
        "roi_overlap": roi_overlap,
        "bg_bd_psnr": bg,
        "bg_overlap": bg_overlap,
    }


def trades(rates: pd.DataFrame) -> pd.DataFrame:
    """What each ROI strength gains and costs against the same codec's uniform mode: codec, strength, roi_bd_rate (%), bg_loss (dB)."""
    rows = []
    for codec, by_strength in curves(rates):
        uniform = by_strength.pop(uniform_strength(codec), None)
        for strength, curve in by_strength.items() if uniform is not None else ():
            gain = roi_gain(uniform, curve)
            if gain["roi_bd_rate"] is not None and gain["bg_bd_psnr"] is not None:
                rows.append(
                    {
                        "codec": codec,
                        "strength": strength,
                        "roi_bd_rate": gain["roi_bd_rate"],
                        "bg_loss": -gain["bg_bd_psnr"],
                    }
                )
    return pd.DataFrame(rows, columns=["codec", "strength", "roi_bd_rate", "bg_loss"])
