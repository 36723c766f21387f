"""A drive over a thin link: each frame coded, sent, received and compared, by several codecs.

    frame ──► sender ──► bytes ──► Bucket: delay, late ──► receiver without losses ──► PSNR, flicker
                              └──► Loss ─────────────────► receiver with losses ─────► PSNR, flicker

A frame that does not fit is dropped, and one that takes longer than the latency is late; both are
counted. A receiver that gets no picture shows the last one again, and is measured by it; before the
first picture it shows grey. ROI and background are the pixels inside and outside the true boxes.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from roilib.apps.drive.frames import Drive, Frame
from roilib.apps.drive.link import Bucket, Loss, constant, packets, read_trace
from roilib.apps.drive.plan import Plan
from roilib.apps.drive.report import Film, films, write
from roilib.apps.drive.senders import Intra, Sender, conventional_sender
from roilib.codecs.roic import load_codec
from roilib.evaluation.tables import table_of
from roilib.metrics import psnr_of, regions, squared_errors
from roilib.roi import alpha_index
from roilib.utils.provenance import origin, sha256

NOT_SENT = {"queue_ms": math.nan, "transmission_ms": math.nan, "delay_ms": math.nan, "late": False}
GREY = 128  # what a receiver shows before the first picture


class Receiver:
    """A decoder, the picture that it shows, and how that differs from what the camera saw."""

    def __init__(self, sender: Sender):
        self.decode = sender.decoder()
        self.picture: np.ndarray | None = None
        self.error: np.ndarray | None = None

    def show(self, frame: Frame, decoded: np.ndarray | None) -> dict:
        """Show a picture, or the last one again, and return its PSNRs, squared errors and flicker.

        Flicker is the root mean square, in grey levels, of how a pixel's error changes from the
        frame before: (x̂ₜ − x̂ₜ₋₁) − (xₜ − xₜ₋₁). That is the shown change against the true one, as
        in Yang et al., "Effective flicker removal from periodic intra frames and accurate flicker
        measurement", ICIP 2008, but without its threshold and over all pixels, since none stands
        still when the camera moves.
        """
        if decoded is not None:
            self.picture = decoded
        elif self.picture is None:
            self.picture = np.full_like(frame.image, GREY)
        before, self.error = self.error, self.picture.astype(np.int16) - frame.image
        parts, values = regions(frame.roi), {"frozen": decoded is None}
        for part, (total, count) in squared_errors(frame.image, self.picture, parts).items():
            psnr = psnr_of(total, count)
            values |= {f"{part}sse": total, f"{part}count": count, f"{part}psnr": psnr}
        changes = {} if before is None else squared_errors(self.error, before, parts)
        for part in parts:
            total, count = changes.get(part, (0, 0))
            values[f"{part}flicker"] = math.sqrt(total / count) if count else None
        return values


class Transmission:
    """A sender, its link, a receiver of all frames, and one of the frames that lose no packet."""

    def __init__(self, sender: Sender, plan: Plan):
        self.sender, self.loss = sender, Loss(plan.loss, plan.burst, plan.seed)
        networks = ("whole", "lossy") if plan.loss else ("whole",)
        self.receivers = {network: Receiver(sender) for network in networks}

    def step(self, number: int, frame: Frame) -> tuple[list[dict], dict]:
        """Send one frame, and return its records, one a receiver, and its times."""
        now = number / self.sender.bucket.fps
        budget, start = self.sender.budget(now), time.perf_counter()
        data = self.sender.encode(frame.image, frame.boxes, now) if budget > 0 else None
        encode_ms, size = 1000 * (time.perf_counter() - start), len(data or b"")
        delivery = NOT_SENT if data is None else asdict(self.sender.bucket.send(now, size))
        record = {
            "codec": self.sender.name,
            "image": frame.id,
            "frame": number,
            "time": now,
            "budget": budget,
            "bytes": size,
            "packets": packets(size),
            "dropped": data is None,
            "over": data is not None and size > budget,
        } | delivery
        lost = data is not None and not self.loss.arrives(number, size)
        records, decode_ms = [], 0.0
        for network, receiver in self.receivers.items():
            missing, start = network == "lossy" and lost, time.perf_counter()
            decoded = receiver.decode(data) if data is not None and not missing else None
            decode_ms = decode_ms or 1000 * (time.perf_counter() - start)
            shown = receiver.show(frame, decoded)
            records.append(record | {"network": network, "lost": missing} | shown)
            whole = self.receivers["whole"].picture
            records[-1]["affected"] = not np.array_equal(receiver.picture, whole)
        return records, {
            "codec": self.sender.name,
            "frame": number,
            "detect_ms": frame.detect_ms,
            "encode_ms": encode_ms,
            "decode_ms": decode_ms,
        }


def transmissions(plan: Plan) -> list[Transmission]:
    """Return those of our codec and of every conventional one, each with a link of its own.

    Raises ValueError for a value or file that is wrong.
    """
    alpha_index(plan.alpha)  # refused before anything is coded
    link = constant(plan.mbit) if plan.trace is None else read_trace(plan.trace)
    if len(set(plan.codecs)) < len(plan.codecs):
        raise ValueError(f"codecs: one of {', '.join(plan.codecs)} is named twice")
    ours, *theirs = (Bucket(link, plan.fps, plan.latency_ms) for _ in range(1 + len(plan.codecs)))
    senders = [
        conventional_sender(name, bucket, plan.qoffset, plan.keyint)
        for name, bucket in zip(plan.codecs, theirs, strict=True)
    ]
    codec = load_codec(plan.weights)
    senders.insert(0, Intra(ours, codec, codec.name, {"alpha": plan.alpha}))
    return [Transmission(sender, plan) for sender in senders]


def send(
    frames: Iterable[Frame], all_sent: Sequence[Transmission], films: Sequence[Film] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send every frame by every codec; returns all records, one a row, and all times.

    films: are given what the receivers show.
    """
    records, times = [], []
    for number, frame in enumerate(tqdm(frames, mininterval=10)):
        for sent in all_sent:
            new, seconds = sent.step(number, frame)
            records += new
            times.append(seconds)
        for film in films:
            pictures = {s.sender.name: s.receivers[film.network].picture for s in all_sent}
            film.add(frame.image, pictures)
    return table_of(records), table_of(times)


def run(
    frames: Drive, plan: Plan, results: str | Path, figures: str | Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send a drive, write records, figures and films, and return what `send` returns.

    Raises ValueError for wrong settings or files.
    """
    all_sent = transmissions(plan)
    for folder in (results, figures):  # before hours of coding
        Path(folder).mkdir(parents=True, exist_ok=True)
    names, networks = [sent.sender.name for sent in all_sent], list(all_sent[0].receivers)
    with films(figures, names, networks, plan.fps) as made:
        records, times = send(frames, all_sent, made)
    write(results, figures, records, times, provenance(plan, frames, all_sent))
    return records, times


def provenance(plan: Plan, frames: Drive, all_sent: Sequence[Transmission]) -> dict:
    """Return where the numbers come from: plan, frames, model, code, machine and versions."""
    return origin(asdict(plan)) | {
        "senders": {sent.sender.name: sent.sender.setting for sent in all_sent},
        "frames": len(frames),
        "pictures_sha256": sha256(frames.files),
        "boxes": "the box files given" if frames.boxes else "the pretrained detector's",
        "model": all_sent[0].sender.codec.id.hex(),
    }
