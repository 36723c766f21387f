"""`roilib encode`, `roilib decode`, `roilib info`; also `python -m roilib …`. Exit code 0, or 2 with one line on stderr."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from roilib.codecs.container import MAGIC, MAX_BYTES, Header
from roilib.utils.files import replacing

JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
PICTURES = {
    ".png": {"format": "PNG"},
    ".bmp": {"format": "BMP"},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
    ".ppm": {"format": "PPM"},
}
PICTURES |= {
    ".webp": {"format": "WEBP", "lossless": True},
    ".jpg": JPEG,
    ".jpeg": JPEG,
}  # what `decode` writes: ending → Pillow's options


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    if sys.stdout:
        sys.stdout.reconfigure(
            errors="replace"
        )  # where the locale is not UTF-8, "?" for what it lacks
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except ValueError as error:
        print(
            "roilib:", *str(error).splitlines(), file=sys.stderr
        )  # a file's name may have line breaks
        return 2
    except KeyboardInterrupt:
        print("roilib: interrupted", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        from roilib.utils.device import out_of_memory

        if not out_of_memory(error):
            raise
        print("roilib: not enough memory for a picture of this size", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="roilib", description="ROI-aware neural image codec")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    encode = commands.add_parser("encode", help="picture to .roic")
    encode.add_argument(
        "image",
        type=Path,
        help="its pixels as the file stores them, in which boxes are: EXIF's rotation is not applied",
    )
    encode.add_argument("out", type=Path)
    regions = encode.add_mutually_exclusive_group()
    regions.add_argument(
        "--boxes",
        type=Path,
        help="regions of interest: KITTI label text, or JSON [[x0, y0, x1, y1(, importance)], …]",
    )
    regions.add_argument(
        "--detect", action="store_true", help="regions of interest: what the shipped detector finds"
    )
    encode.add_argument(
        "--lmbda",
        type=float,
        default=0.012,
        help="0.0004 (small) to 0.12 (good); default %(default)s",
    )
    encode.add_argument(
        "--max-bytes",
        type=int,
        metavar="N",
        help="at most N bytes: the largest lmbda that fits is taken, whatever --lmbda says",
    )
    encode.add_argument(
        "--alpha",
        type=float,
        default=0.9,
        help="0.5: all alike, 1: all quality to the regions; default %(default)s",
    )
    encode.set_defaults(run=_encode)
    decode = commands.add_parser("decode", help=".roic to picture")
    decode.add_argument("stream", type=Path)
    decode.add_argument(
        "out", type=Path, help=f"ends in {', '.join(PICTURES)}; all but JPEG keep every pixel"
    )
    decode.set_defaults(run=_decode)
    for command in (encode, decode):
        command.add_argument(
            "--weights",
            type=Path,
            help="a trained model's weights.safetensors; default: the shipped roi_vbr",
        )
    info = commands.add_parser("info", help="what a .roic says of itself, as JSON")
    info.add_argument("stream", type=Path)
    info.set_defaults(run=_info)
    return parser


def _encode(args: argparse.Namespace) -> None:
    from roilib.codecs.roic import load_codec  # torch, only when it is needed
    from roilib.datasets.boxes import read_boxes
    from roilib.datasets.images import read_picture

    _other(args.image, args.out)
    image = read_picture(args.image).permute(1, 2, 0).numpy()
    boxes = read_boxes(args.boxes) if args.boxes else _detected(image) if args.detect else ()
    codec = load_codec(args.weights)
    try:
        data = codec.encode(
            image, boxes, lmbda=args.lmbda, alpha=args.alpha, max_bytes=args.max_bytes
        )
    except ValueError as error:
        raise ValueError(f"{args.image}: {error}") from None
    with _writing(args.out) as temporary:
        temporary.write_bytes(data)


def _other(source: Path, out: Path) -> None:
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out}: is what is to be read")


def _detected(image: np.ndarray) -> np.ndarray:
    from roilib.models.detector import HookedDetector

    return HookedDetector().regions(image)


def _decode(args: argparse.Namespace) -> None:
    _other(args.stream, args.out)
    data = _read(args.stream)
    _header(args.stream, data)  # before torch is loaded, which takes seconds
    if args.out.is_dir():
        raise ValueError(f"{args.out}: cannot be written (Is a directory)")
    if args.out.suffix.lower() not in PICTURES:
        raise ValueError(f"{args.out}: a picture's name ends in {', '.join(PICTURES)}")
    from roilib.codecs.roic import load_codec

    codec = load_codec(args.weights)
    try:
        image = codec.decode(data)
    except ValueError as error:
        raise ValueError(f"{args.stream}: {error}") from None
    with _writing(args.out) as temporary:
        Image.fromarray(image).save(temporary, **PICTURES[args.out.suffix.lower()])


def _info(args: argparse.Namespace) -> None:
    data = _read(args.stream)
    header = _header(args.stream, data)
    text = json.dumps(
        header.describe()
        | {"bytes": len(data), "bpp": round(8 * len(data) / (header.height * header.width), 5)},
        indent=1,
    )
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python tries once more as it ends
        raise ValueError(f"standard output: cannot be written ({error.strerror})") from None


def _header(path: Path, data: bytes) -> Header:
    try:
        return Header.unpack(data)[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> bytes:
    """A stream; of what begins otherwise or is longer than any, only so much that it is refused."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            return start + (file.read(MAX_BYTES) if start == MAGIC else b"")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """`replacing`, whose failure is a ValueError that names `path`."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error})") from None
