"""roilib.codecs.roic and container: pictures come back, damaged streams are refused."""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import UNTRAINED, on_gpu, other_detector, refusal, street, untrained_codec
from PIL import Image

from roilib.codecs import roic
from roilib.codecs.codec import MAX_ATTEMPTS, Codec
from roilib.codecs.container import U32, Header
from roilib.codecs.protocol import DoesNotFit
from roilib.codecs.rate_search import highest_within
from roilib.datasets.dataset import load_splits
from roilib.engines import train
from roilib.engines.runs import open_run
from roilib.models.detector import HookedDetector
from roilib.roi import MAX_BOXES

LUMA = np.array([0.2126, 0.7152, 0.0722])  # BT.709
BOX = [[30.5, 20, 90, 60.2]]
STREAMS = Path(__file__).parent / "streams"  # of data/streets/street.png, written on one machine
DECODED = {  # SHA-256 of their pictures, on every machine
    "rgb": "8158d6468824f4c6452a7a28fbdba5623ea7a68b1c81fc1c7918a9fbba15a58e",
    "yuv": "46554b24b0e92d6c8a2ffecd9531c3f25432541c316c297f2743ed733c00aee4",
}


@pytest.fixture(scope="module")
def vbr(vbr_run):
    return roic.load_codec(vbr_run.weights)


@pytest.fixture
def image():
    return street(0)


def psnr(a, b):
    return -10 * np.log10(np.mean((a.astype(float) - b) ** 2) / 255**2)


def test_a_picture_comes_back(vbr, image):
    data = roic.encode(image, BOX, model=vbr)
    decoded = roic.decode(data, model=vbr)
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    assert psnr(decoded[20:60, 31:90], image[20:60, 31:90]) > 24
    assert len(data) < image.size / 10


def test_streams_of_both_pretrained_codecs_decode_without_being_told(image):
    streams = {tune: roic.encode(image, BOX, tune=tune) for tune in ("rgb", "yuv")}
    pictures = {tune: roic.decode(stream) for tune, stream in streams.items()}
    for tune, stream in streams.items():
        own = roic.load_codec(tune=tune)
        assert np.array_equal(pictures[tune], own.decode(stream))
        assert roic.codec_of(Header.unpack(stream)[0]).id == own.id
    luma = {tune: psnr(picture @ LUMA, image @ LUMA) for tune, picture in pictures.items()}
    assert len(streams["yuv"]) < len(streams["rgb"])
    assert luma["yuv"] > luma["rgb"] - 0.5


@pytest.mark.parametrize("tune", DECODED)
def test_a_stream_of_another_machine_decodes_to_the_same_picture(tune):
    decoded = roic.decode((STREAMS / f"{tune}.roic").read_bytes())
    assert decoded.shape == (375, 1242, 3)
    assert hashlib.sha256(decoded.tobytes()).hexdigest() == DECODED[tune]


@on_gpu
@pytest.mark.parametrize("tune", DECODED)
def test_a_gpu_decodes_to_the_same_picture_and_writes_what_a_cpu_decodes(tune, image):
    on_cuda = roic.load_codec(device="cuda", tune=tune)
    decoded = on_cuda.decode((STREAMS / f"{tune}.roic").read_bytes())
    assert hashlib.sha256(decoded.tobytes()).hexdigest() == DECODED[tune]
    stream = on_cuda.encode(image, BOX)
    assert np.array_equal(roic.decode(stream), on_cuda.decode(stream))


def test_tune_chooses_among_the_pretrained_weights(vbr_run):
    assert refusal(lambda: roic.load_codec(tune="luma")) == "tune is one of rgb, yuv, not 'luma'"
    told = refusal(lambda: roic.load_codec(vbr_run.weights, tune="yuv"))
    assert told.startswith(f"{vbr_run.weights}: tune chooses among the pretrained weights")
    told = refusal(lambda: roic.encode(street(0), model=roic.load_codec(), tune="yuv"))
    assert told == "tune chooses among the pretrained weights, but a model is given"


def test_pretrained_weights_are_loaded_once():
    assert roic.pretrained_codec() is roic.pretrained_codec("rgb", "cpu")


