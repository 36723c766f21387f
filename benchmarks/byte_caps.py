"""Byte caps on every test frame.

Is a stream ever larger than its cap, how much of the cap does it use, and how many passes of
entropy coding does it take?

    python benchmarks/byte_caps.py --data-root DIR [--weights FILE] [--json FILE]
"""

import argparse
from pathlib import Path

from roilib import roi
from roilib.codecs.codec import Codec
from roilib.codecs.container import Header
from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset, load_splits
from roilib.parameters import Parameters
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

CAPS = (1000, 4000, 8000, 16000, 32000)  # bytes
ALPHA = 0.9


def capped(codec: Codec, data: RoiDataset, max_bytes: int) -> list[dict]:
    """Code every frame under a cap.

    A row has bytes, passes and whether the best quality was reached, or the error of a frame that
    does not fit even at the lowest quality.
    """
    rows = []
    for i, frame in enumerate(data.ids):
        image, boxes, _ = data[i]
        try:
            stream = codec.encode(
                image.permute(1, 2, 0).numpy(), boxes.numpy(), alpha=ALPHA, max_bytes=max_bytes
            )
        except ValueError as error:
            rows.append({"frame": frame, "error": str(error)})
            continue
        best = Header.unpack(stream)[0].lmbda == roi.Q_MAX
        rows.append(
            {
                "frame": frame,
                "bytes": len(stream),
                "passes": codec.attempts,
                "at_best_quality": best,
            }
        )
    return rows


def summary(rows: list[dict], max_bytes: int) -> str:
    """Describe a cap's rows in one line."""
    done = [row for row in rows if "bytes" in row]
    if not done:
        return f"{max_bytes:6} bytes: {len(rows)} refused, such as: {rows[0]['error']}"
    filled = [row["bytes"] / max_bytes for row in done if not row["at_best_quality"]]
    over = sum(row["bytes"] > max_bytes for row in done)
    passes = max(row["passes"] for row in done)
    return (
        f"{max_bytes:6} bytes: {over} of {len(done)} over, {min(filled, default=1):.1%} to "
        f"{max(filled, default=1):.1%} used, at most {passes} passes, "
        f"{len(rows) - len(done)} refused"
    )


def main() -> None:
    """Print a line a cap; write every frame with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    codec = load_codec(options.weights)
    _, data = load_splits(Parameters(dataset="kitti", data_root=str(options.data_root)))
    caps = {}
    for max_bytes in CAPS:
        caps[max_bytes] = capped(codec, data, max_bytes)
        print(summary(caps[max_bytes], max_bytes), flush=True)
    if options.json:
        write_json(
            options.json,
            {"caps": caps, "alpha": ALPHA, "model": codec.id.hex()} | origin(vars(options)),
        )


if __name__ == "__main__":
    main()
