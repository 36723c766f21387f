"""Rate-distortion curves of records: of all their pictures, and of bootstrap resamples of them.

    records ──► one curve a codec and ROI strength: bpp and qualities, (1 + COUNT, points) each

Row 0 is of all pictures, the others of resamples. A resample draws as many pictures as there are,
with replacement, and the same ones for every curve, so that differences of curves are paired.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from roilib.codecs.registry import ANY_RATE, codec_label
from roilib.evaluation.bd_rate import rising
from roilib.parameters import BASELINES, Parameters

COUNT = 1000  # resamples
SEED = 0
LEVEL = 0.95  # of an interval
MAX_UNDEFINED = 0.05  # share of resamples without a number that an interval may ignore
PARTS = ("", "roi_", "bg_")  # whole picture, ROI, background: pooled PSNRs
MEAN = "mean"  # the mean of each picture's PSNR
# Other qualities, by their names in records: means over the pictures that have one. Those from 0 to
# 1 become dB, -10 log10(1 - mean), so that a curve near 1 keeps its shape.
UP_TO_1 = ("ms_ssim", "haarpsi", "roi_haarpsi")
YUV = "yuv_psnr"
MEASURES = (YUV, f"roi_{YUV}", f"bg_{YUV}", *UP_TO_1)
STRENGTHS = {"alpha": 0.5, "qoffset": 0.0}  # ROI knobs of a setting → the uniform value
TRAININGS = ("seed", "loss_form", "metric")  # parameters whose changes make another curve


def resamples(pictures: int, count: int = COUNT, seed: int = SEED) -> np.ndarray:
    """Draw how often each picture counts, (1 + count, pictures); once in row 0."""
    drawn = np.random.default_rng(seed).multinomial(
        pictures, np.full(pictures, 1 / pictures), count
    )
    return np.concatenate([np.ones((1, pictures)), drawn])


def interval(rows: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of rows[1:].

    It is NaN if more than 5 % of them are undefined, or the value itself, rows[0], is.
    """
    defined = rows[1:][np.isfinite(rows[1:])]
    if not np.isfinite(rows[0]) or len(defined) < max(1, (1 - MAX_UNDEFINED) * (len(rows) - 1)):
        return np.nan, np.nan
    return tuple(np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())


def with_interval(name: str, rows: np.ndarray, low: str = "", high: str = "") -> dict[str, float]:
    """Return a table's cells of a statistic: `name`, `name_low` and `name_high` (or as given)."""
    names = (name, low or f"{name}_low", high or f"{name}_high")
    return dict(zip(names, (float(rows[0]), *interval(rows)), strict=True))


