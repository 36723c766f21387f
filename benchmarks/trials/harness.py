"""Trials of structures for roi_vbr 2 on one CPU core: equal data, knobs, optimizer, evaluation.

    python harness.py train NAME --structure Trunks --steps 2000 [--set N=128] [--anneal 400]
    python harness.py compare NAME REFERENCE

A trial is resumable (runs/NAME/state.pt). λ (up to 0.5) and α are drawn per picture by
roilib.roi.draw. The learning rate is constant after a warm-up; `--anneal` lets it fall to zero
over the last so many steps, after the state before them has been kept (before_anneal.pt), so that a
trial can go on as a long training.
"""

import argparse
import io
import json
import math
import os
import pickle
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from roilib import roi as quality  # noqa: E402

quality.LMBDA_MAX = 0.5
quality.Q_MAX = math.floor(
    quality.STEPS_PER_OCTAVE * math.log2(quality.LMBDA_MAX / quality.LMBDA_LEAST)
)

import structures  # noqa: E402

from roilib.models.layers import dct_basis  # noqa: E402

DATA = Path(os.environ.get("TRIALS_DATA", ROOT.parent / "shared" / "data"))
HELD = {  # twelve frames of one drive, and eight photographs
    "kitti": [
        "000538",
        "000846",
        "001523",
        "002084",
        "003195",
        "003612",
        "003912",
        "004899",
        "005506",
        "005991",
        "006570",
        "007334",
    ],
    "stills": [
        "tecnick_RGB_OR_1200x1200_001",
        "tecnick_RGB_OR_1200x1200_013",
        "tecnick_RGB_OR_1200x1200_025",
        "tecnick_RGB_OR_1200x1200_049",
        "clic_alejandro-escamilla-6",
        "clic_martin-wessely-211",
        "clic_schicka-307",
        "clic_zugr-108",
    ],
}
LMBDA_MIDDLE, BALANCE = 0.012, 0.5  # of roilib.losses
SHARES = {"kitti": 0.28, "other": 0.27, "stills": 0.3, "coco": 0.15}  # of training pictures
SHRINK = {
    "kitti": (1, 2),
    "other": (1, 2),
    "stills": (1, 1.6),
    "coco": (1, 1.2),
}  # by how much a picture is reduced; half of them by the least
LMBDAS = (0.0008, 0.0032, 0.0128, 0.05, 0.2)
MOMENTUM, SMALLEST_SIDE, ROUNDS, NEWTON_SCHULZ, ROWS = 0.95, 16, 4, (3.4445, -4.7750, 2.0315), 64


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def labels(path: Path) -> np.ndarray:
    rows = [
        line.split()
        for line in path.read_text().splitlines()
        if line and not line.startswith("DontCare")
    ]
    return np.array([[float(v) for v in row[4:8]] for row in rows]).reshape(-1, 4)


def one(folder: Path, stem: str) -> Path:
    """The picture of this name, whatever its format."""
    return next(path for path in folder.iterdir() if path.stem == stem)


def cached_pictures() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """`pictures`, decoded once for all trials."""
    file = ROOT / "runs" / "trials" / "pictures.pickle"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".part").write_bytes(pickle.dumps(pictures(), protocol=5))
        file.with_suffix(".part").replace(file)
    return pickle.loads(file.read_bytes())


def pictures() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """By domain: training pictures as (uint8 picture, boxes (K, 4))."""
    kitti, none, held = DATA / "kitti", np.zeros((0, 4)), set(HELD["stills"])
    ids = (kitti / "splits" / "train.txt").read_text().split()
    files = [p for name in ("kitti_unlabelled", "kitti_drives") for p in (DATA / name).iterdir()]
    stills = [read(p) for p in sorted((DATA / "stills").iterdir()) if p.stem not in held]
    coco = [halved(read(p)) for p in sorted((DATA / "coco" / "train2017").iterdir())[8:]]
    return {
        "kitti": [
            (
                read(one(kitti / "training" / "image_2", i)),
                labels(kitti / "training" / "label_2" / f"{i}.txt"),
            )
            for i in ids
            if i not in HELD["kitti"]
        ],
        "other": [(read(p), none) for p in sorted(files)],
        "stills": [(v, none) for v in stills if min(v.shape[:2]) >= 256],
        "coco": [(v, none) for v in coco if min(v.shape[:2]) >= 200],
    }


