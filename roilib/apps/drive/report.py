"""Results of a drive: tables, a figure over time, and a page that shows them and the films.

Quality is RGB-PSNR, or YUV-PSNR for a drive with a codec at 4:2:0 or weights tuned for YUV.
"""

import html
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from roilib.codecs.conventional import without_subsampling
from roilib.codecs.registry import TUNED_FOR_YUV, look
from roilib.evaluation.tables.files import write_tables
from roilib.evaluation.tables.layout import markdown
from roilib.evaluation.tables.rate_tables import table_of
from roilib.metrics import pooled_psnr
from roilib.utils.files import replacing, write_json
from roilib.visualization.style import save_figure

LINES = {"intra": "--", "live": "-."}  # by the last word of a codec's name; ours is solid
COLUMNS = {  # of the table without losses: column → heading
    "link": "link",
    "label": "codec",
    "kilobytes": "kB a frame",
    "over": "over",
    "dropped": "dropped",
    "late": "late",
    "delay_p95": "p95 delay ms",
    "roi_psnr": "ROI dB",
    "bg_psnr": "background dB",
    "roi_floor": "ROI floor dB",
    "roi_flicker": "ROI flicker",
    "bg_flicker": "background flicker",
}
LOSS_COLUMNS = {  # of the table with losses
    "link": "link",
    "label": "codec",
    "frames": "frames",
    "lost": "frames lost",
    "affected": "frames affected",
    "roi_psnr": "ROI dB",
    "bg_psnr": "background dB",
    "roi_psnr_low": "ROI dB, worst seed",
    "roi_psnr_high": "best seed",
}
TIME_COLUMNS = {
    "link": "link",
    "label": "codec",
    "encode_p50": "encode ms, median",
    "encode_p95": "encode ms, p95",
    "decode_p50": "decode ms, median",
    "decode_p95": "decode ms, p95",
}
PARTS = {"roi": "ROI", "bg": "background"}
LEVEL = 0.1  # dB, below which two codecs are level
BY_YUV = {"_psnr": "_yuv_psnr", "_floor": "_yuv_floor", "dB": "YUV dB"}  # in keys and headings
TITLES = {"whole": "No packet lost", "lossy": "Packets lost"}
STYLE = (
    "body{font-family:sans-serif;max-width:1300px;margin:auto}"
    "video,img{width:100%}td,th{padding:2px 8px;text-align:right}"
)


def is_by_yuv(codecs: Iterable[str]) -> bool:
    """Return whether these codecs of a drive are compared by YUV-PSNR."""
    return any(name == TUNED_FOR_YUV or without_subsampling(name)[1] for name in codecs)


def columns(table: pd.DataFrame, network: str) -> dict[str, str]:
    """Return the columns of `summary` that are shown, and their headings."""
    chosen = COLUMNS if network == "whole" else LOSS_COLUMNS
    if not is_by_yuv(table["label"]):
        return chosen
    return {_by_yuv(name): _by_yuv(heading) for name, heading in chosen.items()}


def _by_yuv(text: str) -> str:
    for word, new in BY_YUV.items():
        text = text.replace(word, new)
    return text