def test_streams_of_other_weights_are_named(vbr, image):
    told = refusal(lambda: roic.decode(roic.encode(image, model=vbr)))
    assert told.startswith(
        f"a .roic stream of model {vbr.id.hex()}, which is none of the pretrained"
    )


def test_lmbda_and_alpha_are_knobs(vbr, image):
    sizes = [
        len(roic.encode(image, BOX, lmbda=lmbda, model=vbr)) for lmbda in (0.0004, 0.005, 0.12)
    ]
    assert sizes == sorted(sizes)
    inside, outside = np.zeros(image.shape[:2], bool), np.ones(image.shape[:2], bool)
    inside[20:61, 30:90], outside[20:61, 30:90] = True, False
    even, strong = (
        roic.decode(roic.encode(image, BOX, lmbda=0.003, alpha=alpha, model=vbr), model=vbr)
        for alpha in (0.5, 0.99)
    )
    assert psnr(strong[outside], image[outside]) < psnr(even[outside], image[outside])
    assert psnr(strong[inside], image[inside]) > psnr(even[inside], image[inside])


@pytest.mark.slow
@pytest.mark.parametrize("boxes", [(), BOX])
def test_a_byte_cap_is_kept_and_used(vbr, image, boxes):
    best = len(roic.encode(image, boxes, lmbda=0.12, model=vbr))
    assert len(roic.encode(image, boxes, max_bytes=10**6, lmbda=0.0004, model=vbr)) == best
    for cap in (300, 0.6 * best, 0.9 * best):
        data = roic.encode(image, boxes, max_bytes=cap, model=vbr)
        assert len(data) <= cap
        assert len(data) + 4 >= 0.97 * cap  # streams grow by 4 bytes
        assert 1 <= vbr.attempts <= MAX_ATTEMPTS
        assert roic.decode(data, model=vbr).shape == image.shape


@pytest.mark.slow
def test_a_cap_that_nothing_fits_into_names_the_smallest_size(vbr, image):
    with pytest.raises(DoesNotFit, match=r"the smallest possible size .* is \d+ bytes") as caught:
        roic.encode(image, BOX, max_bytes=50, model=vbr)
    size = caught.value.least_bytes
    assert 0.95 * size < len(roic.encode(image, BOX, max_bytes=size, model=vbr)) <= size
    with pytest.raises(DoesNotFit):
        roic.encode(image, BOX, max_bytes=round(0.9 * size), model=vbr)
    for cap in (0, -5):
        with pytest.raises(ValueError, match=f"max_bytes is at least 1, not {cap}"):
            roic.encode(image, BOX, max_bytes=cap, model=vbr)


NO_NUMBERS = [
    ("max_bytes", "many"),
    ("max_bytes", float("nan")),
    ("lmbda", "0.01"),
    ("lmbda", None),
    ("alpha", "1"),
    ("alpha", None),
]


@pytest.mark.parametrize(("name", "value"), NO_NUMBERS)
def test_values_that_are_no_numbers_are_refused(vbr, image, name, value):
    with pytest.raises(ValueError, match=rf"^{name} is .*not"):
        roic.encode(image, BOX, model=vbr, **{name: value})


def test_no_cap_is_too_large(vbr, image):
    most = roic.encode(image, BOX, lmbda=0.12, model=vbr)
    assert all(
        len(roic.encode(image, BOX, max_bytes=cap, model=vbr)) >= 0.99 * len(most)
        for cap in (10**400, float("inf"), np.int64(2**40))
    )


def test_a_model_of_one_rate_keeps_it(vbr, image):
    one = Codec(
        vbr.parameters.model_copy(update={"fixed_rate": True, "lmbda": 0.03, "alpha": 0.5}),
        vbr.model,
        vbr.id,
    )
    assert roic.encode(image, BOX, lmbda=0.002, alpha=0.9, model=one) == roic.encode(
        image, BOX, lmbda=0.03, alpha=0.5, model=vbr
    )
    with pytest.raises(DoesNotFit) as caught:
        roic.encode(image, BOX, max_bytes=50, model=one)
    assert caught.value.least_bytes == len(one.encode(image, BOX))


