"""A drive over a thin link: every frame coded, sent, received and compared, by our codec and its peers side by side.

    python -m roilib.apps.drive.drive FRAMES --mbit 1 --fps 10        FRAMES: a folder of pictures in order of name, or a KITTI root

    picture ──► boxes ──► sender ──► bytes ──► Bucket: delay, late ──► receiver without losses ──► PSNR, flicker
                                                    └──► Loss ──────► receiver with losses ────► PSNR, flicker

A frame that does not fit is dropped, one that comes later than the latency is late; both are counted. A receiver that gets no picture goes on
showing the last one, and is measured by it; before the first there is grey. ROI and background are the pixels inside and outside the true boxes.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from roilib.apps.drive.link import Bucket, Loss, constant, packets, read_trace
from roilib.apps.drive.report import Film, films, text, write
from roilib.apps.drive.senders import Ours, Sender, peer
from roilib.codecs.roic import load_codec
from roilib.datasets.boxes import read_boxes
from roilib.datasets.images import PICTURE_SUFFIXES, picture_size, read_picture
from roilib.evaluation.tables import table_of
from roilib.metrics import psnr_of, regions, squared_errors
from roilib.models.detector import HookedDetector
from roilib.roi import roi_mask
from roilib.utils.provenance import origin, sha256
from roilib.visualization.style import set_style

NOT_SENT = {"queue_ms": math.nan, "transmission_ms": math.nan, "delay_ms": math.nan, "late": False}
GREY = 128  # shown before the first picture
PEERS = ("x265 medium intra", "x264 medium intra", "x265 veryfast live", "x264 veryfast live")


def _option(default, kind: type, help: str):
    return field(default=default, metadata={"type": kind, "help": help})


@dataclass(frozen=True)
class Plan:
    """What a drive is sent over, by whom and how; the command's options."""

    mbit: float = _option(1.0, float, "bandwidth in Mbit/s")
    trace: str | None = _option(
        None, str, "CSV file time_s,mbit_s: a bandwidth that changes, instead of --mbit"
    )
    fps: float = _option(10.0, float, "frames a second")
    latency_ms: float = _option(
        200.0, float, "how late a frame may be through, and so how much may wait"
    )
    alpha: float = _option(
        0.9, float, "our ROI strength: 0.5 all alike, 1 all quality to the boxes"
    )
    qoffset: float = _option(
        -0.2, float, "the peers' ROI strength: quantiser offset, 0 none, -1 the codec's whole range"
    )
    keyint: int = _option(20, int, "frames from keyframe to keyframe of a live encoder")
    loss: float = _option(
        0.01, float, "a packet's probability of being lost; 0: no second receiver"
    )
    burst: float | None = _option(
        None, float, "packets lost in a row on average; none: each by itself"
    )
    seed: int = _option(0, int, "of the losses")
    weights: str | None = _option(
        None, str, "a trained model's weights.safetensors; none: the shipped roi_vbr"
    )
    peers: Sequence[str] = field(
        default=PEERS,
        metadata={
            "type": str,
            "nargs": "*",
            "help": "as 'x265 medium intra' or 'x264 veryfast live'",
        },
    )

    def legs(self) -> list["Leg"]:
        """Our codec and every peer, each with a link of its own. Raises ValueError for a value or file that is wrong."""
        link = read_trace(self.trace) if self.trace is not None else constant(self.mbit)
        if len(set(self.peers)) < len(self.peers):
            raise ValueError(f"peers: one of {', '.join(self.peers)} is named twice")
        buckets = [Bucket(link, self.fps, self.latency_ms) for _ in range(1 + len(self.peers))]
        senders = [
            peer(name, bucket, self.qoffset, self.keyint)
            for name, bucket in zip(self.peers, buckets[1:], strict=True)
        ]
        return [
            Leg(sender, self)
            for sender in (Ours(buckets[0], load_codec(self.weights), self.alpha), *senders)
        ]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture, uint8 (H, W, 3), the boxes (K, ≥4) that encoders are told, the true ROI, bool (H, W), and how long the detector took."""

    id: str
    image: np.ndarray
    boxes: np.ndarray
    roi: np.ndarray
    detect_ms: float | None


class Drive:
    """The frames of a folder in order of name, or of a KITTI root, whose labels are then the truth.

    boxes: a folder of KITTI or JSON box files that encoders are told, named as the pictures; None: what the shipped detector finds.
    truth: such a folder for the ROI that is measured; None: the root's labels, or else the boxes that encoders are told.
    count: the first so many frames. Raises ValueError naming the folder or file that is wrong, before anything is coded.
    """

    def __init__(
        self,
        folder: str | Path,
        boxes: str | None = None,
        truth: str | None = None,
        count: int | None = None,
    ):
        folder = Path(folder)
        root = folder / "training"
        if (root / "image_2").is_dir():
            folder, truth = (
                root / "image_2",
                truth or (str(root / "label_2") if (root / "label_2").is_dir() else None),
            )
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        if count is not None and count < 1:
            raise ValueError(f"a drive has 1 frame or more, not {count}")
        self.pictures = sorted(
            path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES
        )[:count]
        if not self.pictures:
            raise ValueError(f"{folder}: no pictures here ({', '.join(PICTURE_SUFFIXES)})")
        (height, width), *others = map(picture_size, self.pictures)
        for path, size, before in zip(self.pictures[1:], others, self.pictures, strict=False):
            if size != (height, width):
                raise ValueError(
                    f"{path}: {size[1]}x{size[0]} pixels, the frames before it have {width}x{height}"
                )
            if path.stem == before.stem:
                raise ValueError(f"{path}: a second picture of the name {path.stem}")
        named = (
            None if f is None else [read_boxes(_box_file(Path(f), path)) for path in self.pictures]
            for f in (boxes, truth)
        )
        self.boxes, self.truth = named
        self.detector = HookedDetector() if boxes is None else None

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Frame]:
        for i, path in enumerate(self.pictures):
            image = read_picture(path).permute(1, 2, 0).numpy()
            start = time.perf_counter()
            boxes = self.boxes[i] if self.boxes else self.detector.regions(image)
            detect_ms = None if self.boxes else 1000 * (time.perf_counter() - start)
            roi = roi_mask(self.truth[i] if self.truth else boxes, *image.shape[:2])
            yield Frame(path.stem, image, boxes, roi, detect_ms)


def _box_file(folder: Path, picture: Path) -> Path:
    for path in (folder / f"{picture.stem}.txt", folder / f"{picture.stem}.json"):
        if path.is_file():
            return path
    raise ValueError(f"{folder}: no {picture.stem}.txt or {picture.stem}.json for {picture}")


class Screen:
    """What one receiver shows, and how it differs from what the camera saw."""

    def __init__(self):
        self.picture, self.error = None, None

    def show(self, frame: Frame, received: np.ndarray | None) -> dict:
        """Measures of what is shown for `frame` once `received` has come or not: dB, and squared errors and counts behind them.

        Flicker is the root mean square, in grey levels, of how the error of a pixel changes from the frame before: (x̂ₜ − x̂ₜ₋₁) − (xₜ − xₜ₋₁), the
        shown change against the true one as in Yang et al., "Effective flicker removal from periodic intra frames and accurate flicker
        measurement", ICIP 2008; here without its threshold and over all pixels, since with a moving camera none stands still.
        """
        if received is not None:
            self.picture = received
        elif self.picture is None:
            self.picture = np.full_like(frame.image, GREY)
        error, before, parts = (
            self.picture.astype(np.int16) - frame.image,
            self.error,
            regions(frame.roi),
        )
        self.error, values = error, {"frozen": received is None}
        for part, (total, count) in squared_errors(frame.image, self.picture, parts).items():
            values |= {
                f"{part}sse": total,
                f"{part}count": count,
                f"{part}psnr": psnr_of(total, count),
            }
        changes = (
            dict.fromkeys(("", "roi_", "bg_"), (0, 0))
            if before is None
            else squared_errors(error, before, parts)
        )
        return values | {
            f"{part}flicker": math.sqrt(total / count) if count else None
            for part, (total, count) in changes.items()
        }


class Leg:
    """One sender, its way over the link, and at its end a receiver of all frames and one of those without a lost packet."""

    def __init__(self, sender: Sender, plan: Plan):
        self.sender, self.loss = sender, Loss(plan.loss, plan.burst, plan.seed)
        networks = ("whole", "lossy") if plan.loss else ("whole",)
        self.receivers = {network: (sender.decoder(), Screen()) for network in networks}

    def step(self, number: int, frame: Frame) -> tuple[list[dict], dict]:
        """Send one frame: its records, one a receiver, and its times."""
        now = number / self.sender.bucket.fps
        budget, start = self.sender.budget(now), time.perf_counter()
        data = self.sender.encode(frame.image, frame.boxes, now) if budget > 0 else None
        encode_ms, size = 1000 * (time.perf_counter() - start), len(data or b"")
        record = {
            "codec": self.sender.name,
            "image": frame.id,
            "frame": number,
            "time": now,
            "budget": budget,
            "bytes": size,
        }
        record |= {
            "packets": packets(size),
            "dropped": data is None,
            "over": data is not None and size > budget,
        }
        record |= asdict(self.sender.bucket.send(now, size)) if data is not None else NOT_SENT
        lost = data is not None and not self.loss.arrives(number, size)
        records, decode_ms = [], 0.0
        for network, (decode, screen) in self.receivers.items():
            missing, start = network == "lossy" and lost, time.perf_counter()
            received = decode(data) if data is not None and not missing else None
            decode_ms = decode_ms or 1000 * (time.perf_counter() - start)
            records.append(
                record | {"network": network, "lost": missing} | screen.show(frame, received)
            )
            records[-1]["affected"] = not np.array_equal(
                screen.picture, self.receivers["whole"][1].picture
            )
        return records, {
            "codec": self.sender.name,
            "frame": number,
            "detect_ms": frame.detect_ms,
            "encode_ms": encode_ms,
            "decode_ms": decode_ms,
        }

    def shown(self, network: str) -> np.ndarray:
        """The picture on that receiver's screen, uint8 (H, W, 3)."""
        return self.receivers[network][1].picture


