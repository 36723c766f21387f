"""What tests share: real pictures, a tiny KITTI, and parameters for runs of seconds."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from roilib.datasets.boxes import write_kitti_label
from roilib.parameters import Parameters

# On such small pictures threads wait for each other: up to 20 times as long on a busy machine.
torch.set_num_threads(1)


def on_gpu(test):
    """Mark a test that needs a GPU, and skip it where there is none."""
    skipped = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    return pytest.mark.gpu(skipped(test))


REPOSITORY = Path(__file__).resolve().parent.parent

LONGEST_FIRST = (  # files of a minute or more on one core
    "project/test_notebooks.py",
    "project/test_sweeps.py",
    "project/test_docs.py",
    "project/test_reproducible.py",
    "apps/test_playground_browser.py",
    "engines/test_checkpoints.py",
    "project/test_report.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process of pytest-xdist ends long after the others.

    run_tests.sh keeps this order.
    """
    places = {REPOSITORY / "tests" / name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures: `ROILIB_SHARED_DATA`, else ../shared/data."""
    folder = Path(os.environ.get("ROILIB_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder}: no real pictures here; ROILIB_SHARED_DATA names their folder")
    return folder


def street(i: int) -> np.ndarray:
    """A picture (96, 160, 3): sky over road with grain, a dark car and a bright person."""
    rng = np.random.default_rng(i)
    rows = np.linspace(200, 60, 96)[:, None, None] * (0.8, 0.9, 1.0)
    picture = np.broadcast_to(rows, (96, 160, 3)) + rng.normal(0, 6, (96, 160, 1))
    for (x0, y0, x1, y1), colour in zip(places(i), ((40, 30, 90), (230, 180, 60)), strict=True):
        picture[y0:y1, x0:x1] = (
            np.array(colour) + 20 * np.sin(np.arange(y0, y1) * 0.9)[:, None, None]
        )
    return np.clip(picture, 0, 255).astype(np.uint8)


def places(i: int) -> list[tuple[int, int, int, int]]:
    """Where picture i has its car and its person."""
    return [(10 + 8 * i, 50, 58 + 8 * i, 80), (120 - 5 * i, 40, 132 - 5 * i, 70)]


def write_tiny_kitti(root: Path, pictures: int = 6) -> Path:
    """Write small pictures 000000 … in KITTI's layout, each with a car, a person and a DontCare.

    The last one has nothing but a DontCare.
    """
    for folder in ("image_2", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    for i in range(pictures):
        Image.fromarray(street(i)).save(root / "training" / "image_2" / f"{i:06d}.png")
        names, boxes = ["Car", "Pedestrian", "DontCare"], [*places(i), (0, 0, 160, 20)]
        first = 0 if i < pictures - 1 else 2
        write_kitti_label(
            root / "training" / "label_2" / f"{i:06d}.txt",
            names[first:],
            np.array(boxes[first:], np.float32),
        )
    return root


@pytest.fixture(scope="session")
def for_all_workers(tmp_path_factory) -> Path:
    """A folder that the processes of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def tiny_kitti(for_all_workers) -> Path:
    """Six pictures of 96x160 in KITTI's layout, to be read only."""
    root = for_all_workers / "tiny_kitti"
    with FileLock(f"{root}.lock"):
        return root if root.exists() else write_tiny_kitti(root)


@pytest.fixture
def own_kitti(tmp_path) -> Path:
    """Two pictures in KITTI's layout that a test may spoil."""
    return write_tiny_kitti(tmp_path / "kitti", pictures=2)


@pytest.fixture
def tiny_parameters(tiny_kitti, tmp_path):
    """`tiny_parameters(name=value, …)`: a run of three steps on the CPU.

    Four pictures of `tiny_kitti` train, two test.
    """
    tiny = {
        "which": "hyperprior",
        "device": "cpu",
        "batch_size": 2,
        "num_workers": 0,
        "max_steps": 3,
        "precision": "32",
        "N": 8,
        "M": 12,
    }
    tiny |= {
        "compr_img_size": 64,
        "obj_det_img_size": 64,
        "train_size_p1": 0.67,
        "data_root": str(tiny_kitti),
        "logdir": str(tmp_path / "runs"),
    }
    return lambda **changes: Parameters.parse(tiny | changes)


def refusal(read, *arguments):
    """The one line with which something is refused."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        read(*arguments)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def strictly(path):
    """A file's content, read by the letter of JSON, which has no NaN and no Infinity."""

    def refuse(name):
        raise AssertionError(f"{path}: {name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def untrained_codec(id: bytes = b"test", **values):
    """A codec of random weights, small and made at once, whose latents are not all zero."""
    from roilib.codecs.codec import Codec
    from roilib.models.range_coded import update_tables
    from roilib.models.weights import build_model

    torch.manual_seed(0)
    p = Parameters.parse(values)
    model = build_model(p).eval()
    if p.which == "roi_vbr":
        model.quantise([(torch.rand(1, 3, 64, 64), torch.full((1, 1, 4, 4), 400.0))])
    else:
        model.g_a[6].weight.data.mul_(60)
        update_tables(model)
    return Codec(p, model, id, precision="32")


def other_detector(folder: Path) -> Path:
    """The file of a YOLOv8n whose features are not the pretrained detector's."""
    from roilib.utils.pretrained import PRETRAINED_DETECTOR, pretrained

    checkpoint = torch.load(pretrained(PRETRAINED_DETECTOR), map_location="cpu", weights_only=False)
    checkpoint["model"].model[15].cv2.conv.weight.data.mul_(2)
    torch.save(checkpoint, folder / "other.pt")
    return folder / "other.pt"


UNTRAINED = (  # one of each kind of model
    {"which": "roi_vbr", "N": 4, "M": 20},
    {"which": "hyperprior", "N": 4, "M": 6},
    {"which": "hyperprior_with_obj_features", "N": 4, "M": 6, "zero_hooks": True},
)


VBR = {"which": "roi_vbr", "N": 16, "M": 256, "crop": "native", "lmbda": 0.012, "alpha": 0.9}


def trained_run(p: Parameters):
    """The run, trained with every picture ten times an epoch, so that few epochs are tested."""
    from roilib.datasets.dataset import RoiDataset, load_splits
    from roilib.engines import train
    from roilib.engines.runs import open_run

    run = open_run(p)
    train_data, test_data = load_splits(p)
    train.train(run, RoiDataset(train_data.samples * 10, train_data.classes), test_data)
    return run


@pytest.fixture(scope="session")
def vbr_run(tiny_kitti, for_all_workers):
    """The run of a small roi_vbr, trained for long enough that its numbers mean something.

    The first process that needs it trains it.
    """
    base = {
        "dataset": "kitti",
        "data_root": str(tiny_kitti),
        "logdir": str(for_all_workers / "vbr"),
        "device": "cpu",
        "precision": "32",
    }
    base |= {
        "batch_size": 4,
        "num_workers": 0,
        "compr_img_size": 64,
        "train_size_p1": 0.67,
        "max_epochs": 15,
        "max_lr": 3e-3,
        "ema": 0.95,
    }
    with FileLock(for_all_workers / "vbr.lock"):
        return trained_run(Parameters.parse(base | VBR))
