"""The commands that code pictures: `roilib encode`, `decode`, `info` and `compare`.

Each checks its arguments before it imports heavy modules, so that mistakes are reported at once.
"""

import difflib
import inspect
import json as json_format
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from roilib.apps import files as io
from roilib.apps.console import each, exit_code, note, show, successes
from roilib.apps.files import Job
from roilib.utils.files import PICTURE_SUFFIXES

Tune = Literal["rgb", "yuv"]
File = Annotated[str, Parameter(allow_leading_hyphen=True)]  # "-" is standard input or output
MEANT = {  # options of other tools → ours
    "--roi": "--boxes",
    "--box": "--boxes",
    "--mask": "--boxes",
    "--quality": "--lmbda",
    "--crf": "--lmbda",
    "--bpp": "--max-bytes",
    "--size": "--max-bytes",
}
ONE_RATE = "with weights of one rate: the λ and α of their training are used"


def encode(
    *files: File,
    boxes: Path | None = None,
    box_format: str | None = None,
    detect: bool = False,
    detector: Path | None = None,
    confidence: float | None = None,
    classes: str | None = None,
    lmbda: float | None = None,
    alpha: float | None = None,
    max_bytes: int | None = None,
    tune: Tune = "rgb",
    weights: Path | None = None,
    device: str = "cpu",
    precision: Literal["auto", "32", "bf16"] = "auto",
    depth: int | None = None,
    preview: Path | None = None,
    json: bool = False,
    force: bool = False,
) -> int:
    """Code pictures as .roic streams.

    One picture to one file, several or folders of them to a folder; - is standard input or output.
    Boxes are in the pixels that a file stores: EXIF's rotation is not applied.

    Example: `roilib encode street.png street.roic --boxes street.txt --max-bytes 20000`

    Args:
        files: pictures or folders of them, then the output
        boxes: regions of interest: KITTI label text, or JSON [[x0, y0, x1, y1(, importance)], …];
            of several pictures a folder of such files, or KITTI tracking labels
        box_format: kitti, yolo, xyxy, xywh, coco or labelme; default: recognised by content
        detect: find the regions of interest with the pretrained detector
        detector: find them with this YOLOv8 file instead; weights that were trained with it need
            it also with --boxes
        confidence: lowest confidence of a detection that counts, 0 to 1; default 0.25
        classes: classes of detections that count, such as Car,Pedestrian; default: all
        lmbda: quality: 0.0004 (fewest bytes) to 0.12 (best picture); default 0.012
        alpha: ROI strength: 0.5 treats all pixels alike, 1 gives all quality to the boxes;
            default 0.9
        max_bytes: largest size of a stream; lmbda is chosen so that a stream takes about 99 % of
            it or more, or where none does, it is the largest that fits
        tune: which pretrained weights: rgb, where red, green and blue count alike; yuv, where luma
            counts most, and chroma at half the size, as in video at 4:2:0; default rgb
        weights: a trained model's weights.safetensors; default: the pretrained ones of --tune
        device: torch device, such as cpu or cuda; default cpu
        precision: of the analysis; auto: bf16 where the processor supports it
        depth: bits that 16-bit grey pictures really use, such as 12
        preview: also write the decoded picture to this file
        json: print one JSON object per picture
        force: overwrite files that roilib did not make
    """
    jobs = io.pair(names(files, encode), PICTURE_SUFFIXES, ".roic")
    if jobs[0].out.suffix.lower() in PICTURE_SUFFIXES:
        raise ValueError(f"{jobs[0].out}: is a picture's name, but a .roic stream is written")
    if preview and len(jobs) > 1:
        raise ValueError(f"--preview is of one picture, not of {len(jobs)}")
    if preview:
        io.check_picture_name(preview)
    if boxes and (detect or (detector and not weights)):
        raise ValueError("--boxes and --detect exclude each other")
    if json and jobs[0].out == io.STANDARD:
        raise ValueError("--json and the output - would both be standard output")
    inputs = [job.source for job in jobs] + [p for p in (boxes, weights, detector) if p]
    io.protect([job.out for job in jobs] + ([preview] if preview else []), inputs, force)
    seen = bool(boxes or detect or detector)
    detects = {"confidence": confidence, "classes": classes}
    note_ignored("encode", seen, "without --boxes or --detect", alpha=alpha)
    note_ignored("encode", max_bytes is None, "with --max-bytes", lmbda=lmbda)
    note_ignored("encode", bool(boxes), "without --boxes", box_format=box_format)
    note_ignored("encode", bool(detect or detector) and not boxes, "without --detect", **detects)

    from roilib.apps import transcode
    from roilib.codecs.codec import DEFAULT_ALPHA, DEFAULT_LMBDA
    from roilib.codecs.roic import load_codec
    from roilib.datasets.images import is_turned

    sources = [job.source for job in jobs]
    regions = transcode.regions_of(
        sources, boxes, box_format, detect, detector, confidence, classes
    )
    codec = load_codec(weights, device, precision, tune, detector)
    note_ignored("encode", codec.variable_rate, ONE_RATE, lmbda=lmbda, alpha=alpha)
    setting = {
        "lmbda": DEFAULT_LMBDA if lmbda is None else lmbda,
        "alpha": DEFAULT_ALPHA if alpha is None else alpha,
        "max_bytes": max_bytes,
    }

    def work(job: Job) -> dict:
        record = transcode.encode(job, codec, regions, setting, depth, preview)
        if job.source != io.STANDARD and is_turned(job.source):
            boxes_too = ", nor to its boxes" if record["boxes"] else ""
            note("encode", f"{job.source}: EXIF's rotation is not applied{boxes_too}")
        if seen and not record["boxes"] and alpha is not None:
            note("encode", f"{record['source']}: no boxes, so --alpha has no effect")
        return record

    code = each("encode", jobs, work, json)
    if not (seen or code):
        note("encode", "all pixels are alike; --detect or --boxes mark regions of interest")
    return code


