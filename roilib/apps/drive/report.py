"""What a drive over a thin link came to: tables, a figure over time, films side by side and a page that shows them."""

import contextlib
import html
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from av.video.reformatter import ColorRange, Colorspace
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from roilib.codecs.registry import look
from roilib.evaluation.tables import markdown, table_of
from roilib.metrics import pooled_psnr
from roilib.utils.files import replacing, write_json
from roilib.visualization.style import save_figure

LINES = {"intra": "--", "live": "-."}  # of the last word of a peer's name; ours is solid
FILM = {
    "crf": "23",
    "preset": "fast",
    "x264-params": "cpu-independent=1",
}  # without the last no two encodes need be the same bytes
STRIP = 22  # pixels above a film's picture, for its name
COLUMNS = {
    "label": "codec",
    "kilobytes": "kB a frame",
    "over": "over",
    "dropped": "dropped",
    "late": "late",
    "delay_p95": "p95 delay ms",
}
COLUMNS |= {
    "roi_psnr": "ROI dB",
    "bg_psnr": "background dB",
    "roi_floor": "ROI floor dB",
    "roi_flicker": "ROI flicker",
    "bg_flicker": "background flicker",
}
LOSS_COLUMNS = {
    "label": "codec",
    "lost": "frames lost",
    "affected": "frames affected",
    "roi_psnr": "ROI dB",
    "bg_psnr": "background dB",
}
LOSS_COLUMNS |= {"roi_floor": "ROI floor dB", "bg_floor": "background floor dB"}
TIME_COLUMNS = {
    "label": "codec",
    "encode_p50": "encode ms, median",
    "encode_p95": "encode ms, p95",
    "decode_p50": "decode ms, median",
}
TIME_COLUMNS |= {"decode_p95": "decode ms, p95"}


def summary(frames: pd.DataFrame) -> pd.DataFrame:
    """One row a codec and network; frames: the records of `drive.send`.

    PSNRs (dB) are pooled over the pixels of all frames as they were shown, floors are the least of a frame; kilobytes (1,000 bytes) and flicker
    (grey levels) are means over frames; over, dropped, late, lost and affected count frames: larger than their budget, not sent, through after the
    latency, with a lost packet, and shown otherwise than without losses. delay_p95: ms on the link, of the frames that were sent.
    """
    rows = []
    for (codec, network), group in frames.groupby(["codec", "network"], sort=False):
        counts = {
            name: int(group[name].sum()) for name in ("over", "dropped", "late", "lost", "affected")
        }
        means = {"kilobytes": group["bytes"].mean() / 1000} | {
            f"{part}flicker": group[f"{part}flicker"].mean() for part in ("roi_", "bg_")
        }
        floors = {f"{part}floor": group[f"{part}psnr"].min() for part in ("roi_", "bg_")}
        psnrs = {
            f"{part}psnr": pooled_psnr(group.to_dict("records"), part) for part in ("roi_", "bg_")
        }
        delay = {"delay_p95": group["delay_ms"].quantile(0.95)}
        rows.append(
            {"label": codec, "network": network, "frames": len(group)}
            | means
            | counts
            | delay
            | psnrs
            | floors
        )
    return table_of(rows)


def time_summary(times: pd.DataFrame) -> pd.DataFrame:
    """Median and 95th percentile of each codec's encode and decode ms; an intra peer's encode is its whole search for what fits."""
    rows = []
    for codec, group in times.groupby("codec", sort=False):
        kinds = (
            (kind, name, q)
            for kind in ("encode", "decode")
            for name, q in (("p50", 0.5), ("p95", 0.95))
        )
        rows.append(
            {"label": codec}
            | {f"{kind}_{name}": group[f"{kind}_ms"].quantile(q) for kind, name, q in kinds}
        )
    return pd.DataFrame(rows)


def text(frames: pd.DataFrame, times: pd.DataFrame) -> str:
    """The summaries as Markdown."""
    table = summary(frames)
    parts = [markdown(table[table["network"] == "whole"], COLUMNS)]
    if "lossy" in set(table["network"]):
        parts.append(markdown(table[table["network"] == "lossy"], LOSS_COLUMNS))
    return "\n\n".join([*parts, markdown(time_summary(times), TIME_COLUMNS)])