def test_too_little_memory_is_no_bad_stream(vbr, image, monkeypatch):
    data = roic.encode(image, model=vbr)
    monkeypatch.setattr(
        vbr.model,
        "decode_symbols",
        lambda *_: (_ for _ in ()).throw(
            RuntimeError("DefaultCPUAllocator: can't allocate memory")
        ),
    )
    with pytest.raises(RuntimeError, match="allocate memory"):
        vbr.decode(data)


def test_sizes_are_known_without_writing_them(vbr, image):
    x, q = vbr.inputs(image, BOX, lmbda=0.01, alpha=0.9)
    y = vbr.model.analysis(x)
    packed = vbr.model.write(y, q)
    assert vbr.model.size(y, q) == pytest.approx(sum(len(s[0]) for s in packed["strings"]), abs=8)


@pytest.mark.parametrize("bend", [1.0, 0.6])
def test_the_highest_quality_within_a_limit_is_found_in_few_looks(bend):
    looks = []

    def size(index):
        looks.append(index)
        return 500 * 2 ** (0.6 * (index / 64) ** bend * 4 ** (1 - bend))

    for limit in (700, 3000, 9000):
        looks.clear()
        best = highest_within(size, limit, 442)
        assert limit * 0.98 <= size(best) <= limit
        assert len(looks) < 11
    assert highest_within(size, 10, 442) == 0
    assert highest_within(size, 1e9, 442) == 654
    assert highest_within(size, 1e9, 10, top=99) == 99


def test_the_search_ends_at_99_percent_of_the_limit_or_at_the_highest_that_fits():
    assert highest_within(lambda index: 1000 + index, 1200, 195) == 195  # though 200 fits
    assert highest_within(lambda index: 1000 + index, 1200, 180) > 180
    assert highest_within(lambda index: 100 * 2**index, 1000, 0, top=9) == 3


def test_without_boxes_everything_is_alike_whatever_alpha_says(vbr, image):
    symbols = [
        vbr.decode_symbols(roic.encode(image, alpha=alpha, model=vbr))[0]
        for alpha in (0.1, 0.5, 1.0)
    ]
    assert all(np.array_equal(part, symbols[0]) for part in symbols)


def test_importance_lies_between_background_and_full_weight(vbr, image):
    sizes = [
        len(roic.encode(image, [[*BOX[0], importance]], alpha=0.99, model=vbr))
        for importance in (0.02, 0.2, 1.0)
    ]
    assert sizes == sorted(sizes)


@pytest.mark.filterwarnings("ignore:all boxes lie outside")
@pytest.mark.slow
def test_two_hundred_random_sizes_and_boxes(vbr):
    random = np.random.default_rng(0)
    for i in range(200):
        height, width = (int(2 ** random.uniform(0, 7)) for _ in range(2)) if i else (1, 1)
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        corners = random.uniform(-20, 100, (random.integers(0, 4), 2))
        boxes = np.concatenate([corners, corners + random.uniform(0.5, 80, corners.shape)], 1)
        boxes = [[0, 0, width, height]] if i % 7 == 1 else boxes
        data = roic.encode(
            image,
            boxes,
            lmbda=float(0.0004 * 300 ** random.random()),
            alpha=float(random.random()),
            model=vbr,
        )
        assert roic.decode(data, model=vbr).shape == image.shape, i


def test_overhead_is_at_most_forty_bytes_and_eight_a_box(vbr, image):
    for boxes in ([], BOX, BOX * 5):
        header, strings = Header.unpack(data := roic.encode(image, boxes, model=vbr))
        assert len(data) - sum(map(len, strings)) <= 40 + 8 * len(boxes)
        assert len(header.boxes) == len(boxes)


def test_the_header_says_what_was_asked_for(vbr, image):
    header, _ = Header.unpack(
        roic.encode(image, [[*BOX[0], 0.5]], lmbda=0.02, alpha=0.75, model=vbr)
    )
    described = header.describe()
    assert (described["height"], described["width"]) == (96, 160)
    assert described["lmbda"] == pytest.approx(0.02, rel=0.01)
    assert described["alpha"] == pytest.approx(0.75, abs=1e-4)
    assert described["boxes"] == [[30, 20, 90, 61, 0.502]]
    assert described["model"] == vbr.id.hex()


