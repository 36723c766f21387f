"""Untrusted `.roic` streams: a picture of the header's size, or one line of refusal.

Never a crash, much time or much memory.
"""

import resource
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, UNTRAINED, street, untrained_codec
from hypothesis import given, settings
from hypothesis import strategies as st

from roilib.codecs import container
from roilib.codecs.container import MAX_SIDE, U32, Header
from roilib.entropy_models.range_coder import Encoder
from roilib.models.integer.coding import z_indices

CODECS = [untrained_codec(bytes([number] * 4), **values) for number, values in enumerate(UNTRAINED)]
STREAMS = [codec.encode(street(0)[:50, :40], [[3, 5, 30, 40]]) for codec in CODECS]
KINDS = range(len(CODECS))


def refused(codec, data):
    """Return the line that refuses a stream."""
    with pytest.raises(ValueError, match=r"^[^\n]*\.roic[^\n]*$") as caught:
        codec.decode(data)
    return str(caught.value)


def resealed(data):
    return bytes(data[:-4]) + U32.pack(zlib.crc32(bytes(data[:-4])))


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_refused(kind):
    stream = STREAMS[kind]
    for bit in range(8 * len(stream)):
        flipped = bytearray(stream)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(CODECS[kind], bytes(flipped))


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_under_a_correct_checksum_are_refused_or_change_nothing(kind):
    """The symbols' checksum protects the strings, whose last bits may be anything.

    Other knobs and boxes make another picture of the same size.
    """
    stream, codec = STREAMS[kind], CODECS[kind]
    header, strings = Header.unpack(stream)
    start, refusals = len(stream) - 4 - sum(map(len, strings)), 0
    for bit in (*range(8 * 13, 8 * 17), *range(8 * start, 8 * (len(stream) - 4), 11)):
        flipped = bytearray(stream)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            picture = codec.decode(resealed(flipped))
            assert picture.shape[:2] == (header.height, header.width)
            assert bit // 8 < start or np.array_equal(picture, codec.decode(stream))
        except ValueError:
            refusals += 1
    assert refusals > 0.9 * (8 * sum(map(len, strings)) // 11)


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_and_extension_is_refused(kind):
    stream = STREAMS[kind]
    for other in (
        *(stream[:n] for n in range(len(stream))),
        *(stream + bytes(n) for n in (1, 2, 4, 64)),
        stream + stream,
    ):
        refused(CODECS[kind], other)
        if len(other) > 4:
            refused(CODECS[kind], resealed(other))


def test_streams_of_another_model_are_refused():
    for kind in KINDS:
        for other in KINDS:
            if other != kind:
                assert "of model" in refused(CODECS[kind], STREAMS[other])
                renamed = resealed(STREAMS[other][:5] + CODECS[kind].id + STREAMS[other][9:])
                refused(CODECS[kind], renamed)


def test_streams_of_another_version_are_refused():
    for codec, stream in zip(CODECS, STREAMS, strict=True):
        for version in {*range(256)} - {container.VERSION}:
            other = resealed(stream[:4] + bytes([version]) + stream[5:])
            assert f"of version {version}, this reads version 3" in refused(codec, other)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.booleans(), st.sampled_from(KINDS))
def test_random_files_are_refused(data, magic, kind):
    refused(CODECS[kind], resealed(container.MAGIC + data) if magic else data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(KINDS))
def test_random_strings_under_a_good_header_are_refused(data, kind):
    header, strings = Header.unpack(STREAMS[kind])
    others = tuple(
        data.draw(st.binary(max_size=80).map(lambda b: b + bytes(-len(b) % 4))) for _ in strings
    )
    kept = ("model", "lmbda", "alpha", "symbols")
    fields = {name: getattr(header, name) for name in kept}
    side = st.integers(1, 200)
    width, height = data.draw(side), data.draw(side)
    boxes = np.array(
        [[0, 0, width, height, data.draw(st.integers(1, 255))]] * data.draw(st.integers(0, 3)),
        np.int64,
    ).reshape(-1, 5)
    refused(
        CODECS[kind],
        Header(
            **fields, height=height, width=width, boxes=boxes, lengths=tuple(map(len, others))
        ).pack(others),
    )