def over_time(frames: pd.DataFrame, latency_ms: float, network: str = "whole") -> Figure:
    """Bytes against the budget, delay on the link, ROI and background PSNR of every codec over time; with losses PSNRs alone, lost frames marked."""
    chosen = frames[frames["network"] == network]
    panels = {"roi_psnr": "ROI-PSNR (dB)", "bg_psnr": "background PSNR (dB)"}
    if network == "whole":
        panels = {"bytes": "bytes", "delay_ms": "delay (ms)"} | panels
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 2.1 * len(panels)), sharex=True, layout="constrained"
    )
    for ax, (name, label) in zip(axes, panels.items(), strict=True):
        for i, (codec, rows) in enumerate(chosen.groupby("codec", sort=False)):
            name_of_codec, _, kind = codec.rpartition(" ")
            colour, _ = look(name_of_codec or codec)
            ax.plot(
                rows["time"],
                rows[name],
                label=codec,
                color=colour,
                linestyle=LINES.get(kind, "-"),
                linewidth=1.1 if i else 2,
            )
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


class Film:
    """An MP4 of pictures one under the other: the original and what was shown of `names`, over one `network`. Appears when it is complete."""

    def __init__(self, path: Path, network: str, names: list[str], fps: float):
        self.path, self.network, self.names = path, network, names
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.container = av.open(
            str(self.temporary), "w", format="mp4", options={"movflags": "faststart"}
        )
        self.stream = self.container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options=FILM
        )
        self.stream.pix_fmt = "yuv420p"

    def add(self, original: np.ndarray, shown: dict[str, np.ndarray]) -> None:
        """One more frame; shown: codec → picture."""
        rows = [_named(original, "original"), *(_named(shown[name], name) for name in self.names)]
        stack = np.concatenate(rows)
        stack = np.pad(
            stack, ((0, stack.shape[0] % 2), (0, stack.shape[1] % 2), (0, 0)), "edge"
        )  # 4:2:0 has even sides
        frame = av.VideoFrame.from_ndarray(stack, "rgb24")
        frame = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        if not self.stream.codec_context.is_open:
            self.stream.width, self.stream.height = frame.width, frame.height
        self.container.mux(self.stream.encode(frame))

    def close(self, complete: bool) -> None:
        """Finish the file, or leave none."""
        try:
            if complete:
                self.container.mux(self.stream.encode(None))
            self.container.close()
            if complete:
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def _named(picture: np.ndarray, name: str) -> np.ndarray:
    strip = Image.new("RGB", (picture.shape[1], STRIP), "white")
    ImageDraw.Draw(strip).text((6, 3), name, "black", ImageFont.load_default(14))
    return np.concatenate([np.asarray(strip), picture])


@contextlib.contextmanager
def films(
    folder: str | Path, codecs: list[str], networks: list[str], fps: float
) -> Iterator[list[Film]]:
    """Films `drive_NETWORK.mp4` of the original, our codec and the first live peer (or else the first peer), one a network."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [codecs[0], *sorted(codecs[1:], key=lambda name: not name.endswith("live"))[:1]]
    made, complete = (
        [Film(folder / f"drive_{network}.mp4", network, names, fps) for network in networks],
        False,
    )
    with contextlib.ExitStack() as closing:
        for film in made:
            closing.callback(lambda film=film: film.close(complete))
        yield made
        complete = True


def write(
    results: str | Path,
    figures: str | Path,
    frames: pd.DataFrame,
    times: pd.DataFrame,
    provenance: dict,
) -> None:
    """Records, times, summary and provenance to `results` as drive….csv and .json; figures and a page beside the films to `figures`."""
    results, figures = Path(results), Path(figures)
    for folder in (results, figures):
        folder.mkdir(parents=True, exist_ok=True)
    for name, table in {
        "drive_frames": frames,
        "drive_times": times,
        "drive": summary(frames),
    }.items():
        _write_text(results / f"{name}.csv", table.to_csv(index=False))
    write_json(results / "drive_provenance.json", provenance)
    networks = list(frames["network"].unique())
    for network in networks:
        figure = over_time(frames, provenance["parameters"]["latency_ms"], network)
        save_figure(figure, figures, f"drive_{network}")
        plt.close(figure)
    _write_text(figures / "drive.html", _page(frames, networks))


def _page(frames: pd.DataFrame, networks: list[str]) -> str:
    titles = {"whole": "No packet lost", "lossy": "Packets lost"}
    parts = [
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>A drive over a thin link</title>'
    ]
    parts.append(
        "<style>body{font-family:sans-serif;max-width:1300px;margin:auto}video,img{width:100%}td,th{padding:2px 8px;text-align:right}</style>"
    )
    table = summary(frames)
    for network in networks:
        columns = COLUMNS if network == "whole" else LOSS_COLUMNS
        rows = table[table["network"] == network][list(columns)].rename(columns=columns)
        parts.append(
            f"<h2>{html.escape(titles[network])}</h2>{rows.to_html(index=False, float_format='{:.2f}'.format, na_rep='–', border=0)}"
        )
        parts.append(
            f'<video controls loop muted src="drive_{network}.mp4"></video><img src="drive_{network}.png" alt="the same over time">'
        )
    return "\n".join(parts) + "\n"


def _write_text(path: Path, content: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(content)
