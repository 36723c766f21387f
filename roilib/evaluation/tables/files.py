"""Tables as CSV files and as rows of JSON, and what figures draw of them.

tables ──► results/NAME.csv ──► tables ──► by_strength: curves for figures
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from roilib.codecs.registry import DRAWN, LOOKS, is_ours, uniform_strength
from roilib.parameters import BASELINES
from roilib.utils.files import replacing


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables as `folder/name.csv`; for an empty one, remove the file of an earlier run."""
    for name, table in tables.items():
        path = Path(folder) / f"{name}.csv"
        if len(table):
            with replacing(path) as temporary:
                table.to_csv(temporary, index=False)
        else:
            path.unlink(missing_ok=True)


def read_table(results: str | Path, name: str) -> pd.DataFrame:
    """Read `results/name.csv`, empty if it does not exist. Raises ValueError naming the file."""
    path = Path(results) / f"{name}.csv"
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        return pd.DataFrame()
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table ({error})") from None


def json_rows(table: pd.DataFrame) -> list[dict]:
    """Return a table's rows for JSON, None for NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def by_strength(rates: pd.DataFrame) -> dict[str, dict[float, pd.DataFrame]]:
    """Split a table of rates: codec → ROI strength (mildest first) → its points by rising rate.

    Codecs come in the order of LOOKS. Of trainings with equal settings the first is kept.
    """
    found = {}
    for codec in in_order(rates):
        rows, uniform = rates[rates["codec"] == codec], uniform_strength(codec)
        knob = "alpha" if is_ours(codec) else "qoffset"
        has_strength = knob in rows and codec not in BASELINES
        rows = rows.assign(strength=rows[knob].fillna(uniform) if has_strength else uniform)
        keys = ["strength", *(name for name in ("lmbda", "quality") if name in rows)]
        groups = rows.drop_duplicates(keys).sort_values("bpp").groupby("strength")
        found[codec] = dict(sorted(groups, key=lambda pair: abs(pair[0] - uniform)))
    return found


def drawn(rates: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows that figures show: one preset of each video codec."""
    presets: dict[str, list[str]] = {}
    for codec in in_order(rates):
        video = codec.partition(" ")[0] if not is_ours(codec) else codec
        presets.setdefault(video, []).append(codec)
    return rates[rates["codec"].isin([min(found, key=_rank) for found in presets.values()])]


def in_order(table: pd.DataFrame) -> list[str]:
    """Return the codecs of a table in the order of LOOKS, others at the end."""
    found, known = list(table["codec"].unique() if len(table) else ()), list(LOOKS)
    return sorted(found, key=lambda c: (known.index(c) if c in known else len(known), c))


def _rank(codec: str) -> tuple:
    preset = codec.partition(" ")[2]
    return (*(preset != wanted for wanted in DRAWN), codec)
