"""Our training step against a plain CompressAI training loop: same model, crop, batch and machine.

    python benchmarks/train_step.py --pictures FOLDER [--pairs 8] [--steps 4] [--json FILE]

The plain loop is fp32 and contiguous, reads its pictures with CompressAI's ImageFolder and crops
them with torchvision. Ours is the engine with its defaults: bf16 where the processor has it,
channels_last, decoded pictures kept in memory. The two take turns. Times are wall times of whole
steps, data included. The last line, `ratio R`, is the median over pairs of plain time / our time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import torch
from compressai.datasets import ImageFolder
from compressai.losses import RateDistortionLoss
from compressai.models import ScaleHyperprior
from compressai.optimizers import net_aux_optimizer
from PIL import Image
from torchvision import transforms

from roilib.datasets.dataset import RoiDataset, batches
from roilib.datasets.images import Sample
from roilib.engines.meters import Speed
from roilib.engines.step import start, train_step
from roilib.engines.trainer import prefetched
from roilib.parameters import Parameters
from roilib.utils.device import peak_memory_mb
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

BATCH = 8
CROP = 256  # pixels a side
N = 128
M = 192
LMBDA = 0.013


def plain_steps(folder: Path, workers: int, device: torch.device) -> Iterator[None]:
    """Train the plain model by one step at each `next`."""
    data = ImageFolder(
        folder,
        split="train",
        transform=transforms.Compose([transforms.RandomCrop(CROP), transforms.ToTensor()]),
    )
    pin = device.type == "cuda"
    loader = torch.utils.data.DataLoader(
        data,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
    )
    net, criterion = ScaleHyperprior(N, M).to(device).train(), RateDistortionLoss(LMBDA)
    optimizers = net_aux_optimizer(
        net, {"net": {"type": "Adam", "lr": 1e-4}, "aux": {"type": "Adam", "lr": 1e-3}}
    )
    for x in chain.from_iterable(repeat(loader)):
        x = x.to(device)
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        criterion(net(x), x)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizers["net"].step()
        net.aux_loss().backward()
        optimizers["aux"].step()
        yield


def our_steps(
    files: list[Path], workers: int, device: str, compiled: bool, speed: Speed
) -> Iterator[None]:
    """One step of the engine at each `next`."""
    model = {
        "which": "hyperprior",
        "N": N,
        "M": M,
        "lmbda": LMBDA,
        "batch_size": BATCH,
        "compr_img_size": CROP,
        "crop": "native",
    }
    p = Parameters(**model, num_workers=workers, device=device, compile=compiled)
    session = start(p, steps_per_epoch=1000)
    loader = batches(RoiDataset([Sample(path.stem, path) for path in files]), p, train=True)
    session.model.train()
    for batch in speed.waiting(chain.from_iterable(prefetched(loader) for _ in repeat(None))):
        train_step(session, batch)
        speed.pictures += BATCH
        yield


def timed(steps: Iterator[None], count: int) -> float:
    """Seconds a step, mean of `count`."""
    begun = time.perf_counter()
    for _ in range(count):
        next(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, help="folder of pictures with sides of at least 256"
    )
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps of each loop in a pair")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that load pictures, for both loops"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compile", action="store_true", help="torch.compile our model")
    args = parser.parse_args()
    files = [path for path in sorted(args.pictures.iterdir()) if min(Image.open(path).size) >= CROP]
    if len(files) < BATCH:
        parser.error(f"{args.pictures}: fewer than {BATCH} pictures with sides of at least {CROP}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").mkdir()  # ImageFolder's layout
        for path in files:
            (Path(folder) / "train" / path.name).symlink_to(path.resolve())
        speed = Speed()
        plain = plain_steps(Path(folder), args.workers, torch.device(args.device))
        ours = our_steps(files, args.workers, args.device, args.compile, speed)
        # Warm up: after these steps ours has decoded every picture once.
        timed(plain, 2)
        timed(ours, 1 + len(files) // BATCH)
        waited, seconds, pairs = 0.0, 0.0, []
        for i in range(args.pairs):
            speed.report()
            plain_seconds, begun = timed(plain, args.steps), speed.waited
            our_seconds = timed(ours, args.steps)
            waited, seconds = waited + speed.waited - begun, seconds + our_seconds * args.steps
            pairs.append((plain_seconds, our_seconds))
            print(
                f"pair {i + 1}: plain {plain_seconds:.3f} s a step, ours {our_seconds:.3f} s, "
                f"ratio {plain_seconds / our_seconds:.2f}",
                flush=True,
            )
    plain_rate, our_rate = (BATCH / statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"plain {plain_rate:.2f} pictures/s, ours {our_rate:.2f} pictures/s")
    print(
        f"data wait {waited / seconds:.2%} of our step, "
        f"peak memory {peak_memory_mb()} MB (both loops in one process)"
    )
    ratio = statistics.median(p / o for p, o in pairs)
    if args.json:
        write_json(
            args.json,
            {"seconds_plain_and_ours": pairs, "ratio": ratio, "data_wait_share": waited / seconds}
            | origin(vars(args)),
        )
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