def send(
    frames: Iterable[Frame], legs: Sequence[Leg], films: Sequence[Film] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send every frame over every leg, one after the other: all records, one a row, and all times. films: get what the screens show."""
    records, times = [], []
    for number, frame in enumerate(tqdm(frames, mininterval=10)):
        for leg in legs:
            new, seconds = leg.step(number, frame)
            records += new
            times.append(seconds)
        for film in films:
            film.add(frame.image, {leg.sender.name: leg.shown(film.network) for leg in legs})
    return table_of(records), table_of(times)


def run(
    frames: Drive, plan: Plan, results: str | Path, figures: str | Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send a drive and write what came of it; returns records and times, as `send`. Raises ValueError for what is wrong with options or files."""
    legs = plan.legs()
    for folder in (results, figures):  # before hours of coding
        Path(folder).mkdir(parents=True, exist_ok=True)
    with films(
        figures, [leg.sender.name for leg in legs], list(legs[0].receivers), plan.fps
    ) as made:
        records, times = send(frames, legs, made)
    write(results, figures, records, times, provenance(plan, frames, legs))
    return records, times


def provenance(plan: Plan, frames: Drive, legs: Sequence[Leg]) -> dict:
    """Where the numbers come from: the plan, the frames, the model, this code, machine and versions."""
    boxes = "the box files given" if frames.boxes else "the shipped detector's"
    settings = {leg.sender.name: leg.sender.setting for leg in legs}
    where = {
        "frames": len(frames),
        "pictures_sha256": sha256(frames.pictures),
        "boxes": boxes,
        "model": legs[0].sender.codec.id.hex(),
    }
    return origin(asdict(plan)) | {"senders": settings} | where


def main(arguments: list[str] | None = None) -> int:
    """0; 2 with one line for what is wrong with options or files."""
    args = vars(_parser().parse_args(arguments))
    plan = Plan(**{f.name: args[f.name] for f in fields(Plan)})
    try:
        set_style()
        print(
            text(
                *run(
                    Drive(args["frames"], args["boxes"], args["truth"], args["count"]),
                    plan,
                    args["results"],
                    args["figures"],
                )
            )
        )
    except ValueError as error:
        print(f"roilib.apps.drive.drive: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"roilib.apps.drive.drive: {error.filename or args['results']}: cannot be written ({error.strerror or error})",
            file=sys.stderr,
        )
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m roilib.apps.drive.drive", description="send a drive over a thin link"
    )
    parser.add_argument(
        "frames",
        type=Path,
        metavar="FRAMES",
        help="a folder of pictures, sorted by name, or a KITTI root",
    )
    parser.add_argument(
        "--boxes",
        metavar="DIR",
        help="KITTI or JSON box files that encoders are told; default: the shipped detector's boxes",
    )
    parser.add_argument(
        "--truth",
        metavar="DIR",
        help="such files of the ROI to measure; default: a KITTI root's labels, else --boxes",
    )
    parser.add_argument("--count", type=int, help="the first so many frames")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("runs/drive"),
        help="where records go; default %(default)s",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        default=Path("runs/drive"),
        help="where figures and films go; default %(default)s",
    )
    for f in fields(Plan):
        name = f"--{f.name.replace('_', '-')}"
        parser.add_argument(
            name,
            default=f.default,
            **f.metadata | {"help": f"{f.metadata['help']}; default %(default)s"},
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