def summary(frames: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each link, codec and network; frames: the records of `drive.send`.

    PSNRs (dB) are pooled over the pixels of all frames as they were shown, with losses over all
    seeds; YUV-PSNRs are means over these frames. `…_low` and `…_high` are the worst and the best
    seed's, floors the least of a frame. kilobytes (1,000 bytes) and flicker (grey levels) are means
    over frames. Frames are counted that are over (larger than their budget), dropped (not sent),
    late (through after the latency), lost (a packet is missing) and affected (shown otherwise than
    without losses). delay_p95: the 95th percentile of the ms on the link, of the frames that were
    sent.
    """
    rows = []
    for (link, codec, network), group in frames.groupby(["link", "codec", "network"], sort=False):
        row = {"link": link, "label": codec, "network": network, "frames": len(group)}
        row["kilobytes"] = group["bytes"].mean() / 1000
        row |= {f"{part}_flicker": group[f"{part}_flicker"].mean() for part in ("roi", "bg")}
        counted = ("over", "dropped", "late", "lost", "affected")
        row |= {name: int(group[name].sum()) for name in counted}
        row["delay_p95"] = group["delay_ms"].quantile(0.95)
        row |= _psnrs(group)
        for part in PARTS:
            row[f"{part}_floor"] = group[f"{part}_psnr"].min()
            row[f"{part}_yuv_floor"] = group[f"{part}_yuv_psnr"].min()
        of_seeds = table_of([_psnrs(one) for _, one in group.groupby("seed", dropna=False)])
        row |= of_seeds.min().add_suffix("_low").to_dict()
        row |= of_seeds.max().add_suffix("_high").to_dict()
        rows.append(row)
    return table_of(rows)


def _psnrs(group: pd.DataFrame) -> dict[str, float | None]:
    records = group.to_dict("records")
    pooled = {f"{part}_psnr": pooled_psnr(records, f"{part}_") for part in PARTS}
    return pooled | {f"{part}_yuv_psnr": group[f"{part}_yuv_psnr"].mean() for part in PARTS}


def verdicts(table: pd.DataFrame) -> list[str]:
    """Say in a line for each link and other codec how far ours is ahead; table: of `summary`.

    Differences below LEVEL count as none.
    """
    lines, keys = [], {part: f"{part}_psnr" for part in PARTS}
    if is_by_yuv(table["label"]):
        keys = {part: _by_yuv(key) for part, key in keys.items()}
    for _, rows in table.groupby("link", sort=False):
        (whole, *others), *lossy = (
            group.to_dict("records") for _, group in rows.groupby("network", sort=False)
        )
        for i, other in enumerate(others, 1):
            if other["dropped"] == other["frames"]:
                lines.append(f"{other['link']}, {other['label']}: no frame fits")
                continue
            said = f"{_verdict(whole, other, keys)}: {_differences(whole, other, keys)}"
            with_losses = [
                f"; packets lost: {_differences(part[0], part[i], keys)}" for part in lossy
            ]
            lines.append(f"{other['link']}, {whole['label']} {said}{''.join(with_losses)}")
    return lines


def _verdict(ours: dict, other: dict, keys: dict[str, str]) -> str:
    gains = [ours[key] - other[key] for key in keys.values()]
    known = [gain for gain in gains if not pd.isna(gain)]
    sides = {bool(gain > 0) for gain in known if abs(gain) >= LEVEL}
    words = {(True,): "ahead of", (False,): "behind", (): "level with"}
    word = words.get(tuple(sides), "mixed against") if known else "not to be compared with"
    dropped = f" ({other['dropped']} of {other['frames']} frames dropped)"
    return f"{word} {other['label']}{dropped if other['dropped'] else ''}"


def _differences(ours: dict, other: dict, keys: dict[str, str]) -> str:
    """Say ours less another's PSNR inside and outside the ROI."""
    parts = []
    for part, name in PARTS.items():
        mine, theirs = ours[keys[part]], other[keys[part]]
        known = not (pd.isna(mine) or pd.isna(theirs))
        parts.append(f"{name} {mine - theirs:+.2f} dB ({mine:.2f})" if known else f"{name} –")
    return ", ".join(parts).replace("-", "−")


def time_summary(times: pd.DataFrame) -> pd.DataFrame:
    """Return the median and 95th percentile of each codec's encode and decode ms.

    The encode time of a conventional intra codec is that of its whole search for what fits.
    """
    rows = []
    for (link, codec), group in times.groupby(["link", "codec"], sort=False):
        row = {"link": link, "label": codec}
        for kind in ("encode", "decode"):
            for name, q in (("p50", 0.5), ("p95", 0.95)):
                row[f"{kind}_{name}"] = group[f"{kind}_ms"].quantile(q)
        rows.append(row)
    return pd.DataFrame(rows)


def said_of(table: pd.DataFrame, roi: str) -> str:
    """Say in a line what quality is measured in, and by what; table: of `summary`."""
    return f"ROI: the {roi}. Quality: {'YUV' if is_by_yuv(table['label']) else 'RGB'}-PSNR"


def text(frames: pd.DataFrame, times: pd.DataFrame, roi: str) -> str:
    """Return the verdicts and the summaries as Markdown; roi: what quality is measured in."""
    table = summary(frames)
    parts = ["\n".join([said_of(table, roi), *verdicts(table)])]
    for network, rows in table.groupby("network", sort=False):
        parts.append(markdown(rows, columns(table, network)))
    return "\n\n".join([*parts, markdown(time_summary(times), TIME_COLUMNS)])


def over_time(frames: pd.DataFrame, latency_ms: float, network: str = "whole") -> Figure:
    """Draw every codec over time: bytes and their budget, delay, ROI and background PSNR.

    It is the slowest link's. With losses the first seed's PSNRs alone are drawn, and lost frames
    are marked.
    """
    chosen = frames[(frames["network"] == network) & (frames["link"] == frames["link"].iloc[0])]
    chosen = chosen[chosen["seed"].isna() | (chosen["seed"] == chosen["seed"].min())]
    panels = {"roi_psnr": "ROI-PSNR (dB)", "bg_psnr": "background PSNR (dB)"}
    if is_by_yuv(chosen["codec"].unique()):
        panels = {"roi_yuv_psnr": "ROI YUV-PSNR (dB)", "bg_yuv_psnr": "background YUV-PSNR (dB)"}
    if network == "whole":
        panels = {"bytes": "bytes", "delay_ms": "delay (ms)"} | panels
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 2.1 * len(panels)), sharex=True, layout="constrained"
    )
    for ax, (name, label) in zip(axes, panels.items(), strict=True):
        for i, (codec, rows) in enumerate(chosen.groupby("codec", sort=False)):
            plain_name, _, kind = without_subsampling(codec)[0].rpartition(" ")
            colour, _ = look(plain_name if kind in LINES else codec)
            style = {"linestyle": LINES.get(kind, "-"), "linewidth": 1.1 if i else 2}
            ax.plot(rows["time"], rows[name], label=codec, color=colour, **style)
            hurt = rows[rows["lost"] | rows["dropped"]]
            ax.plot(hurt["time"], hurt[name], "x", color=colour, markersize=5)
        ax.set(ylabel=label)
    if network == "whole":
        ours = chosen[chosen["codec"] == chosen["codec"].iloc[0]]
        axes[0].plot(
            ours["time"], ours["budget"], color="0.3", linewidth=1, linestyle=":", label="budget"
        )
        axes[1].axhline(latency_ms, color="0.3", linewidth=1, linestyle=":")
        axes[1].set_ylim(0)
    axes[0].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set(xlabel="time (s)" + (" (×: frame lost or dropped)" if network == "lossy" else ""))
    return figure