def halved(picture: np.ndarray) -> np.ndarray:
    """At half the size, its JPEG's artefacts gone; one that is small has been halved already."""
    if max(picture.shape[:2]) <= 330:
        return picture
    size = picture.shape[1] // 2, picture.shape[0] // 2
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def pack(a: argparse.Namespace) -> None:
    """Training and held-out pictures in small files, in folders of so many megabytes at most.

    For a machine that takes little along: frames as AVIF at quality 97, COCO halved. There one call
    a folder copies it to the same place, which TRIALS_DATA then names.
    """
    folder, part, size = Path(a.folder), 1, 0
    names = ("kitti", "kitti_unlabelled", "kitti_drives", "stills", "coco/train2017")
    files = [p for name in names for p in sorted((DATA / name).rglob("*")) if p.is_file()]
    tested = set((DATA / "kitti" / "splits" / "test.txt").read_text().split())
    for path in files:
        if "kitti/training" in str(path) and path.stem in tested:
            continue
        data, suffix = path.read_bytes(), path.suffix
        if suffix in (".png", ".jpg"):
            picture, file, suffix = read(path), io.BytesIO(), ".avif"
            picture = halved(picture) if "coco" in str(path) else picture
            Image.fromarray(picture).save(file, "avif", quality=97, subsampling="4:4:4")
            data = file.getvalue()
        if size + len(data) > a.megabytes * 2**20:
            part, size = part + 1, 0
        size += len(data)
        out = (folder / f"part{part}" / path.relative_to(DATA)).with_suffix(suffix)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
    print(f"{part} parts")


