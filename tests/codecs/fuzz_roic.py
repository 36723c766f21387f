"""Fuzz `.roic` decoding, guided by coverage.

    python tests/codecs/fuzz_roic.py [-max_total_time=SECONDS] [libFuzzer's options] [FINDINGS]

Three untrained models, one of each kind, read streams that libFuzzer makes from the corpus and from
real streams. The first byte of the model's id chooses the model. Then id, version, lengths and
checksums are corrected, so that the code behind these checks is reached.

A stream must decode to a picture of the size in its header, or raise a ValueError of one line.
Anything else is a finding: libFuzzer writes it to a file, which this script takes as an argument.
"""

import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import atheris
import numpy as np
import torch

MODULES = ("codecs", "entropy_models", "models", "roi")
with atheris.instrument_imports(include=[f"roilib.{name}" for name in MODULES]):
    from roilib.codecs.codec import Codec
    from roilib.codecs.container import FIXED, MAGIC, MAX_LATENTS, U32, VERSION, Header
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import UNTRAINED, untrained_codec  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"
ID = 5  # offset of the model's id in a stream
LATENTS = 18  # offset of the number of latents
LARGE = 1 << 18  # pixels that take too long, unless the stream is so short that it is refused
SHORT = 400  # bytes of such a stream

torch.set_num_threads(1)
CODECS = [untrained_codec(bytes([number] * 4), **values) for number, values in enumerate(UNTRAINED)]


def chosen(data: bytes) -> Codec:
    """Return the model that a stream is for."""
    return CODECS[data[ID] % len(CODECS)] if len(data) > ID else CODECS[0]


def sealed(data: bytes) -> bytes:
    """Correct id, version, number and lengths of strings, and checksum, as far as data reaches."""
    model = chosen(data)
    latents = len(model.model.tables())
    start = FIXED.size + 4 * (latents + 1) + 8 * (data[LATENTS - 1] if len(data) >= LATENTS else 0)
    if len(data) < start + 4:
        return data
    body = bytearray(data[:-4])
    body[:ID] = MAGIC + bytes([VERSION])
    body[ID : ID + 4], body[LATENTS] = model.id, latents
    left, lengths = (len(body) - start) // 4 * 4, []
    for i in range(latents - 1):
        wanted = U32.unpack_from(body, FIXED.size + 4 * i)[0] // 4 * 4
        lengths.append(min(wanted, left - sum(lengths)))
    lengths.append(left - sum(lengths))
    for i, length in enumerate(lengths):
        U32.pack_into(body, FIXED.size + 4 * i, length)
    del body[start + left :]
    return bytes(body) + U32.pack(zlib.crc32(body))


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate as libFuzzer does, then mostly correct what the checks of the header would refuse."""
    data = atheris.Mutate(data, max_size)
    if seed % 8 == 0:
        return data
    if seed % 8 < 6 and len(data) > FIXED.size:  # a picture that is worth decoding
        data = bytearray(data)
        data[10], data[12], data[14], data[16] = 0, 0, data[14] & 1, data[16] & 0x7F
    return sealed(bytes(data))


def read(model: Codec, data: bytes) -> np.ndarray | None:
    """Decode a stream; None if the codec refuses it as it should."""
    try:
        return model.decode(data)
    except ValueError as error:
        line = str(error)
    assert ".roic" in line, line
    assert "\n" not in line, line
    return None


def one_input(data: bytes) -> None:
    """Decode; if only the symbols' checksum was wrong, again with the correct one."""
    model = chosen(data)
    try:
        header, strings = Header.unpack(data)
    except ValueError:
        assert read(model, data) is None
        return
    header.describe()
    if header.height * header.width > LARGE and len(data) > SHORT:
        return
    picture = read(model, data)
    if picture is None and header.model == model.id:
        try:
            checksum = model.read(header, strings)[2]
        except ValueError:
            return
        whole = replace(header, symbols=checksum)
        picture = model.decode(whole.pack(strings))
    assert picture is None or (
        picture.shape == (header.height, header.width, 3) and picture.dtype == np.uint8
    )


def write_seeds(folder: Path) -> None:
    """Real streams of every model."""
    random = np.random.default_rng(0)
    for i, model in enumerate(CODECS):
        for side, boxes in (
            (1, []),
            (64, [[3, 5, 40, 60]]),
            (100, [[0, 0, 30, 30, 0.5], [20, 20, 90, 99, 1]]),
        ):
            (folder / f"{i}-{side}.roic").write_bytes(
                model.encode(random.integers(0, 256, (side, 64, 3), np.uint8), boxes)
            )


def main() -> None:
    """Fuzz until libFuzzer's options say stop."""
    assert MAX_LATENTS == 3
    with tempfile.TemporaryDirectory() as seeds:
        write_seeds(Path(seeds))
        options = [word for word in sys.argv[1:] if word.startswith("-")]
        folders = [word for word in sys.argv[1:] if not word.startswith("-")] or [
            tempfile.mkdtemp(dir=seeds)
        ]
        folders += [] if Path(folders[0]).is_file() else [str(CORPUS), seeds]
        atheris.Setup(
            [sys.argv[0], "-max_len=1500", "-timeout=10", "-rss_limit_mb=4096", *options, *folders],
            one_input,
            custom_mutator=mutated,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