def outputs(results: Path, figures: Path) -> list[list[Path]]:
    """Return the files that a drive writes to each folder; the first marks it as a drive's."""
    tables = ("drive.csv", "drive_frames.csv", "drive_times.csv")
    drawn = [f"drive_{network}.{kind}" for network in TITLES for kind in ("png", "pdf", "mp4")]
    return [
        [results / name for name in ("drive_provenance.json", *tables)],
        [figures / name for name in ("drive.html", *drawn)],
    ]


def write(
    results: str | Path,
    figures: str | Path,
    frames: pd.DataFrame,
    times: pd.DataFrame,
    provenance: dict,
) -> None:
    """Write records, times, summary and provenance to `results` as drive….csv and .json.

    Figures and a page go beside the films to `figures`. Both folders exist.
    """
    results, figures = Path(results), Path(figures)
    tables = {"drive_frames": frames, "drive_times": times, "drive": summary(frames)}
    write_tables(results, tables)
    write_json(results / "drive_provenance.json", provenance)
    networks = list(frames["network"].unique())
    for network in networks:
        figure = over_time(frames, provenance["parameters"]["latency_ms"], network)
        save_figure(figure, figures, f"drive_{network}")
        plt.close(figure)
    with replacing(figures / "drive.html") as temporary:
        temporary.write_text(_page(frames, networks, provenance["roi"]), encoding="utf-8")


def _page(frames: pd.DataFrame, networks: list[str], roi: str) -> str:
    parts = [
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8">',
        f"<title>A drive over a thin link</title><style>{STYLE}</style>",
    ]
    table = summary(frames)
    said = "<br>".join(map(html.escape, [said_of(table, roi), *verdicts(table)]))
    parts.append(f"<p>{said}</p>")
    for network in networks:
        headings = columns(table, network)
        rows = table[table["network"] == network][list(headings)].rename(columns=headings)
        shown = rows.to_html(index=False, float_format="{:.2f}".format, na_rep="–", border=0)
        parts += [
            f"<h2>{html.escape(TITLES[network])}</h2>{shown}",
            f'<video controls loop muted src="drive_{network}.mp4"></video>',
            f'<img src="drive_{network}.png" alt="the same over time">',
        ]
    return "\n".join(parts) + "\n"
