"""A drive over a thin link: several codecs code, send and receive each frame.

    frame ──► sender ──► bytes ──► Bucket: delay, late ──► receiver without losses ──► PSNR, flicker
                              └──► Loss of each seed ────► receiver with losses ─────► PSNR, flicker

A frame that does not fit is dropped, and one that takes longer than the latency is late; both are
counted. A receiver that gets no picture shows the last one again, and this is measured; before the
first picture it shows grey. The first frame that is sent loses no packet, so that no loss causes
grey to be measured. ROI and background are the pixels inside and outside the true boxes.
"""

import math
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from tqdm import tqdm

from roilib.apps.drive.films import Film, films
from roilib.apps.drive.frames import Drive, Frame
from roilib.apps.drive.link import Bucket, Link, Loss, constant, packets, read_trace
from roilib.apps.drive.plan import CODECS, CODECS_AT_420, Plan
from roilib.apps.drive.report import write
from roilib.apps.drive.senders import Intra, Sender, conventional_sender
from roilib.codecs.registry import TUNED_FOR_YUV
from roilib.codecs.roic import load_codec
from roilib.evaluation.tables.rate_tables import table_of
from roilib.metrics import psnr_of, regions, squared_errors, yuv_psnrs
from roilib.roi import alpha_index
from roilib.utils.provenance import origin, sha256

NOT_SENT = {"queue_ms": math.nan, "transmission_ms": math.nan, "delay_ms": math.nan, "late": False}
GREY = 128  # what a receiver shows before the first picture


class Receiver:
    """A decoder, the picture that it shows, and the picture's difference from the camera's."""

    def __init__(self, sender: Sender):
        self.decode = sender.decoder()
        self.picture: np.ndarray | None = None
        self.errors: tuple[np.ndarray | None, np.ndarray | None] = (None, None)  # before, now
        self.values: dict = {}

    def show(
        self, frame: Frame, decoded: np.ndarray | None, whole: "Receiver | None" = None
    ) -> dict:
        """Show a picture, or the last one again, and return its PSNRs, squared errors and flicker.

        Flicker is the root mean square, in grey levels, of how a pixel's error changes from the
        frame before: (x̂ₜ − x̂ₜ₋₁) − (xₜ − xₜ₋₁), the shown change minus the true one. It follows
        Yang et al., "Effective flicker removal from periodic intra frames and accurate flicker
        measurement", ICIP 2008, but without its threshold and over all pixels, since no pixel
        stands still when the camera moves. whole: the receiver of all frames; while both show the
        same, its values are copied.
        """
        if decoded is not None:
            self.picture = decoded
        elif self.picture is None:
            self.picture = np.full_like(frame.image, GREY)
        is_same = whole is not None and np.array_equal(self.picture, whole.picture)
        before, error = self.errors[1], whole.errors[1] if is_same else None
        if error is None:
            error = self.picture.astype(np.int16) - frame.image
        self.errors = before, error
        if is_same and before is whole.errors[0]:
            self.values = whole.values
        else:
            self.values = self._measured(frame)
        state = {"frozen": decoded is None, "affected": whole is not None and not is_same}
        return state | self.values

    def _measured(self, frame: Frame) -> dict:
        parts, values = regions(frame.roi), {}
        before, error = self.errors
        for part, (total, count) in squared_errors(frame.image, self.picture, parts).items():
            psnr = psnr_of(total, count)
            values |= {f"{part}sse": total, f"{part}count": count, f"{part}psnr": psnr}
        values |= yuv_psnrs(frame.image, self.picture, frame.roi)
        changes = {} if before is None else squared_errors(error, before, parts)
        for part in parts:
            total, count = changes.get(part, (0, 0))
            values[f"{part}flicker"] = math.sqrt(total / count) if count else None
        return values