def test_real_bytes_are_what_the_likelihoods_say(vbr):
    image = street(0)[:64, :128]
    for lmbda in (0.002, 0.03):
        _, strings = Header.unpack(roic.encode(image, BOX, lmbda=lmbda, model=vbr))
        x, q = vbr.inputs(image, BOX, lmbda=lmbda)
        with vbr.autocast():
            counted = 8 * vbr.model.size(vbr.model.analysis(x), q)
        assert counted == pytest.approx(
            vbr.estimate(image, BOX, lmbda=lmbda), rel=0.03
        )  # the model is tiny: whole frames are measured in records
        assert (
            0 <= 8 * sum(map(len, strings)) - counted <= 64
        )  # two strings of whole words of 32 bits


@pytest.mark.parametrize("options", UNTRAINED)
def test_likelihoods_without_a_picture_are_those_of_forward(options, monkeypatch):
    codec = untrained_codec(**options)
    inputs = codec.inputs(street(0))
    wanted = codec.model(*inputs)["likelihoods"]
    found = codec.model.likelihoods(*inputs)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    if options["which"] == "roi_vbr":
        monkeypatch.delattr(type(codec.model), "synthesis")  # the costly half, which is not needed
        codec.estimate(street(0))


def test_bits_of_the_cells_are_those_of_the_stream(vbr, image):
    image = image[:90, :150]
    data = roic.encode(image, BOX, lmbda=0.012, alpha=0.99, model=vbr)
    cells = vbr.cell_bits(image, data)
    assert cells.shape == (8, 12)  # of 128x192 pixels
    assert cells.sum() == pytest.approx(vbr.estimate(image, BOX, lmbda=0.012, alpha=0.99), rel=1e-6)
    strings = Header.unpack(data)[1]
    assert cells.sum() == pytest.approx(8 * sum(map(len, strings)), rel=0.05)
    assert cells[2:3, 2:5].mean() > 1.5 * cells[:, 6:9].mean()  # inside the box, and outside
    larger = np.tile(image, (2, 2, 1))  # whose strings are long beside the words that they end with
    capped = roic.encode(larger, BOX, max_bytes=len(data) * 3, model=vbr)
    bits = 8 * sum(map(len, Header.unpack(capped)[1]))
    assert vbr.cell_bits(larger, capped).sum() == pytest.approx(bits, rel=0.05)
    with pytest.raises(ValueError, match="not a stream of this picture"):
        vbr.cell_bits(image[1:], data)


@pytest.mark.parametrize("at", [0, 4, 5, 9, 15, 19, 27, 33, 60, -1])
def test_any_flipped_bit_is_refused(vbr, image, at):
    data = bytearray(roic.encode(image, BOX, model=vbr))
    data[at] ^= 4
    with pytest.raises(ValueError, match=r"^[^\n]*\.roic[^\n]*$"):
        roic.decode(bytes(data), model=vbr)


def test_truncated_and_extended_streams_are_refused(vbr, image):
    data = roic.encode(image, BOX, model=vbr)
    for damaged in (b"", data[:3], data[:20], data[:-1], data + b"x", data + data[-4:]):
        with pytest.raises(ValueError, match=r"^[^\n]*\.roic[^\n]*$"):
            roic.decode(damaged, model=vbr)


def resealed(data):
    """Return the stream with its last checksum corrected, as an attacker would."""
    return bytes(data[:-4]) + U32.pack(zlib.crc32(bytes(data[:-4])))


def test_a_header_that_lies_under_a_right_checksum_is_refused(vbr, image):
    data = roic.encode(image, BOX, model=vbr)
    for at, value in (
        (4, 9),
        (10, 255),
        (11, 0),
        (14, 255),
        (16, 255),
        (17, 255),
        (18, 0),
        (18, 200),
        (19, 255),
        (31, 1),
        (35, 255),
    ):
        damaged = bytearray(data)
        damaged[at] = value
        with pytest.raises(ValueError, match=r"\.roic"):
            roic.decode(resealed(damaged), model=vbr)


