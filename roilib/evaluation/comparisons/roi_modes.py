"""What a codec's ROI mode gains inside the ROI and costs outside, against its own uniform mode."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from roilib.evaluation.bootstrap import with_interval
from roilib.evaluation.comparisons.families import LOSSES, OUTSIDE, Family, who


def trade_table(codecs: list[Family]) -> pd.DataFrame:
    """Gain of each ROI strength inside the ROI and loss outside, against the codec's uniform mode.

    Rows: codec and strength. Columns: roi_bd_rate (%), bg_loss (dB), intervals, curves' overlaps.
    """
    rows = []
    for codec in (codec for codec in codecs if codec.has_roi):
        for curve, (roi, bg) in zip(codec.strong, codec.gains, strict=True):
            notes = dict.fromkeys(note for note in (roi.note, bg.note) if note)
            rows.append(
                who(curve)
                | with_interval("roi_bd_rate", roi.rows, "low", "high")
                | with_interval("bg_loss", 0.0 - bg.rows)
                | {"overlap": roi.overlap, "rate_overlap": bg.overlap, "note": "; ".join(notes)}
            )
    return pd.DataFrame(rows)


def nearest_strength(trade: pd.DataFrame, codec: str, loss: float = LOSSES[-1]) -> float | None:
    """Return the measured ROI strength whose background loss is nearest to `loss` dB.

    trade: of `trade_table`; the first run of the codec counts. None if no loss is known.
    """
    rows = trade[trade["codec"] == codec].dropna(subset="bg_loss") if len(trade) else trade
    if rows.empty:
        return None
    rows = rows[rows["run"].fillna("") == rows["run"].fillna("").iloc[0]]
    return float(rows["strength"].iloc[(rows["bg_loss"] - loss).abs().argmin()])


def equal_background_table(codecs: list[Family], losses: Sequence[float] = LOSSES) -> pd.DataFrame:
    """ROI BD-rate of each codec's ROI mode against its own uniform mode, at equal background loss.

    strength is the interpolated one that costs exactly `bg_loss` dB of background BD-PSNR.
    """
    rows = []
    for codec in (codec for codec in codecs if codec.has_roi):
        gains = [np.zeros(len(codec.uniform.bpp)), *(roi.rows for roi, _ in codec.gains)]
        logs = [np.log1p(gain / 100) for gain in gains]
        for loss in losses:
            gain = 100 * np.expm1(codec.at_loss(loss, logs))
            rows.append(
                who(codec.uniform)
                | {"strength": codec.strength_at(loss), "bg_loss": loss}
                | with_interval("roi_bd_rate", gain, "low", "high")
                | {"strengths": len(codec.strong), "pictures": codec.uniform.pictures}
                | {"note": "" if np.isfinite(gain[0]) else OUTSIDE}
            )
    return pd.DataFrame(rows)