class Transmission:
    """A sender, its link, a receiver of all frames, and one for each seed of the losses."""

    def __init__(self, sender: Sender, plan: Plan, link: str):
        self.sender, self.link, self.receiver = sender, link, Receiver(sender)
        self.first: int | None = None  # number of the first frame that was sent
        seeds = plan.seeds if plan.loss else ()
        self.lossy = {seed: (Loss(plan.loss, plan.burst, seed), Receiver(sender)) for seed in seeds}

    def shown(self, network: str) -> np.ndarray:
        """Return the picture of the receiver of all frames, or of the first one with losses."""
        receivers = [self.receiver, *(receiver for _, receiver in self.lossy.values())]
        return receivers[network == "lossy"].picture

    def step(self, number: int, frame: Frame) -> tuple[list[dict], dict]:
        """Send one frame; return its records, one per receiver, and its times."""
        now = number / self.sender.bucket.fps
        budget, start = self.sender.budget(now), time.perf_counter()
        data = self.sender.encode(frame.image, frame.boxes, now) if budget > 0 else None
        encode_ms, size = 1000 * (time.perf_counter() - start), len(data or b"")
        if self.first is None and data is not None:
            self.first = number
        delivery = NOT_SENT if data is None else asdict(self.sender.bucket.send(now, size))
        record = {
            "link": self.link,
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
        start = time.perf_counter()
        decoded = None if data is None else self.receiver.decode(data)
        decode_ms = 1000 * (time.perf_counter() - start)
        shown = self.receiver.show(frame, decoded)
        records = [record | {"network": "whole", "seed": None, "lost": False} | shown]
        for seed in self.lossy:
            received = self._receive(number, frame, seed, data, decoded)
            records.append(record | {"network": "lossy", "seed": seed} | received)
        return records, {
            "link": self.link,
            "codec": self.sender.name,
            "frame": number,
            "detect_ms": frame.detect_ms,
            "encode_ms": encode_ms,
            "decode_ms": decode_ms,
        }

    def _receive(
        self,
        number: int,
        frame: Frame,
        seed: int,
        data: bytes | None,
        decoded: np.ndarray | None,
    ) -> dict:
        """Show what arrives with the losses of `seed`; decoded: the frame if nothing is lost."""
        loss, receiver = self.lossy[seed]
        arrives = loss.arrives(number, len(data or b"")) or number == self.first
        if data is None or not arrives:
            decoded = None
        elif receiver.decode != self.receiver.decode:  # it depends on the frames before
            decoded = receiver.decode(data)
        return {"lost": not arrives} | receiver.show(frame, decoded, self.receiver)


def transmissions(plan: Plan) -> list[Transmission]:
    """Return a transmission of each codec over each link; none share a link.

    Raises ValueError for a wrong value or file.
    """
    alpha_index(plan.alpha)  # refused before anything is coded
    if plan.trace is not None and tuple(plan.mbit) != Plan.mbit:
        warnings.warn("mbit has no effect with trace", stacklevel=2)
    if plan.burst is not None and not plan.loss:
        warnings.warn("burst has no effect with loss=0", stacklevel=2)
    codec = load_codec(plan.weights, tune=plan.tune)
    if plan.alpha != Plan.alpha and not codec.variable_rate:
        warnings.warn("alpha has no effect with weights of one rate", stacklevel=2)
    default = CODECS_AT_420 if codec.name == TUNED_FOR_YUV else CODECS
    names = default if plan.codecs is None else plan.codecs
    if len(set(names)) < len(names):
        raise ValueError(f"codecs: one of {', '.join(names)} is named twice")
    found = []
    for name, link in links(plan).items():
        ours, *buckets = (Bucket(link, plan.fps, plan.latency_ms) for _ in range(1 + len(names)))
        senders = [Intra(ours, codec, codec.name, {"alpha": plan.alpha})]
        for other, bucket in zip(names, buckets, strict=True):
            senders.append(conventional_sender(other, bucket, plan.qoffset, plan.keyint))
        found += [Transmission(sender, plan, name) for sender in senders]
    return found


def links(plan: Plan) -> dict[str, Link]:
    """Return the links of a plan by name, the slowest first. Raises ValueError for a wrong one."""
    if plan.trace is not None:
        return {Path(plan.trace).name: read_trace(plan.trace)}
    if not plan.mbit:
        raise ValueError("mbit: at least one bandwidth")
    return {f"{mbit:g} Mbit/s": constant(mbit) for mbit in sorted(plan.mbit)}


def send(
    frames: Iterable[Frame],
    all_sent: Sequence[Transmission],
    films: Sequence[Film] = (),
    bar: TextIO | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send every frame with every codec; return all records, one per row, and all times.

    films: record what the receivers of the slowest link show. bar: where the progress bar goes;
    None: stderr.
    """
    records, times = [], []
    slowest = [sent for sent in all_sent if sent.link == all_sent[0].link]
    for number, frame in enumerate(tqdm(frames, mininterval=10, file=bar)):
        for sent in all_sent:
            new, seconds = sent.step(number, frame)
            records += new
            times.append(seconds)
        for film in films:
            film.add(frame, {sent.sender.name: sent.shown(film.network) for sent in slowest})
    return table_of(records), table_of(times)


def run(
    frames: Drive,
    plan: Plan,
    results: str | Path,
    figures: str | Path,
    bar: TextIO | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send a drive, write records, figures and films, and return what `send` returns.

    bar: as for `send`. Raises ValueError for wrong settings or files.
    """
    all_sent = transmissions(plan)
    for folder in (results, figures):  # before hours of coding
        Path(folder).mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(sent.sender.name for sent in all_sent))
    networks = ("whole", "lossy") if all_sent[0].lossy else ("whole",)
    about = provenance(plan, frames, all_sent)
    with films(figures, names, networks, plan.fps) as made:
        records, times = send(frames, all_sent, made, bar)
    write(results, figures, records, times, about)
    return records, times


def provenance(plan: Plan, frames: Drive, all_sent: Sequence[Transmission]) -> dict:
    """Return the origin of the numbers: plan, frames, model, code, machine and versions."""
    return origin(asdict(plan)) | {
        "senders": {sent.sender.name: sent.sender.setting for sent in all_sent},
        "frames": len(frames),
        "pictures_sha256": sha256(frames.files),
        "boxes": "the box files given" if frames.boxes else "the pretrained detector's",
        "roi": frames.roi,
        "model": all_sent[0].sender.codec.id.hex(),
    }