HEADERS = st.fixed_dictionaries(
    {
        "model": st.binary(min_size=4, max_size=4),
        "height": st.integers(1, MAX_SIDE),
        "width": st.integers(1, MAX_SIDE),
        "lmbda": st.integers(0, 654),
        "alpha": st.integers(0, 1 << 15),
        "symbols": st.integers(0, 2**32 - 1),
    }
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(HEADERS, st.data())
def test_a_header_comes_back(fields, data):
    width, height = fields["width"], fields["height"]
    corner = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1))
    boxes = []
    for x0, y0 in data.draw(st.lists(corner, max_size=255)):
        boxes.append(
            [
                x0,
                y0,
                data.draw(st.integers(x0 + 1, width)),
                data.draw(st.integers(y0 + 1, height)),
                data.draw(st.integers(1, 255)),
            ]
        )
    strings = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=3))
    header = Header(
        **fields, boxes=np.array(boxes, np.int64).reshape(-1, 5), lengths=tuple(map(len, strings))
    )
    again, parts = Header.unpack(header.pack(strings))
    assert parts == strings
    assert np.array_equal(again.boxes, header.boxes)
    assert vars(again) | {"boxes": 0} == vars(header) | {"boxes": 0}


def bomb(codec, strings):
    """Return a header of the largest picture, with 255 boxes of its size, over these few bytes."""
    boxes = np.array([[0, 0, MAX_SIDE, MAX_SIDE, value] for value in range(1, 256)])
    lengths = tuple(map(len, strings))
    header = Header(codec.id, MAX_SIDE, MAX_SIDE, 442, 30_000, boxes, lengths, 0)
    return header.pack(strings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 8, 400])
def test_a_huge_picture_over_few_bytes_is_refused_at_once(kind, size):
    codec = CODECS[kind]
    latents = len(Header.unpack(STREAMS[kind])[1])
    tracemalloc.start()
    start = time.process_time()
    refused(codec, bomb(codec, [np.random.default_rng(i).bytes(size) for i in range(latents)]))
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 200e6


def test_the_least_bytes_are_those_of_the_most_probable_symbols():
    model = CODECS[0].model
    _, tables = model.tables()
    indices = z_indices(model, (9, 11))
    best = np.array([bits.argmin() for bits in tables.bits], np.int32) + tables.low
    coder = Encoder()
    coder.put(best[indices], indices, tables)
    assert tables.least_bytes(99) <= len(coder.data()) <= tables.least_bytes(99) + 28


MEMORY = """
import resource
import numpy as np
from roilib.codecs.roic import load_codec
from roilib.codecs.container import Header
from roilib.entropy_models.range_coder import Encoder
from roilib.models.integer.coding import z_indices

codec = load_codec()
tables, indices, coder = codec.model.tables()[1], z_indices(codec.model, (64, 64)), Encoder()
best = np.array([bits.argmin() for bits in tables.bits], np.int32) + tables.low
coder.put(best[indices], indices, tables)
strings = b"", coder.data()
boxes, lengths = np.zeros((0, 5), np.int64), tuple(map(len, strings))
stream = Header(codec.id, 4096, 4096, 442, 30_000, boxes, lengths, 0).pack(strings)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    codec.decode(stream)
except ValueError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.slow
def test_what_a_stream_does_not_hold_takes_no_memory():
    """The hyper-latent is whole, so decoding begins. All of y would take hundreds of MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    kilobytes, message = done.stdout.split(maxsplit=1)
    assert "too short" in message
    assert int(kilobytes) < 220_000


def roilib(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "roilib", *map(str, words)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        **options,
    )


def limited():
    resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/urandom", "/proc/self/mem", "."])
def test_the_command_refuses_endless_and_empty_files(path):
    """`decode`, too, looks at the stream before it loads anything large or slow."""
    for words in (["info", path], ["decode", path, "/dev/null"]):
        done = roilib(*words, preexec_fn=limited, timeout=20)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert path in done.stderr


def test_a_file_longer_than_any_stream_is_refused_unread(tmp_path):
    with (tmp_path / "long.roic").open("wb") as file:
        file.write(STREAMS[0])
        file.truncate(10 * 2**30)  # sparse
    done = roilib("info", tmp_path / "long.roic", preexec_fn=limited, timeout=20)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "longer than any" in done.stderr


@pytest.mark.slow
def test_the_fuzzer_finds_nothing_in_a_few_seconds(tmp_path):
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 only")
    options = ["-max_total_time=6", "-runs=3000", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, "tests/codecs/fuzz_roic.py", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_corpus_is_small():
    files = list((Path(__file__).parent / "corpus").iterdir())
    assert 0 < len(files) <= 100
    assert sum(path.stat().st_size for path in files) < 50_000
    assert {path.suffix for path in files} == {".roic"}
