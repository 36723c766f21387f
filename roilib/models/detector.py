"""YOLOv8, frozen, with a forward hook on every module of its Sequential.

    frame ──► pad to stride 32 ──► 0 ─ 1 ─ … ─ 15 ─ … ─ 18 ─ … ─ 21 ─ Detect ──► detections
                                   │   │        │       │       │      │
                                   └───┴────────┴───────┴───────┴──────┴──► features

`features` has one entry a module. The codec uses layers 15, 18 and 21, the neck's outputs at
strides 8, 16 and 32 with 64, 128 and 256 channels.
"""

import math
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.modules import Detect
from ultralytics.utils import checks
from ultralytics.utils.nms import non_max_suppression

from roilib.roi import MAX_BOXES
from roilib.utils.pretrained import PRETRAINED_DETECTOR, is_pretrained, pretrained

CODEC_LAYERS = (15, 18, 21)  # numbers of the modules whose outputs the codec uses
CODEC_CHANNELS = (64, 128, 256)  # of these outputs
CODEC_STRIDES = (8, 16, 32)  # pixels
STRIDE = 32  # sides of the detector's input must be multiples of this
GREY = 114 / 255  # Ultralytics pads with this grey
checks.AUTOINSTALL = False  # else Ultralytics runs pip for any module that a weights file names


def open_yolo(weights: Path) -> YOLO:
    """Open an Ultralytics `.pt`. All code opens such files through this function.

    They hold pickled objects, which can run code: any file but the pretrained one causes a warning.
    Raises ValueError naming the file, also where its model is no detector.
    """
    if weights.suffix != ".pt":  # Ultralytics would make an exported or an empty model of it
        raise ValueError(f"{weights}: not an Ultralytics .pt file")
    try:
        known = is_pretrained(weights)
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; give a YOLOv8n .pt file as detector_weights"
        ) from None
    if not known:
        warnings.warn(
            f"{weights}: not the pretrained detector, and an Ultralytics .pt can run code when it "
            "is loaded: use only a file you trust",
            stacklevel=2,
        )
    opened = checks.check_yolov5u_filename(str(weights).strip().replace("'", ""), verbose=False)
    if opened != str(weights):  # which is looked for on the network, too
        raise ValueError(f"{weights}: Ultralytics opens {opened} instead; give it another name")
    try:
        yolo = YOLO(weights)
    except Exception as error:  # whatever unpickling a damaged file raises
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{weights}: not an Ultralytics model ({type(error).__name__}: {reason})"
        ) from None
    head = yolo.model.model[-1]
    if yolo.task != "detect" or not isinstance(head, Detect):
        kind = f"task {yolo.task}, head {type(head).__name__}"
        raise ValueError(f"{weights}: not a YOLO of the task detect, but one of the {kind}")
    return yolo


def load_yolo(weights: Path) -> nn.Module:
    """Return Ultralytics' DetectionModel in fp32, frozen and in eval mode.

    Warns and raises ValueError as `open_yolo`.
    """
    return open_yolo(weights).model.float().eval().requires_grad_(False)