def held_out() -> dict[str, list[np.ndarray]]:
    """By domain: pictures to choose by, sides multiples of 64."""
    street = [
        read(one(DATA / "kitti/training/image_2", i))[27:347, :1216] for i in HELD["kitti"][::2]
    ]
    stills = [read(DATA / f"stills/{name}.avif") for name in HELD["stills"]]
    return {
        "kitti": street,
        "stills": [v[: v.shape[0] // 64 * 64, : v.shape[1] // 64 * 64][:512, :576] for v in stills],
    }


class Crops:
    """Batches by step: x (B, 3, S, S) in [0, 1], q of each cell, λ of each pixel.

    every: 2 takes every second picture of each domain.
    """

    def __init__(self, seed: int, batch: int, side: int, every: int = 1):
        self.seed, self.batch, self.side = seed, batch, side
        self.data = {domain: found[::every] for domain, found in cached_pictures().items()}

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = np.random.default_rng((self.seed, step)).permutation(self.batch)
        items = [
            self._item(np.random.default_rng((self.seed, step, place + 1)), int(parts[place]))
            for place in range(self.batch)
        ]
        x, cells, pixels = (np.stack(v) for v in zip(*items, strict=True))
        x = torch.from_numpy(x).permute(0, 3, 1, 2).float().div_(255)
        return (x, *(torch.from_numpy(v[:, None]).float() for v in (cells, pixels)))

    def _item(self, random: np.random.Generator, place: int) -> tuple[np.ndarray, ...]:
        domain = random.choice(list(SHARES), p=list(SHARES.values()))
        picture, boxes = self.data[domain][random.integers(len(self.data[domain]))]
        least, most = SHRINK[domain]
        most = max(least, min(most, min(picture.shape[:2]) / self.side))
        factor = least if random.random() < 0.5 else least * (most / least) ** random.random()
        n = min(round(self.side * factor), *picture.shape[:2])
        top, left = (int(random.random() * (length - n + 1)) for length in picture.shape[:2])
        crop = picture[top : top + n, left : left + n]
        boxes = ((boxes - (left, top, left, top)) * (self.side / n)).clip(0, self.side)
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        if n != self.side:
            crop = np.asarray(
                Image.fromarray(crop).resize((self.side, self.side), Image.Resampling.BICUBIC)
            )
        if random.random() < 0.5:
            crop, boxes = (
                crop[:, ::-1],
                boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (self.side, 0, self.side, 0),
            )
        drawn, lmbda, alpha = quality.draw(random, boxes, self.side, place, self.batch)
        importance = quality.importance_map(drawn, self.side, self.side)
        table = (
            quality.quality_table(lmbda, alpha)
            if len(drawn)
            else np.full(quality.FULL + 1, lmbda, np.int16)
        )
        return crop, table[quality.cell_means(importance)], quality.lmbda_of(table[importance])


def orthogonal(parts: list[Tensor]) -> list[Tensor]:
    """Matrices of as many rows, no more than columns, with all singular values made about 1.

    Newton-Schulz rounds, all on products of rows, so that matrices of any width share them. The
    first scaling, by row sums of x xᵀ, saves a round (as in Turbo-Muon).
    """
    square = torch.stack([x @ x.T for x in parts])
    scale = square.abs().sum(-1, keepdim=True).clamp_(min=1e-14).rsqrt_()
    square = scale * square * scale.mT
    a, b, c = NEWTON_SCHULZ
    whole, one = None, a * torch.eye(square.shape[-1], device=square.device)
    for number in range(ROUNDS):
        p = torch.baddbmm(torch.add(one, square, alpha=b), square, square, alpha=c)
        whole = p if whole is None else p @ whole
        if number + 1 < ROUNDS:
            square = p @ (p @ square)
    return [w @ x for w, x in zip(whole * scale.mT, parts, strict=True)]


class MuonAdamW(torch.optim.AdamW):
    """Groups with `muon=True` take Muon's step on chunks of at most ROWS rows."""

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        self.param_groups = [g for g in groups if not g.get("muon")]
        super().step()
        self.param_groups = groups
        for group in (g for g in groups if g.get("muon")):
            weights = [w for w in group["params"] if w.grad is not None]
            momenta = []
            for w in weights:
                if not self.state[w]:
                    self.state[w] |= {"momentum": torch.zeros_like(w), "step": torch.zeros(())}
                momenta.append(self.state[w]["momentum"])
            gradients = [w.grad for w in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = [v.flatten(1) for v in torch._foreach_lerp(gradients, momenta, MOMENTUM)]
            chunks = [v.chunk(math.ceil(len(v) / ROWS)) for v in updates]
            by_rows = {}
            for i, parts in enumerate(chunks):
                for j, part in enumerate(parts):
                    by_rows.setdefault(len(part), []).append(((i, j), part))
            done = {}
            for items in by_rows.values():
                done |= dict(
                    zip(
                        [place for place, _ in items],
                        orthogonal([v for _, v in items]),
                        strict=True,
                    )
                )
            for i, (w, update) in enumerate(zip(weights, updates, strict=True)):
                new = torch.cat([done[i, j] for j in range(len(chunks[i]))]).view(w.shape)
                w.sub_(new, alpha=group["lr"] * 0.2 * update.shape[1] ** 0.5)


def bits_of(output: dict) -> list[Tensor]:
    return (
        list(output["bits"].values())
        if "bits" in output
        else [-v.log2() for v in output["likelihoods"].values()]
    )


def rate_distortion(output: dict, x: Tensor, lmbda_map: Tensor) -> dict[str, Tensor]:
    """As roilib.losses.VariableRateLoss, of bits or likelihoods."""
    bpp = sum(v.sum((1, 2, 3)) for v in bits_of(output)) / (x.shape[2] * x.shape[3])
    error = (output["x_hat"] - x).square().mean(1, keepdim=True)
    each = bpp + 255**2 * (lmbda_map * error).mean((1, 2, 3))
    loss = (each * (lmbda_map.mean((1, 2, 3)) / LMBDA_MIDDLE) ** -BALANCE).mean()
    return {"loss": loss, "bpp_loss": bpp.mean().detach(), "mse_loss": error.mean().detach()}


def make_optimizer(model: nn.Module, lr: float) -> MuonAdamW:
    named = {k: v for k, v in model.named_parameters() if not k.endswith("quantiles")}
    linear = {k for k in named if k.startswith(("a_lin", "s_lin"))}
    muon = {
        k for k, v in named.items() if v.dim() == 4 and min(len(v), v[0].numel()) >= SMALLEST_SIDE
    } - linear
    kinds = (
        (muon, {"lr": 2.5 * lr, "muon": True}),
        (linear, {"lr": 0.25 * lr}),
        (named.keys() - muon - linear, {"lr": lr}),
    )
    groups = [
        {"params": [named[k] for k in named if k in names], **kind}
        for names, kind in kinds
        if names
    ]
    for group in groups:
        group["peak"] = group["lr"]
    return MuonAdamW(groups, lr=lr, weight_decay=0.0, foreach=True)


def build(structure: str, settings: dict) -> nn.Module:
    """An untrained model: one of `structures`, or today's roi_vbr."""
    if structure == "roi_vbr":
        from roilib.models.roi_vbr import RoiVbr

        model = RoiVbr(**settings)
    elif structure == "Widened":
        from widened import Widened

        model = Widened(**settings)
    else:
        model = getattr(structures, structure)(**settings)
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def warm(model: structures.Trunks, path: str) -> None:
    """Hyper networks, their prior and the gains from the weights of the first roi_vbr.

    Its linear transforms are still the DCT but for their scales: 0.1–0.4 % of the analysis' energy
    is off the diagonal, 2 to 4 % of the synthesis'. The scales become d_a and part of the gains.
    """
    old, new = load_file(path), model.state_dict()
    parts = ("h_a.", "h_s.", "gain.", "entropy_bottleneck.")
    same = {k: v for k, v in old.items() if k.startswith(parts) and k in new}
    same = {k: v.float() for k, v in same.items() if v.shape == new[k].shape}
    basis = dct_basis(model.M).flatten(1)
    a, s = (old[k].float().flatten(1) for k in ("a_lin.1.weight", "s_lin.0.weight"))
    scale = (basis * s.T).sum(1) / structures.STEP
    same["gain.2.bias"] = same["gain.2.bias"] + torch.cat([torch.zeros(model.M), scale.log()])
    model.load_state_dict(new | same)
    model.d_a.copy_((a * basis).sum(1)[:, None, None])


@torch.no_grad()
def evaluate(model: nn.Module, lmbdas=LMBDAS) -> dict:
    """By domain and λ: mean bpp, PSNR of the pooled error."""
    model.eval()
    points, device = {}, next(model.parameters()).device
    for domain, images in held_out().items():
        for lmbda in lmbdas:
            index = min(round(64 * math.log2(lmbda / quality.LMBDA_LEAST)), quality.Q_MAX)
            bits = error = pixels = 0
            for image in images:
                x = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float() / 255
                x = x.contiguous(memory_format=torch.channels_last)
                cells = (1, 1, x.shape[2] // 16, x.shape[3] // 16)
                q = torch.full(cells, float(index), device=device)
                out = model(x, q)
                bits += sum(float(v.sum()) for v in bits_of(out))
                x_hat = (out["x_hat"].clamp(0, 1) * 255).round()
                error += float((x_hat - x * 255).square().mean()) * image[..., 0].size
                pixels += image[..., 0].size
            points.setdefault(domain, {})[str(lmbda)] = {
                "bpp": bits / pixels,
                "psnr": 10 * math.log10(255**2 * pixels / error),
            }
    model.train()
    return points


def bd_rate(reference: dict, trial: dict) -> float:
    """Percent more bits at equal PSNR, Akima curves, as elsewhere."""
    import bjontegaard

    curves = [
        [np.array([p[k] for p in points.values()]) for k in ("bpp", "psnr")]
        for points in (reference, trial)
    ]
    return float(
        bjontegaard.bd_rate(
            *curves[0], *curves[1], method="akima", require_matching_points=False, min_overlap=0
        )
    )


def train(a: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    folder = ROOT / "runs" / "trials" / a.name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(a.seed)
    clock = time.process_time if a.device == "cpu" else time.perf_counter
    settings = dict(v.split("=") for v in a.set)
    settings = {k: json.loads(v) for k, v in settings.items()}
    model = build(a.structure, settings).train()
    device = torch.device(a.device)
    if a.warm:
        (getattr(model, "start_from", None) or partial(warm, model))(a.warm)
    model = model.to(device)
    optimizer = make_optimizer(model, a.lr)
    quantiles = torch.optim.Adam(
        [v for k, v in model.named_parameters() if k.endswith("quantiles")], lr=1e-3
    )
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    step, seconds, history, evaluations = 0, 0.0, [], []
    start = folder / "state.pt"
    if start.exists() or a.go_on_from:
        state = torch.load(start if start.exists() else a.go_on_from, weights_only=False)
        model.load_state_dict(state["model"])
        if "optimizer" in state:  # a milestone has neither momenta nor a moving average
            optimizer.load_state_dict(state["optimizer"])
            quantiles.load_state_dict(state["quantiles"])
        ema = state.get("ema") or {k: v.clone() for k, v in model.state_dict().items()}
        step, seconds, history, evaluations = (
            state[k] for k in ("step", "seconds", "history", "evaluations")
        )
    crops = Crops(a.seed, a.batch, a.side, a.every)
    loader = {"num_workers": a.workers, "pin_memory": device.type == "cuda"}
    batches = torch.utils.data.DataLoader(crops, None, sampler=range(step, a.steps), **loader)
    batches = iter(batches)
    anneal_from = a.steps - a.anneal
    params = sum(v.numel() for v in model.parameters())
    print(f"{a.name}: {params} parameters, from step {step} to {a.steps}", flush=True)

    def save(path: Path) -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "quantiles": quantiles.state_dict(),
            "ema": ema,
            "step": step,
        }
        torch.save(
            state | {"seconds": seconds, "history": history, "evaluations": evaluations},
            path.with_suffix(".part"),
        )
        path.with_suffix(".part").replace(path)

    def look() -> None:
        own = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(ema)
        evaluations.append({"step": step, "seconds": seconds, "points": evaluate(model)})
        model.load_state_dict(own)
        write()
        print(step, json.dumps(evaluations[-1]["points"]), flush=True)

    def write() -> None:
        record = {
            "trial": a.name,
            "structure": a.structure,
            "settings": settings,
            "what": a.what,
            "parameters": params,
            "batch": a.batch,
            "side": a.side,
            "every": a.every,
        }
        record |= {
            "lr": a.lr,
            "anneal": a.anneal,
            "ema": a.ema,
            "steps": step,
            "seconds": seconds,
            "seconds_per_step": seconds / max(step, 1),
        }
        (folder / "record.json").write_text(
            json.dumps(record | {"loss": history, "evaluations": evaluations}, indent=1)
        )

    sums, begun, deadline = [], clock(), time.time() + 60 * a.minutes
    while step < a.steps and time.time() < deadline:
        if step == anneal_from and a.anneal:
            save(folder / "before_anneal.pt")
        factor = min(1, (step + 1) / a.warmup) * (
            min(1, (a.steps - step) / a.anneal) if a.anneal else 1
        )
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        x, q, pixels = (v.to(device, non_blocking=True) for v in next(batches))
        output = model(x.contiguous(memory_format=torch.channels_last), q)
        terms = rate_distortion(output, x, pixels)
        optimizer.zero_grad()
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(
            (p for g in optimizer.param_groups for p in g["params"]), 1.0
        )
        if norm.isfinite():
            optimizer.step()
        aux = model.aux_loss()
        quantiles.zero_grad()
        aux.backward()
        quantiles.step()
        step += 1
        decay = min(a.ema, (1 + step) / (10 + step))
        own = model.state_dict()
        floats = [k for k, v in ema.items() if v.is_floating_point()]
        torch._foreach_lerp_([ema[k] for k in floats], [own[k] for k in floats], 1 - decay)
        sums.append(torch.stack([*(terms[k].detach() for k in terms), norm]))
        if step % 50 == 0:
            now = clock()
            seconds, begun = seconds + now - begun, now
            history.append([step, *torch.stack(sums).mean(0).tolist()])
            sums = []
            print(
                *(f"{v:.5g}" for v in (*history[-1], seconds / step)),
                flush=True,
            )
        if step % 100 == 0:
            save(start)
            write()
        if step % a.look == 0 and step < a.steps:
            look()
            begun = clock()
    save(start)
    look()
    if a.weights:
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in ema.items()}, a.weights)


def milestone(a: argparse.Namespace) -> None:
    """Write the moving average of a trial's weights in fp16, for `train --go-on-from`."""
    state = torch.load(ROOT / "runs" / "trials" / a.name / "state.pt", weights_only=False)
    kept = {name: state[name] for name in ("step", "seconds", "history", "evaluations")}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in state["ema"].items()}
    torch.save(kept | {"model": weights}, a.file)


def compare(a: argparse.Namespace) -> None:
    records = [
        json.loads((ROOT / "runs" / "trials" / n / "record.json").read_text())
        for n in (a.name, a.reference)
    ]
    by_step = [{e["step"]: e["points"] for e in r["evaluations"]} for r in records]
    for step in sorted(by_step[0].keys() & by_step[1].keys()):
        print(
            step,
            {
                d: round(bd_rate(by_step[1][step][d], by_step[0][step][d]), 2)
                for d in by_step[0][step]
            },
        )


WHOLE = {  # options of `train` that are whole numbers, with their defaults
    "steps": 2000,
    "anneal": 0,
    "every": 1,
    "batch": 8,
    "side": 128,
    "seed": 0,
    "warmup": 100,
    "workers": 0,
    "look": 500,
}
REAL = {"lr": 8e-4, "ema": 0.998, "minutes": 1e9}


def parsed() -> argparse.Namespace:
    """Return the command's arguments; `run` is its function."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(run, *names: str) -> argparse.ArgumentParser:
        own = commands.add_parser(run.__name__)
        own.set_defaults(run=run)
        for name in names:
            own.add_argument(name)
        return own

    own = command(train, "name", "--go-on-from", "--weights", "--warm")
    own.add_argument("--structure", default="Trunks")
    own.add_argument("--set", nargs="*", default=[])
    own.add_argument("--what", default="")
    own.add_argument("--device", default="cpu")
    for kind, options in ((int, WHOLE), (float, REAL)):
        for name, default in options.items():
            own.add_argument(f"--{name}", type=kind, default=default)
    command(compare, "name", "reference")
    command(milestone, "name", "file")
    command(pack, "folder").add_argument("--megabytes", type=float, default=22)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parsed()
    arguments.run(arguments)