def decode(
    *files: File,
    weights: Path | None = None,
    device: str = "cpu",
    json: bool = False,
    force: bool = False,
) -> int:
    """Decode .roic streams to pictures.

    One stream to one file, several or folders of them to a folder; - is standard input or output.
    The suffix of a file's name chooses the format; all but JPEG keep every pixel.

    Example: `roilib decode street.roic street.png`

    Args:
        files: streams or folders of them, then the output
        weights: the weights that the streams were made with; default: the pretrained ones
        device: torch device, such as cpu or cuda; default cpu
        json: print one JSON object per picture
        force: overwrite files that roilib did not make
    """
    jobs = io.pair(names(files, decode), io.STREAMS, ".png")
    if json and jobs[0].out == io.STANDARD:
        raise ValueError("--json and the output - would both be standard output")
    inputs = [job.source for job in jobs] + ([weights] if weights else [])
    io.protect([job.out for job in jobs], inputs, force)
    streams = {job: io.read_stream(job.source) for job in jobs[:1]}  # refused before torch loads
    io.check_picture_name(jobs[0].out)

    from roilib.apps import transcode
    from roilib.codecs.roic import codec_of, load_codec
    from roilib.utils.device import resolve_device

    resolve_device(device)  # what is wrong with it is said once
    given = load_codec(weights, device) if weights else None

    def work(job: Job) -> dict:
        stream, header = streams.pop(job, None) or io.read_stream(job.source)
        try:
            codec = given or codec_of(header, device)
        except ValueError as error:
            raise ValueError(f"{io.name_of(job.source)}: {error}") from None
        return transcode.decode(job, stream, header, codec)

    return each("decode", jobs, work, json)


def info(*files: File) -> int:
    """Print the headers of .roic streams as JSON.

    Example: `roilib info street.roic`

    Args:
        files: streams or folders of them; - is standard input
    """
    named = names(files, info)
    if not named:
        raise ValueError("a stream is needed; see roilib info --help")
    found = io.expand(map(Path, named), io.STREAMS)

    def describe(path: Path) -> dict:
        data, header = io.read_stream(path)
        return {"source": io.name_of(path)} | io.describe(header, data)

    rows = list(successes("info", found, describe))
    if len(found) > 1 and rows:
        show("[\n  " + ",\n  ".join(map(json_format.dumps, rows)) + "\n]")
    elif rows:
        del rows[0]["source"]
        pairs = (f'"{name}": {json_format.dumps(v)}' for name, v in rows[0].items())
        show("{\n  " + ",\n  ".join(pairs) + "\n}")
    return exit_code("info", len(found), len(rows))


