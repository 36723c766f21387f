"""The look of all figures (seaborn, colour-blind safe), and how they become files."""

from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from roilib.utils.files import replacing


def set_style() -> None:
    """Set one look for notebooks and files."""
    # DejaVu Sans comes with matplotlib and is therefore the same on every machine
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind", font="DejaVu Sans")
    plt.rcParams |= {
        "figure.dpi": 110,
        "savefig.bbox": "tight",
        "savefig.dpi": 160,
        "axes.titlesize": 10,
        "pdf.fonttype": 42,
    }


def save_figure(figure: Figure | None, folder: str | Path, name: str) -> list[Path]:
    """Write `name.pdf` and `name.png` without dates: the same figure gives the same bytes.

    For None, remove the files of an earlier run.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png")]
    if figure is None:
        for path in paths:
            path.unlink(missing_ok=True)
        return []
    for path, metadata in zip(paths, ({"CreationDate": None}, {"Software": None}), strict=True):
        with replacing(path) as temporary:
            figure.savefig(temporary, metadata=metadata, format=path.suffix[1:])
    return paths