def test_a_decoder_that_computes_otherwise_says_so(vbr, vbr_run, image):
    data = roic.encode(image, BOX, model=vbr)
    other = roic.load_codec(vbr_run.weights)
    other.model.e_integer[0][0].layers[2].bias += 2**12
    with pytest.raises(ValueError, match=r"symbols|not a stream"):
        other.decode(data)
    with pytest.raises(ValueError, match=rf"of model {vbr.id.hex()}, these weights are 00000000"):
        Codec(vbr.parameters, vbr.model, bytes(4)).decode(data)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((4, 4), np.uint8), {}, "uint8 array"),
        (np.zeros((4, 4, 3), np.float32), {}, "uint8 array"),
        (np.zeros((0, 4, 3), np.uint8), {}, "sides are 1 to 8192"),
        (np.zeros((1, 8193, 3), np.uint8), {}, "sides are 1 to 8192"),
        (np.zeros((4, 4, 3), np.uint8), {"boxes": [[1, 2, 3]]}, "boxes are"),
        (np.zeros((4, 4, 3), np.uint8), {"boxes": [[0, 0, np.nan, 1]]}, "finite"),
        (np.zeros((4, 4, 3), np.uint8), {"boxes": [[3, 0, 1, 1]]}, "x0 < x1"),
        (np.zeros((4, 4, 3), np.uint8), {"boxes": [[0, 0, 1, 1, 2.0]]}, "importance"),
        (np.zeros((4, 4, 3), np.uint8), {"boxes": [[0, 0, 1, 1]] * (MAX_BOXES + 1)}, "at most 255"),
        (np.zeros((4, 4, 3), np.uint8), {"lmbda": 1.0}, "lmbda"),
        (np.zeros((4, 4, 3), np.uint8), {"alpha": -0.5}, "alpha"),
    ],
)
def test_bad_input_is_one_line(vbr, image, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        roic.encode(image, model=vbr, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": [[0.1, 0.2, 0.5, 0.6]]}, "all coordinates lie in 0 … 1, as shares"),
        ({"boxes": np.array([[0.25, 0, 1, 1, 0.5]])}, "all coordinates lie in 0 … 1, as shares"),
        ({"boxes": "boxes.json"}, "boxes are (K, 4) finite numbers"),
        ({"boxes": [1, 2, 30, 40]}, "boxes are (K, 4) finite numbers"),
        ({"max_bytes": "500"}, "max_bytes is at least 1, not '500'"),
    ],
)
def test_well_formed_arguments_that_mean_something_else(options, message):
    codec = untrained_codec(**UNTRAINED[0])
    assert refusal(lambda: roic.encode(street(0), model=codec, **options)).startswith(message)
    assert roic.encode(street(0), [[0, 0, 1, 1], [1, 0, 2.5, 2]], model=codec)  # whole pixels


def test_boxes_that_all_lie_outside_are_said(recwarn):
    codec = untrained_codec(**UNTRAINED[0])
    outside = [[500, 10, 600, 60], [-9, -9, 0, 0]]
    with pytest.warns(UserWarning, match="all boxes lie outside the picture of 160x96 pixels"):
        assert roic.encode(street(0), outside, model=codec) == roic.encode(street(0), model=codec)
    recwarn.clear()
    roic.encode(street(0), [*outside, [1, 2, 30, 40]], model=codec)
    assert not recwarn.list


@pytest.mark.parametrize("model", ["w.safetensors", Path("w.safetensors"), 7, True, b"x"])
def test_a_model_that_is_no_codec(model):
    why = refusal(lambda: roic.encode(street(0), model=model))
    assert why == refusal(lambda: roic.decode(b"", model=model))
    assert why.startswith("model is a codec, made by load_codec(FILE), not ")


@pytest.mark.parametrize("data", [None, 7, "a.roic", Path("a.roic"), [1, 2], np.zeros((4, 4))])
def test_what_is_no_stream(data):
    codec = untrained_codec(**UNTRAINED[0])
    assert refusal(lambda: roic.decode(data, model=codec)) == "not a .roic stream"


