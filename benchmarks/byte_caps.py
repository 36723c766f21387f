"""Byte caps on every test frame: is a stream ever larger than its cap, how much of the cap does it use, and how often were symbols written for it?

python benchmarks/byte_caps.py --data-root DIR [--weights FILE] [--json FILE]
"""

import argparse
from pathlib import Path

from roilib import roi
from roilib.codecs.container import Header
from roilib.codecs.roic import Codec, load_codec
from roilib.datasets.dataset import RoiDataset, load_splits
from roilib.parameters import Parameters
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

CAPS, ALPHA = (1000, 4000, 8000, 16000, 32000), 0.9


def capped(codec: Codec, data: RoiDataset, max_bytes: int) -> list[dict]:
    """By frame: bytes, passes, and whether the best quality was reached; or the error where even the lowest does not fit."""
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
            {"frame": frame, "bytes": len(stream), "passes": codec.passes, "at_best_quality": best}
        )
    return rows


def summary(rows: list[dict], max_bytes: int) -> str:
    """One line for a cap."""
    done = [row for row in rows if "bytes" in row]
    if not done:
        return f"{max_bytes:6} bytes: {len(rows)} refused, such as: {rows[0]['error']}"
    filled = [row["bytes"] / max_bytes for row in done if not row["at_best_quality"]]
    return (
        f"{max_bytes:6} bytes: {sum(row['bytes'] > max_bytes for row in done)} of {len(done)} over, {100 * min(filled, default=1):.1f} % to "
        f"{100 * max(filled, default=1):.1f} % used, at most {max(row['passes'] for row in done)} passes, {len(rows) - len(done)} refused"
    )


def main() -> None:
    """A line a cap, and with --json every frame."""
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
