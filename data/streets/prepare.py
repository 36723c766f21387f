"""Make the sample set: rendered streets and two photographs of Ultralytics, in KITTI's layout.

python data/streets/prepare.py data/sample
    20 scenes, bus.jpg and zidane.jpg, with splits
python data/streets/prepare.py data/drive --drive 100 --seed 7
    100 frames of a drive through one street, ten a second
python data/streets/prepare.py data/more_streets --streets 40
    a frame of each of 40 streets, to train on
"""

import argparse
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from roilib.datasets.boxes import write_kitti_label
from roilib.utils.files import PICTURE_SUFFIXES, read_json, write_json
from roilib.utils.processes import cores, end_with_parent
from scenes import Street

SCENES = 20  # rendered streets in the sample set
TEST_SCENES = 4  # of these, the last ones
FRAMES_PER_SECOND = 10
RENDERED = ".rendered.json"  # in a folder of a drive or of streets: kind, seed and count
PHOTOGRAPHS = {  # labelled by hand
    "bus": [
        ("Misc", 2, 232, 801, 738),
        ("Pedestrian", 49, 401, 245, 903),
        ("Pedestrian", 222, 405, 345, 858),
        ("Pedestrian", 672, 398, 810, 879),
        ("Pedestrian", 0, 551, 78, 872),
    ],
    "zidane": [("Pedestrian", 122, 201, 1153, 720), ("Pedestrian", 748, 43, 1138, 720)],
}


def make_sample_set(root: str | Path, scenes: int = SCENES) -> Path:
    """Make the sample set at `root` unless it is there; about a minute on two cores.

    The folder appears only when it is complete. Raises ValueError for a folder of something else.
    """
    root = Path(root)
    if root.exists():
        if not (root / "training" / "image_2").is_dir() or (root / RENDERED).exists():
            raise ValueError(f"{root}: is there already, and no sample set")
        return root
    with _appearing(root) as unfinished:
        _write_frames(unfinished, [(seed, 0.0, f"{seed:06d}") for seed in range(scenes)])
        _copy_photographs(unfinished)
        ids = [f"{seed:06d}" for seed in range(scenes)]
        parts = {"train": [*ids[:-TEST_SCENES], "bus"], "test": [*ids[-TEST_SCENES:], "zidane"]}
        (unfinished / "splits").mkdir()
        for part, names in parts.items():
            (unfinished / "splits" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


def make_drive(root: str | Path, frames: int, seed: int | None = None) -> Path:
    """Render `frames` frames of one drive at `root` unless they are there, in KITTI's layout.

    The ids are in order of time. A frame takes 4 to 5 CPU seconds. seed: of the street; None: 0, or
    that of the drive at `root`. A folder of pictures is kept as it is. Raises ValueError where
    `root` holds fewer pictures, another drive, or streets.
    """
    first = 0 if seed is None else seed
    rendered = [(first, i / FRAMES_PER_SECOND, f"{i:06d}") for i in range(frames)]
    return _rendered(Path(root), "a drive", seed, rendered)


def make_streets(root: str | Path, count: int, seed: int | None = None) -> Path:
    """Render the first frame of each of `count` streets at `root`, otherwise as `make_drive`.

    seed: of the first street; None: 100, or that of the streets at `root`. The sample set has the
    streets of seeds 0 to 19.
    """
    first = 100 if seed is None else seed
    rendered = [(first + i, 0.0, f"{first + i:06d}") for i in range(count)]
    return _rendered(Path(root), "streets", seed, rendered)


def _rendered(
    root: Path, kind: str, seed: int | None, frames: list[tuple[int, float, str]]
) -> Path:
    """Render the frames (seed, time, id) at `root` unless they are there.

    kind: what they show; seed: the one that was asked for.
    """
    if not frames or frames[0][0] < 0:
        raise ValueError("at least 1 frame is rendered, of a seed of 0 or more")
    if root.exists():
        _check_rendered(root, kind, seed, len(frames))
        return root
    with _appearing(root) as unfinished:
        _write_frames(unfinished, frames)
        about = {"kind": kind, "seed": frames[0][0], "count": len(frames)}
        write_json(unfinished / RENDERED, about)
    return root


def _check_rendered(root: Path, kind: str, seed: int | None, count: int) -> None:
    """Raise ValueError unless `count` frames of this kind and seed are at `root`.

    Only the number of frames is checked in a folder without the file RENDERED: the sample set, or
    frames of an earlier version, which wrote no such file. A folder of a user's own pictures counts
    as complete.
    """
    own = any(path.suffix.lower() in PICTURE_SUFFIXES for path in root.glob("*"))
    found = count if own else len(list((root / "training" / "image_2").glob("*")))
    otherwise = "name another folder or remove this one"
    if found < count:
        raise ValueError(f"{root}: has {found} of {count} frames; {otherwise}")
    if not (root / RENDERED).is_file():
        return
    made = read_json(root / RENDERED)
    if made["kind"] != kind or seed not in (None, made["seed"]):
        wanted = kind if seed is None else f"{kind} of seed {seed}"
        raise ValueError(
            f"{root}: has {made['kind']} of seed {made['seed']}, not {wanted}; {otherwise}"
        )


@contextmanager
def _appearing(root: Path) -> Iterator[Path]:
    """Make a folder with `training/image_2` and `label_2`, and rename it to `root` at the end.

    An exception removes the folder.
    """
    unfinished = root.with_name(f"{root.name}.{os.getpid()}.tmp")
    try:
        for folder in ("image_2", "label_2"):
            (unfinished / "training" / folder).mkdir(parents=True)
        yield unfinished
        try:
            unfinished.rename(root)
        except OSError:  # another process was first
            if not root.exists():
                raise
    except OSError as error:
        raise ValueError(f"{root}: cannot be made ({error.strerror or error})") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_frames(root: Path, frames: list[tuple[int, float, str]]) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(len(frames), cores()), mp_context=spawn, initializer=end_with_parent
    ) as pool:
        list(pool.map(partial(_write_frame, root), frames))


def _write_frame(root: Path, frame: tuple[int, float, str]) -> None:
    seed, time, name = frame
    picture, kinds, boxes = Street(seed).frame(time)
    Image.fromarray(picture).save(root / "training" / "image_2" / f"{name}.png")
    write_kitti_label(root / "training" / "label_2" / f"{name}.txt", kinds, boxes)


def _copy_photographs(root: Path) -> None:
    from ultralytics.utils import ASSETS  # slow to import

    for name, objects in PHOTOGRAPHS.items():
        shutil.copy(ASSETS / f"{name}.jpg", root / "training" / "image_2" / f"{name}.jpg")
        kinds, boxes = [o[0] for o in objects], np.array([o[1:] for o in objects], np.float32)
        write_kitti_label(root / "training" / "label_2" / f"{name}.txt", kinds, boxes)


def main() -> int:
    """Return 0, or 2 with one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--drive",
        type=int,
        metavar="FRAMES",
        help="render a drive of FRAMES frames instead of the sample set",
    )
    kind.add_argument(
        "--streets",
        type=int,
        metavar="COUNT",
        help="render a frame of each of COUNT streets instead of the sample set",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="which street to drive through (0), or the first of the streets (100); without it, "
        "frames of any seed that are at the root are kept",
    )
    args = parser.parse_args()
    seed = {} if args.seed is None else {"seed": args.seed}
    try:
        if args.drive is not None:
            print(make_drive(args.root, args.drive, **seed))
        else:
            print(
                make_streets(args.root, args.streets, **seed)
                if args.streets is not None
                else make_sample_set(args.root)
            )
    except ValueError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