def test_a_precision_that_is_none():
    assert "precision is one of auto, 32" in refusal(lambda: roic.load_codec(precision="fp8"))


PAPERS = [
    {"which": "hyperprior"},
    {"which": "hyperprior_with_obj_features", "alpha": 0.8},
    {"which": "hyperprior_with_obj_features", "mask_hooks": True},
    {"which": "hyperprior_with_obj_features", "zero_hooks": True},
    {"which": "hyperprior_with_obj_features", "mask_hooks": True, "decoder_roi": True},
    {"which": "hyperprior_with_obj_features", "conditioning": "sft", "crop": "grid"},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", PAPERS)
def test_the_papers_models_are_coded_too(tiny_parameters, image, options):
    run = open_run(tiny_parameters(max_epochs=15, max_steps=None, max_lr=5e-3, **options))
    train.train(run, *load_splits(run.parameters))
    trained = roic.load_codec(run.weights)
    data = roic.encode(image[:70, :150], BOX, model=trained)
    header, strings = Header.unpack(data)
    assert len(data) - sum(map(len, strings)) <= 40 + 8
    assert (
        len(strings) == len(trained.decode_symbols(data)) == (3 if "obj" in options["which"] else 2)
    )
    assert header.describe()["lmbda"] == pytest.approx(
        run.parameters.lmbda, rel=0.01
    )  # what it was trained with
    assert trained.cell_bits(image[:70, :150], data).sum() == pytest.approx(
        trained.estimate(image[:70, :150], BOX), rel=1e-6
    )
    trained.__dict__.pop("detector", None)
    assert roic.decode(data, model=trained).shape == (70, 150, 3)
    assert "detector" not in trained.__dict__  # a decoder needs none
    damaged = bytearray(data)
    damaged[-10] ^= 1
    with pytest.raises(ValueError, match=r"\.roic"):
        roic.decode(resealed(damaged), model=trained)


def test_the_extended_codec_uses_the_pretrained_detector(tiny_parameters, image):
    run = open_run(tiny_parameters(which="hyperprior_with_obj_features", max_steps=1))
    train.train(run, *load_splits(run.parameters))
    assert isinstance(roic.load_codec(run.weights).detector, HookedDetector)


@pytest.mark.filterwarnings("ignore:.*can run code")
def test_a_run_codes_with_the_detector_that_its_parameters_name(tiny_parameters, image, tmp_path):
    own = other_detector(tmp_path)
    options = {"which": "hyperprior_with_obj_features", "max_steps": 1}
    run = open_run(tiny_parameters(detector_weights=str(own), **options))
    train.train(run, *load_splits(run.parameters))
    stream = run.codec().encode(image)
    assert roic.load_codec(run.weights, detector=own).encode(image) == stream
    stranger = roic.load_codec(run.weights)
    assert "other.pt, and a detector's file can run code" in refusal(stranger.encode, image)
    assert stranger.decode(stream).shape == image.shape


def test_weights_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.safetensors: no such weights file"):
        roic.load_codec(tmp_path / "none.safetensors")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_pillows_pictures_are_coded(mode):
    codec, picture = untrained_codec(**UNTRAINED[0]), Image.fromarray(street(0)).convert(mode)
    pixels = np.asarray(picture.convert("RGB"))
    assert roic.encode(picture, None, model=codec) == roic.encode(pixels, model=codec)


def test_pillows_pictures_with_a_mistake(tmp_path):
    image, path = street(0), tmp_path / "a.png"
    deep = Image.fromarray(image[..., 0].astype(np.uint16) * 16)  # 12 bits
    assert "16 bits, of which at most 12 are used" in refusal(roic.encode, deep, None)
    assert "32 bits" in refusal(roic.encode, Image.fromarray(image[..., 0].astype(np.float32)))
    Image.fromarray(image).save(path)
    path.write_bytes(path.read_bytes()[:9000])
    assert "not a readable picture" in refusal(roic.encode, Image.open(path))