def compare(
    picture: Path,
    /,
    *,
    boxes: Path | None = None,
    box_format: str | None = None,
    detector: Path | None = None,
    confidence: float | None = None,
    classes: str | None = None,
    lmbda: float | None = None,
    alpha: float | None = None,
    max_bytes: int | None = None,
    tune: Tune = "rgb",
    weights: Path | None = None,
    device: str = "cpu",
    out: Path | None = None,
    json: bool = False,
    force: bool = False,
) -> int:
    """Code a picture with our codec, and with x264, x265, AVIF and JPEG at no more bytes.

    Prints bytes and PSNRs inside and outside the boxes. With --tune yuv the others are x264, x265
    and AVIF at 4:2:0, and YUV-PSNRs stand beside the PSNRs. A codec whose worst quality takes more
    bytes is shown at that quality. Without --boxes the pretrained detector finds the boxes.

    Example: `roilib compare street.png --boxes street.txt --out compared.png`

    Args:
        picture: the picture
        boxes: regions of interest, as for encode
        box_format: as for encode
        detector: a YOLOv8 file instead of the pretrained detector; as for encode
        confidence: lowest confidence of a detection that counts, 0 to 1; default 0.25
        classes: classes of detections that count, such as Car,Pedestrian; default: all
        lmbda: quality of our codec: 0.0004 (fewest bytes) to 0.12 (best picture); default 0.012
        alpha: ROI strength: 0.5 treats all pixels alike, 1 gives all quality to the boxes;
            default 0.9
        max_bytes: largest size of our stream; lmbda is chosen as for encode
        tune: as for encode
        weights: a trained model's weights.safetensors; default: the pretrained ones of --tune
        device: torch device, such as cpu or cuda; default cpu
        out: write a picture of the original and of each codec's result, with a box enlarged
        json: print one JSON object per codec
        force: overwrite a file that roilib did not make
    """
    if out:
        io.check_picture_name(out)
    io.protect([out] if out else [], [p for p in (picture, boxes, weights, detector) if p], force)
    detects = {"confidence": confidence, "classes": classes}
    detects |= {} if weights else {"detector": detector}
    note_ignored("compare", not boxes, "with --boxes", **detects)
    note_ignored("compare", bool(boxes), "without --boxes", box_format=box_format)
    note_ignored("compare", max_bytes is None, "with --max-bytes", lmbda=lmbda)

    from roilib.apps import compare as comparison
    from roilib.apps import transcode
    from roilib.apps.playground.coding import Coder
    from roilib.codecs.codec import DEFAULT_ALPHA, DEFAULT_LMBDA
    from roilib.codecs.roic import load_codec

    options = (boxes, box_format, not boxes, detector, confidence, classes)
    regions = transcode.regions_of([picture], *options)
    coder = Coder(load_codec(weights, device, tune=tune, detector=detector))
    note_ignored("compare", coder.codec.variable_rate, ONE_RATE, lmbda=lmbda, alpha=alpha)
    knobs = {
        "lmbda": DEFAULT_LMBDA if lmbda is None else lmbda,
        "alpha": DEFAULT_ALPHA if alpha is None else alpha,
    }
    coded, rows = comparison.compare(picture, regions, coder, **knobs, max_bytes=max_bytes)
    if out:
        io.write_bytes(out, transcode.picture_bytes(out, rows))
    for c in coded if json else ():
        show(json_format.dumps(c.record()))
    if not json:
        show(comparison.table(coded))
    return 0


def note_ignored(command: str, used: bool, when: str, **options: object) -> None:
    """Say of each option that was given that it has no effect `when`, unless options are used."""
    for name, value in options.items():
        if value is not None and not used:
            note(command, f"--{name.replace('_', '-')} has no effect {when}")


def names(words: Sequence[str], command: Callable) -> list[str]:
    """Return the names of files as given. Raises ValueError for a word that can only be an option.

    command: its options are proposed in place of an unknown one.
    """
    known = [f"--{name.replace('_', '-')}" for name in inspect.signature(command).parameters]
    for word in words:
        if word.startswith("-") and word != "-":
            near = [MEANT[word]] if MEANT.get(word) in known else []
            near += [*difflib.get_close_matches(word, known, 1), f"./{word}, the file"]
            raise ValueError(f"unknown option {word}; did you mean {near[0]}?")
    return list(words)