@dataclass(frozen=True, eq=False)
class Curve:
    """A codec's points at one ROI strength, by rising rate.

    bpp: (1 + B, P). knobs: λ or quality of each point. quality: name → (1 + B, P) in dB; the names
    are PARTS (pooled PSNRs), MEAN and those MEASURES that all records have.
    """

    codec: str
    run: str
    strength: float
    uniform: bool
    trained: bool
    knobs: tuple[float, ...]
    bpp: np.ndarray
    quality: dict[str, np.ndarray]
    pictures: int

    @property
    def label(self) -> str:
        """Return the codec's name in tables."""
        return codec_label(self.codec)

    def known(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return bpp and the named quality of the points that have one."""
        kept = np.isfinite(self.quality[name][0])
        return self.bpp[:, kept], self.quality[name][:, kept]

    def rising(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return bpp and the named quality of the points that are better than all cheaper ones."""
        kept = rising(self.quality[name][0])
        return self.bpp[:, kept], self.quality[name][:, kept]


def identity(record: dict) -> tuple[str, str, float, bool, bool]:
    """Return what identifies a record's curve: codec, run, strength, is uniform, is trained.

    The run of a roi_vbr is its name or weights file. A curve of the paper's models has one run per
    λ, so its run is the changed training parameters, such as "seed=1", or "".
    """
    setting, codec = record["setting"], record["codec"]
    trained = "lmbda" in setting
    knob = next((name for name in STRENGTHS if name in setting), None)
    strength = setting[knob] if knob and codec not in BASELINES else 0.5 if trained else 0.0
    defaults = {name: Parameters.model_fields[name].default for name in TRAININGS}
    changed = {k: v for k, v in setting.items() if k in defaults and v != defaults[k]}
    training = ", ".join(f"{k}={v}" for k, v in sorted(changed.items()))
    uniform = strength == STRENGTHS["alpha" if trained else "qoffset"]
    run = run_name(record) if codec in ANY_RATE else training
    return codec, run, float(strength), uniform, trained


def run_name(record: dict) -> str:
    """Return the run or the weights file of a record; "" for a conventional codec."""
    return record.get("run") or record.get("weights", "")


def knob(record: dict) -> float:
    """Return the setting that moves a codec along its curve: λ or quality."""
    return record["setting"]["lmbda" if "lmbda" in record["setting"] else "quality"]


def group(records: Iterable[dict], pictures: Sequence[str]) -> dict[tuple, dict[tuple, list[dict]]]:
    """Group records: identity → (knob, run) → its records in the order of `pictures`.

    Raises ValueError for a point that lacks one of the pictures.
    """
    found: dict[tuple, dict[tuple, dict[str, dict]]] = {}
    for r in records:
        found.setdefault(identity(r), {}).setdefault((knob(r), run_name(r)), {})[r["image"]] = r
    for curve, points in found.items():
        for point, by_picture in points.items():
            for picture in pictures:
                if picture not in by_picture:
                    raise ValueError(
                        f"{curve[0]} at {point[0]:g}: no record of picture {picture}, "
                        "which other points have"
                    )
    return {
        curve: {point: [rs[picture] for picture in pictures] for point, rs in points.items()}
        for curve, points in found.items()
    }


def picture_ids(records: Iterable[dict]) -> list[str]:
    """Return the pictures of records, sorted."""
    return sorted({r["image"] for r in records})


def curves(records: list[dict], count: int = COUNT, seed: int = SEED) -> list[Curve]:
    """Return every curve of records that share their pictures, with `count` resamples."""
    pictures = picture_ids(records)
    weights = resamples(len(pictures), count, seed)
    return [
        _curve(who, points, weights) for who, points in sorted(group(records, pictures).items())
    ]


def _curve(who: tuple, points: dict[tuple, list[dict]], weights: np.ndarray) -> Curve:
    cheapest_first = sorted(points, key=lambda point: sum(r["bpp"] for r in points[point]))
    every = [r for records in points.values() for r in records]
    measures = [name for name in MEASURES if all(name in r for r in every)]
    table = {
        name: np.array([[r[name] for r in points[point]] for point in cheapest_first], float)
        for name in ("bpp", "psnr", *measures, *_sums())
    }
    quality = {}
    with np.errstate(invalid="ignore"):  # no PSNR without ROI pixels, nor without an error
        for part in PARTS:
            errors = weights @ table[f"{part}sse"].T
            values = weights @ table[f"{part}count"].T
            quality[part] = 10 * np.log10(255**2 * values / np.where(errors > 0, errors, np.nan))
    bpp, quality[MEAN] = (
        weights @ table[name].T / weights.sum(1, keepdims=True) for name in ("bpp", "psnr")
    )
    for name in measures:
        mean = _mean(weights, table[name])
        with np.errstate(divide="ignore", invalid="ignore"):  # no finite dB without an error
            quality[name] = -10 * np.log10(1 - mean) if name in UP_TO_1 else mean
    knobs = tuple(point[0] for point in cheapest_first)
    return Curve(*who, knobs, bpp, quality, weights.shape[1])


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(1 + B, P) weighted means of values (P, pictures), over the pictures that have one."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # NaN where a resample has none
        return weights @ np.where(there, values, 0).T / (weights @ there.T)


def _sums() -> list[str]:
    return [f"{part}{name}" for part in PARTS for name in ("sse", "count")]