class HookedDetector(nn.Module):
    """A frozen YOLOv8 that returns the output of every module.

    `detector(x)` with x (B, 3, H, W) in [0, 1], sides multiples of 32, returns (features,
    detections): a list with one entry a module of the Sequential, and Detect's decoded output
    (B, 4 + classes, anchors). Nothing is held between calls. Threads may share a detector: one
    call runs at a time.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        self.weights = Path(weights or pretrained(PRETRAINED_DETECTOR))
        # Channels last is an eighth faster on a CPU.
        self.yolo = load_yolo(self.weights).to(memory_format=torch.channels_last)
        # The hooks hold this list, not self, so that dropping the detector frees it at once.
        self._outputs = outputs = []
        self._lock = threading.Lock()  # of that list, and of what Detect keeps of an input's size
        for module in self.yolo.model:
            module.register_forward_hook(lambda module, args, output: outputs.append(output))

    @property
    def names(self) -> dict[int, str]:
        """The class names by id."""
        return self.yolo.names

    def train(self, mode: bool = True) -> "HookedDetector":
        """Stay in eval mode: the detector is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[list, Tensor]:
        """Return features and detections of x (B, 3, H, W)."""
        with self._lock:
            self._outputs.clear()
            try:
                detections = self.yolo(x)[0]
                return list(self._outputs), detections
            finally:
                self._outputs.clear()

    def codec_features(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of layers 15, 18 and 21 for x (B, 3, H, W) of any size.

        (B, C, ceil(H/s), ceil(W/s)) with C = 64, 128, 256 and s = 8, 16, 32. Raises ValueError for
        a detector that is not a YOLOv8n.
        """
        features, _ = self(pad(x, STRIDE, value=GREY))
        channels = tuple(
            features[i].shape[1]
            for i in CODEC_LAYERS
            if i < len(features) and isinstance(features[i], Tensor)
        )
        if channels != CODEC_CHANNELS:
            raise ValueError(
                f"{self.weights}: layers {CODEC_LAYERS} have {channels} channels, the codec needs "
                f"YOLOv8n's {CODEC_CHANNELS}"
            )
        height, width = x.shape[-2:]
        chosen = zip(CODEC_LAYERS, CODEC_STRIDES, strict=True)
        return [
            features[i][..., : math.ceil(height / s), : math.ceil(width / s)].contiguous()
            for i, s in chosen
        ]

    def detect(self, x: Tensor, confidence: float = 0.25, iou: float = 0.7) -> list[Tensor]:
        """Return the detections of x (B, 3, H, W) in [0, 1], any size.

        One (K, 6) a picture: x0, y0, x1, y1, clipped to the picture, confidence, class.
        """
        _, detections = self(pad(x, STRIDE, value=GREY))
        found = non_max_suppression(detections, confidence, iou)
        height, width = x.shape[-2:]
        for boxes in found:
            boxes[:, 0:4:2].clamp_(0, width)
            boxes[:, 1:4:2].clamp_(0, height)
        return found

    def regions(
        self, image: np.ndarray, confidence: float = 0.25, classes: Sequence[str] = ()
    ) -> np.ndarray:
        """Return the boxes (K, 4) of what is found in a picture, uint8 (H, W, 3).

        The most confident first; at most as many as a stream holds. classes: names of those that
        count; none: all. Raises ValueError for another array, and for a class that the detector
        does not know.
        """
        pixels = np.array(image)  # a copy, since Pillow's pixels and reversed views are no tensors
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError("an image is a uint8 array (H, W, 3)")
        classes = (classes,) if isinstance(classes, str) else classes
        if unknown := set(classes) - set(self.names.values()):
            known = ", ".join(self.names.values())
            raise ValueError(f"{self.weights}: no class {min(unknown)}; it has {known}")
        x = torch.from_numpy(pixels).to(next(self.parameters()).device)
        found = self.detect(x.permute(2, 0, 1)[None].float() / 255, confidence)[0]
        wanted = [i for i, name in self.names.items() if not classes or name in classes]
        found = found[torch.isin(found[:, 5].int(), torch.tensor(wanted, device=x.device))]
        found = found[:MAX_BOXES, :4]
        return found[(found[:, 2:] > found[:, :2]).all(1)].cpu().numpy()


def pad(x: Tensor, stride: int, value: float | None = None) -> Tensor:
    """Pad x (B, C, H, W) at its right and bottom to multiples of `stride`.

    value: what to pad with; None: repeat the edge.
    """
    sides = 0, -x.shape[-1] % stride, 0, -x.shape[-2] % stride
    return F.pad(x, sides, "replicate") if value is None else F.pad(x, sides, value=value)


def frame_features(detector: HookedDetector, frame: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Return the detector's features of a frame (B, 3, H, W), for the codec's padded input.

    size: of that input, multiples of 64. The features repeat their edges to fill it.
    """
    features = detector.codec_features(frame)
    sizes = [(size[0] // s, size[1] // s) for s in CODEC_STRIDES]
    return [
        F.pad(f, (0, w - f.shape[-1], 0, h - f.shape[-2]), "replicate")
        for f, (h, w) in zip(features, sizes, strict=True)
    ]


class FrameFeatures:
    """Features of crops, cut from the cached features of their whole frames.

        frame ──► detector, once a frame and once for its mirror image ──► cut to the crop's cells

    Cells at a frame's border see the detector's grey padding, as they do when whole frames are
    coded. Features are cached until they fill `cache_bytes`; later frames pass the detector each
    time.
    """

    def __init__(self, detector: HookedDetector, cache_bytes: int = 2**30):
        self.detector, self.cache_bytes, self._cached = detector, cache_bytes, 0
        self._cache: dict[tuple[str, bool], list[Tensor]] = {}

    def __call__(
        self, frames: list[Tensor], places: list[tuple[str, bool, int, int]], side: int
    ) -> list[Tensor]:
        """Return (B, C, side/s, side/s) of each of the codec's layers.

        frames: uint8 (3, H, W); places: their ids, whether they are mirrored, and the top and left
        of the crop; side: the crop's. Tops, lefts and the side are multiples of 32.
        """
        crops = []
        for frame, (name, mirrored, top, left) in zip(frames, places, strict=True):
            whole = zip(self._whole(frame, (name, mirrored)), CODEC_STRIDES, strict=True)
            crops.append(
                [f[:, :, top // s :, left // s :][:, :, : side // s, : side // s] for f, s in whole]
            )
        return [torch.cat(layer) for layer in zip(*crops, strict=True)]

    def _whole(self, frame: Tensor, key: tuple[str, bool]) -> list[Tensor]:
        if key in self._cache:
            return self._cache[key]
        device = next(self.detector.parameters()).device
        found = self.detector.codec_features(frame.to(device)[None].float() / 255)
        size = sum(f.nbytes for f in found)
        if self._cached + size <= self.cache_bytes:
            self._cache[key], self._cached = found, self._cached + size
        return found
