"""Coverage-guided fuzzing of `.roic` decoding:  python tests/fuzz_roic.py [-max_total_time=SECONDS] [libFuzzer's options] [FOLDER_FOR_FINDS]

Three untrained models, one of each kind, read streams that libFuzzer makes out of those in tests/corpus and of real ones. The first byte of the
model's id chooses the model; then id, lengths and checksums are made right, so that what lies behind them is reached. Anything but a picture of
the size that the header says, or one line of ValueError, is a finding: libFuzzer writes it to a file that this script takes as an argument.
"""

import sys
import tempfile
import zlib
from pathlib import Path

import atheris
import numpy as np
import torch

MODULES = ("codec", "container", "entropy", "models", "quality", "rans", "roi_vbr")
with atheris.instrument_imports(include=[f"roilib.{name}" for name in MODULES]):
    from roilib.codecs import roic
    from roilib.codecs.container import FIXED, MAX_LATENTS, U32, Header
    from roilib.models.hyperprior import HyperpriorWithObjFeatures
from conftest import UNTRAINED, untrained_codec  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"
ID, LATENTS = 5, 18  # where in a stream the model's id and the number of latents are
LARGE = (
    1 << 18
)  # pixels that are not worth the time, unless the stream is so short that it has to be refused at once


torch.set_num_threads(1)
CODECS = [untrained_codec(bytes([number] * 4), **values) for number, values in enumerate(UNTRAINED)]


def chosen(data: bytes) -> roic.Codec:
    """The model that a stream is for."""
    return CODECS[data[ID] % len(CODECS)] if len(data) > ID else CODECS[0]


def sealed(data: bytes) -> bytes:
    """These bytes with the id, the number and lengths of strings and the checksum that make a stream of them, as far as they reach."""
    model = chosen(data)
    latents = 3 if isinstance(model.model, HyperpriorWithObjFeatures) else 2
    start = FIXED.size + 4 * (latents + 1) + 8 * (data[LATENTS - 1] if len(data) >= LATENTS else 0)
    if len(data) < start + 4:
        return data
    body = bytearray(data[:-4])
    body[:ID] = b"roic\1"
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
    """libFuzzer's mutation; of most of what it makes, the checks of the header are passed."""
    data = atheris.Mutate(data, max_size)
    if seed % 8 == 0:
        return data
    if seed % 8 < 6 and len(data) > FIXED.size:  # a picture that is worth decoding
        data = bytearray(data)
        data[10], data[12], data[14], data[16] = 0, 0, data[14] & 1, data[16] & 0x7F
    return sealed(bytes(data))


def read(model: roic.Codec, data: bytes) -> np.ndarray | None:
    """What the codec makes of a stream; None when it refuses it as it should."""
    try:
        return model.decode(data)
    except ValueError as error:
        line = str(error)
    assert ".roic" in line, line
    assert "\n" not in line, line
    return None


def one_input(data: bytes) -> None:
    """Decode; and where only the symbols' checksum was wrong, once more with the right one."""
    model = chosen(data)
    try:
        header, strings = Header.unpack(data)
    except ValueError:
        assert read(model, data) is None
        return
    header.describe()
    if header.height * header.width > LARGE and len(data) > 400:
        return
    picture = read(model, data)
    if picture is None and header.model == model.id:
        right = []
        original, roic._checksum = (
            roic._checksum,
            lambda symbols: right.append(original(symbols)) or right[-1],
        )
        read(model, data)
        roic._checksum = original
        if right:
            whole = Header(
                *(
                    getattr(header, name)
                    for name in ("model", "height", "width", "lmbda", "alpha", "boxes", "lengths")
                ),
                right[0],
            )
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
