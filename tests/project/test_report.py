"""build and visualization.rates: the report and its figures come from result files alone."""

import json
import re
import shutil

import build
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from PIL import Image
from pypdf import PdfReader

from roilib.evaluation.comparisons.bd_tables import bd_table
from roilib.evaluation.comparisons.byte_ratios import byte_ratio_tables
from roilib.evaluation.comparisons.families import families
from roilib.evaluation.comparisons.roi_modes import equal_background_table, trade_table
from roilib.evaluation.tables.files import write_tables
from roilib.evaluation.tables.layout import RATE_COLUMNS, formatted
from roilib.evaluation.tables.rate_tables import rate_table
from roilib.visualization import pictures
from roilib.visualization import rates as figures
from roilib.visualization.style import save_figure

REFERENCE = REPOSITORY / "report" / "results" / "reference"
SIZE = 96 * 160 * 3
# Numbers of the report's own text: λ's limits, α's of losses, limits and a rate of tables.
CONSTANTS = {"0.0004", "0.12", "0.5", "0.9", "0.1", "0.2"}
ARMS = ("plain", "roi-zeros", "roi-features", "roi-mask-both")
ALPHAS = dict(zip(ARMS, (0.5, 0.9, 0.9, 0.9), strict=True))


def record(codec, image, setting, bpp, roi, bg):
    """A record as notebook 05 writes it, of a picture whose ROI is a tenth."""
    counts = {"roi_count": SIZE // 10, "bg_count": SIZE - SIZE // 10, "count": SIZE}
    errors = {
        "roi_sse": 255**2 * 10 ** (-roi / 10) * counts["roi_count"],
        "bg_sse": 255**2 * 10 ** (-bg / 10) * counts["bg_count"],
    }
    errors["sse"] = errors["roi_sse"] + errors["bg_sse"]
    psnrs = {"roi_psnr": roi, "bg_psnr": bg, "psnr": 10 * np.log10(255**2 * SIZE / errors["sse"])}
    ours = {"run": "roi_vbr-1", "bpp_estimated": bpp} if codec == "roi_vbr" else {}
    return (
        {
            "image": image,
            "codec": codec,
            "setting": setting,
            "bytes": round(bpp * SIZE / 24),
            "bpp": bpp,
            "ms_ssim": 0.9,
        }
        | counts
        | errors
        | psnrs
        | ours
    )


def write_results(folder):
    """Every file that the report may take, with numbers that real ones could have."""
    folder.mkdir(parents=True)
    random, records = np.random.default_rng(0), []
    for codec, strengths in (("roi_vbr", (0.5, 0.8, 0.95)), ("x265 medium", (0.0, -0.2, -0.4))):
        for k, strength in enumerate(strengths):
            for i, rate in enumerate(np.geomspace(0.05, 1.7, 7)):
                setting = (
                    {"lmbda": 0.001 * 2**i, "alpha": strength}
                    if codec == "roi_vbr"
                    else {"quality": 40 - 3 * i, "qoffset": strength}
                )
                for j, noise in enumerate(random.normal(0, 0.05, 4)):
                    quality = (
                        24 + 2.13 * i + 2.61 * k + j + noise,
                        23 + 2.07 * i - 0.62 * k + j - noise,
                    )
                    records.append(
                        record(
                            codec,
                            f"picture{j}",
                            setting,
                            float(rate * (1.03 if codec == "roi_vbr" else 1)),
                            *quality,
                        )
                    )
    rates, codecs = rate_table(records), families(records)
    made = {
        "rates": rates,
        "bd_rates": bd_table(codecs),
        "equal_background": equal_background_table(codecs),
        "roi_trade": trade_table(codecs),
    }
    made["byte_ratios"], made["byte_ratio_points"] = byte_ratio_tables(codecs)
    made["published"] = made["bd_rates"].dropna(subset="bd_rate").head(1).assign(metric="psnr_mean")
    made["one_rate"] = pd.DataFrame(
        [{"lmbda": 0.012, "psnr": 30.123, "bpp": 0.5123, "bpp_roi_vbr": 0.5321, "difference": 3.87}]
    )
    steps = {
        "step": range(100, 1100, 100),
        "hours": np.linspace(0.13, 1.37, 10),
        "loss": np.geomspace(9.1, 1.9, 10),
        "psnr": np.linspace(20, 27, 10),
    }
    made["training"] = pd.DataFrame(
        {"run": "roi_vbr-1", "codec": "roi_vbr", "label": "roi_vbr", "part": "test"} | steps
    )
    made["detection"], made["detection_at_bpp"] = detections(rates)
    shift = made["detection_at_bpp"].select_dtypes(float).filter(like="loss") + 1.3
    made["detection_at_loss"] = made["detection_at_bpp"].assign(
        bg_loss=[0.3, 0.5], strength=[0.8, 0.95], **shift
    )
    write_tables(folder, made)
    write(folder / "records.json", records)
    rows = [
        ("roi_vbr", "total"),
        ("roi_vbr", "transforms"),
        ("roi_vbr", "entropy coding"),
        ("x265 medium", "total"),
    ]
    times = {"device": "cpu", "median": 0.1517, "p95": 0.1731, "p99": 0.1913}
    rows = [
        {"codec": codec, "stage": stage, "operation": operation} | times
        for codec, stage in rows
        for operation in ("encode", "decode")
    ]
    write(
        folder / "speed.json",
        {"rows": rows, "threads": 1, "frame": [375, 1242], "frames": 31, "warm_up": 3},
    )
    write(
        folder / "portability.json",
        {"table": {"1 thread": {"streams": 144, "mismatches": 3, "largest_difference": 2}}},
    )
    trial = {
        "trial": "a",
        "compared_with": None,
        "change": "this",
        "steps": 700,
        "parameters": 4.31e6,
        "seconds_per_step": 0.377,
        "J": 0.4331,
    }
    write(
        folder / "trials.json",
        [trial, trial | {"trial": "b", "compared_with": "a", "change": "that", "J": 0.2217}],
    )
    write(
        folder / "integer_networks.json",
        {"bd_rate": 0.2317, "frames": 24, "coder_loss": [{"mean": 0.00113, "most": 0.00257}]},
    )
    parameters = {
        "which": "roi_vbr",
        "lmbda": 0.012,
        "alpha": 0.9,
        "N": 96,
        "M": 768,
        "compr_img_size": 192,
        "batch_size": 8,
        "seed": 0,
    }
    run = {"parameters": parameters, "steps": 6123, "seconds": 5457.0, "commit": "0123456789abcdef"}
    evaluated = {
        "commit": "fedcba9876543210",
        "dirty": True,
        "machine": "x86_64",
        "python": "3.12.1",
        "packages": {"torch": "2.14.1"},
        "cores": 2,
    }
    write(folder / "provenance.json", {"environment": evaluated, "runs": {"roi_vbr-1": run}})
    write_beside(folder.parent, records, made)
    return folder


def write_beside(parent, records, made):
    """Write the paper's arms, a drive and another test set beside the results."""
    for name in ("paper", "drive_kitti", "kodak"):
        (parent / name).mkdir()
    arms = [
        {"arm": arm, "lmbda": lmbda, "seed": seed, "steps": 4000, "core_hours": 2.37}
        | {"bpp": 0.413 + 11.3 * lmbda + 0.021 * i, "psnr": 26.31 + 0.13 * i}
        | {"roi_psnr": 25.17 + 0.71 * i + 0.11 * seed, "bg_psnr": 26.53 - 0.17 * i}
        for i, arm in enumerate(ARMS)
        for lmbda, seed in ((0.0067, 0), (0.0067, 1), (0.018, 0))
    ]
    arms = [arm | {"codec": arm["arm"], "alpha": ALPHAS[arm["arm"]]} for arm in arms]
    write(parent / "paper" / "arms.json", {"rows": arms})
    costs = [
        {"codec": arm, "lmbda": 0.0067, "alpha": ALPHAS[arm], "difference": change}
        | {"low": change - 0.34, "high": change + 0.36}
        for arm, change in (("roi-features", 1.27), ("roi-mask-both", -6.83))
    ]
    write_tables(parent / "paper", {"costs": pd.DataFrame(costs)})
    swaps = [
        {"arm": arm, "hooks": hooks, "bpp": 0.431, "roi_psnr": 25.3, "bg_psnr": 26.7, "lmbda": rate}
        | (
            {}
            if hooks == "own"
            else {"bits": -1.73 * i - 0.37, "roi": -0.59 * i - 0.05 - more, "bg": 0.23 * i + 0.11}
        )
        for rate, more in ((0.0067, 0), (0.0025, 0.21))
        for i, arm in enumerate(ARMS)
        for hooks in ("own", "zeros", "ones", "inverted", "another")
        if arm != "roi-features" or hooks not in ("ones", "inverted")
    ]
    write(parent / "paper" / "swaps.json", {"rows": swaps})
    drive = [
        {"link": link, "label": label, "network": network, "frames": 30, "dropped": dropped}
        | {"delay_p95": 98.73}
        | {"roi_psnr": 29.37 + i * better, "bg_psnr": 26.41 + 0.1 * i * better}
        for i, link in enumerate(("1 Mbit/s", "2 Mbit/s"))
        for network in ("whole", "lossy")
        for label, better, dropped in (("roi_vbr", 2.13, 0), ("x265 medium intra", 3.17, 7))
    ]
    write_tables(parent / "drive_kitti", {"drive": pd.DataFrame(drive)})
    about = {"fps": 10.0, "loss": 0.01, "seeds": [0]}
    write(
        parent / "drive_kitti" / "drive_provenance.json",
        {"frames": 30, "roi": "labelled boxes", "parameters": about},
    )
    write(parent / "kodak" / "records.json", records)
    table = made["bd_rates"].select_dtypes(float).filter(regex="^(bd_rate|low|high)$") + 17.3
    write_tables(
        parent / "kodak",
        {"bd_rates": made["bd_rates"].assign(**table), "published": made["published"]},
    )


def detections(rates):
    """detection.csv and detection_at_bpp.csv: what a detector finds falls with the rate."""
    names = ("agnostic_ap50", "map50", "map50_95")
    rows = [
        {"detector": "yolo", "codec": "uncompressed", "label": "uncompressed", "objects": 109}
        | dict.fromkeys(names, 0.8421)
    ]
    rows[0] |= {f"{name}_loss{end}": 0.0 for name in names for end in ("", "_low", "_high")}
    for _, point in rates.iterrows():
        row = point[
            ["codec", "label", "run", "lmbda", "alpha", "quality", "qoffset", "bpp"]
        ].to_dict() | {"detector": "yolo", "objects": 109}
        for name in names:
            loss = 3.7 / point["bpp"] ** 0.5
            row |= {
                name: 0.8421 * (1 - loss / 100),
                f"{name}_loss": loss,
                f"{name}_loss_low": loss - 2.3,
                f"{name}_loss_high": loss + 3.1,
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    at = table[table["codec"] == "roi_vbr"].iloc[:2].assign(at_bpp=0.15, strength=0.5)
    return table, at


def write(path, content):
    path.write_text(json.dumps(content))


def text_of(results, folder, out):
    """The report's text; it must compile without a warning."""
    assert build.build(results, folder, out) == []
    return "\n".join(page.extract_text() for page in PdfReader(out).pages)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("report") / "all" / "full")


@pytest.fixture(scope="module")
def full_text(full):
    return text_of(full, full.parent / "none", full.parent.parent / "full.pdf")


def test_a_section_for_every_file_and_none_without(full, full_text, tmp_path):
    titles = {
        "What a sharper ROI costs",
        "Against each other",
        "What a detector still finds",
        "Exactness",
        "Short trainings",
        "Cost",
        "Conclusion",
        "A drive over a thin link",
        "Where it wins, where it loses",
        "Does an arm use what it is given?",
        "The paper’s codec",
        "for 300 epochs",
    }
    assert {title for title in titles if title in full_text} == titles
    (tmp_path / "least").mkdir()
    for name in ("records.json", "rates.csv"):
        shutil.copy(full / name, tmp_path / "least")
    least = text_of(tmp_path / "least", tmp_path / "none", tmp_path / "least.pdf")
    assert not any(title in least for title in titles)
    assert "Rate and quality" in least
    (tmp_path / "least" / "rates.csv").unlink()
    with pytest.raises(ValueError, match=r"least/rates\.csv: no such file"):
        build.build(tmp_path / "least", tmp_path / "none", tmp_path / "least.pdf")


@pytest.mark.slow
def test_sizes_and_threads_of_speeds_and_later_measures_are_shown_where_they_are(full, tmp_path):
    shutil.copytree(full, tmp_path / "full")
    rates = pd.read_csv(full / "rates.csv").assign(yuv_psnr_mean=33.217, haarpsi=0.81234)
    rates.to_csv(tmp_path / "full" / "rates.csv", index=False)
    speed = json.loads((full / "speed.json").read_text())
    rows = [
        row | {"frame": frame, "threads": threads, "median": (100 * i + 10 * threads + 7) / 1000}
        for i, frame in enumerate(([375, 1242], [1080, 1920]))
        for threads in (1, 2)
        for row in speed["rows"]
    ]
    about = {"rows": rows, "frames": 31, "warm_up": 3}
    write(tmp_path / "full" / "speed.json", about)
    text = text_of(tmp_path / "full", tmp_path / "none", tmp_path / "full.pdf")
    for shown in ("YUV dB", "33.22", "HaarPSI", "0.8123", "1242×375: encode", "1920×1080: encode"):
        assert shown in text
    for milliseconds in (17, 27, 117, 127):
        assert f"{milliseconds} (173)" in text


SHOWN = {
    "rates": ["bpp", "roi_psnr", "bg_psnr", "ms_ssim"],
    "equal_background": ["roi_bd_rate", "low", "high"],
    "bd_rates": ["bd_rate", "low", "high", "bd_psnr"],
    "kodak/published": ["bd_rate", "low", "high"],
    "kodak/bd_rates": ["bd_rate", "low", "high"],
    "drive_kitti/drive": ["roi_psnr", "bg_psnr", "dropped", "delay_p95"],
    "byte_ratios": ["ratio", "low", "high", "reached", "hull"],
    "one_rate": ["difference"],
    "detection": ["agnostic_ap50", "objects"],
    "detection_at_bpp": [
        f"{name}_loss{end}" for name in ("agnostic_ap50", "map50") for end in ("", "_low", "_high")
    ],
    "detection_at_loss": ["strength", "agnostic_ap50_loss", "map50_loss"],
    "training": ["step", "hours"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name, columns in SHOWN.items() for column in columns]
)
def test_every_measured_column_reaches_the_text(full, full_text, tmp_path, name, column):
    other = shutil.copytree(full.parent, tmp_path / "all") / "full"
    path = (other.parent if "/" in name else other) / f"{name}.csv"
    table = pd.read_csv(path)
    table[column] = (
        (table[column] * 3).round() if table[column].dtype.kind == "i" else table[column] * 1.37
    )
    table.to_csv(path, index=False)
    assert text_of(other, tmp_path / "none", tmp_path / "full.pdf") != full_text


def changed_json(full, tmp_path, name, change):
    """The report's text after `change` of every row of a JSON file beside the results."""
    other = shutil.copytree(full.parent, tmp_path / "all") / "full"
    rows = json.loads((other.parent / name).read_text())["rows"]
    write(other.parent / name, {"rows": [change(row) for row in rows]})
    return text_of(other, tmp_path / "none", tmp_path / "full.pdf")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key"),
    [("arms", key) for key in ("bpp", "roi_psnr", "bg_psnr", "core_hours", "steps")]
    + [("swaps", key) for key in ("bits", "roi", "bg")],
)
def test_every_measured_number_of_the_papers_arms_reaches_the_text(
    full, full_text, tmp_path, name, key
):
    def change(row):
        return row | ({key: 2 * row[key]} if key in row else {})

    assert changed_json(full, tmp_path, f"paper/{name}.json", change) != full_text


def test_the_papers_arms_are_compared_with_the_loss_alone(full, full_text, tmp_path):
    arms = pd.DataFrame(json.loads((full.parent / "paper" / "arms.json").read_text())["rows"])
    means = arms[arms["lmbda"] == 0.0067].groupby("arm")[["bpp", "roi_psnr", "bg_psnr"]].mean()
    features, zeros = means.loc["roi-features"], means.loc["roi-zeros"]
    bytes_more = 100 * (features["bpp"] / zeros["bpp"] - 1)
    roi, bg = (f"{features[k] - zeros[k]:+.2f}".replace("-", "−") for k in ("roi_psnr", "bg_psnr"))
    text = " ".join(full_text.split())
    assert (
        f"roi-features against roi-zeros: ROI {roi} dB, background {bg} dB, "
        f"{bytes_more:.1f} % more bytes" in text
    )
    assert "a cost of 1.3 % more [0.9, 1.6]" in text
    assert "−6.8 [−7.2, −6.5]" in text  # of roi-mask-both, in the table
    assert "No swap moves" not in text
    assert "the ROI by 2.03 and 1.82 dB over zeros, at λ 0.0025 and 0.0067" in text
    deaf = changed_json(full, tmp_path, "paper/swaps.json", lambda r: r | {"roi": 0.03})
    assert "the ROI of roi-features and roi-mask-both by 0.1 dB" in " ".join(deaf.split())


def abstract(text):
    return " ".join(text.split("Abstract.")[1].split("1 Two questions")[0].split())


def test_the_abstract_has_five_sentences_and_three_measured_numbers(full, full_text):
    said = abstract(full_text)
    assert len(re.findall(r"[.](?= [A-Z]|$)", said)) == 5
    ratio = pd.read_csv(full / "byte_ratios.csv").query("ours == 'roi_vbr'").iloc[0]
    assert f"{ratio['ratio']:.2f} " in said
    kodak = pd.read_csv(full.parent / "kodak" / "bd_rates.csv")
    kodak = kodak[kodak["bg_loss"].isna() & (kodak["metric"] == "psnr")].iloc[0]
    assert f"{abs(kodak['bd_rate']):.1f} %" in said
    assert "costs 1.3 % more [0.9, 1.6] when its encoder gets the features" in said
    assert "and 6.8 % less [−7.2, −6.5] when encoder and decoder know where the ROI is" in said


def test_without_costs_the_abstract_says_what_features_change(full, tmp_path):
    other = shutil.copytree(full.parent, tmp_path / "all") / "full"
    (other.parent / "paper" / "costs.csv").unlink()
    said = abstract(text_of(other, tmp_path / "none", tmp_path / "out.pdf"))
    assert "change the ROI by +0.71 dB and the background by −0.17 dB" in said


def test_the_shipped_results_make_a_report_of_at_most_ten_pages(tmp_path):
    said = abstract(text_of(REFERENCE / "shipped", tmp_path / "none", tmp_path / "out.pdf"))
    assert len(PdfReader(tmp_path / "out.pdf").pages) <= 10
    assert len(re.findall(r"[.](?= [A-Z]|$)", said)) == 5
    costs = pd.read_csv(REFERENCE / "paper" / "costs.csv").query("alpha == 0.9")
    costs = costs.set_index("label")["difference"]["object features"]
    assert f"between {-costs.min():.1f} % less and {costs.max():.1f} % more" in said


def scaled(content, factor=1.37):
    """JSON or a table with all measured numbers scaled: not settings, nor what counts as one."""
    if isinstance(content, dict):
        kept = ("setting", "parameters", "packages", "frame", "lmbda", "alpha")
        return {
            k: v
            if k in kept and (k in ("lmbda", "alpha") or not isinstance(v, float))
            else v * factor ** (1 + (k == "roi_count"))
            if k in ("roi_count", "count")
            else scaled(v, factor)
            for k, v in content.items()
        }
    if isinstance(content, list):
        return [scaled(v, factor) for v in content]
    if isinstance(content, pd.DataFrame):
        fixed = (
            "lmbda",
            "alpha",
            "qoffset",
            "quality",
            "bg_loss",
            "at_bpp",
            "bpp_low",
            "bpp_high",
            "pictures",
            "seed",
        )
        keep = [
            c
            for c in content
            if c in fixed
            or (c == "strength" and "strengths" not in content)
            or c.endswith("_strength")
            or content[c].dtype.kind not in "fi"
        ]
        return content.assign(
            **{c: (content[c] * factor).astype(content[c].dtype) for c in content if c not in keep}
        )
    return round(content * factor, 9) if isinstance(content, float) else content


def test_no_measured_number_is_typed_by_hand(full, full_text, tmp_path):
    other = shutil.copytree(full.parent, tmp_path / "all") / "full"
    for path in other.parent.glob("*/*"):
        if path.suffix == ".csv":
            scaled(pd.read_csv(path)).to_csv(path, index=False)
        else:
            write(path, scaled(json.loads(path.read_text())))
    text = text_of(other, tmp_path / "none", tmp_path / "full.pdf")
    before, after = (
        re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", t.split("References")[0])
        for t in (full_text, text)
    )
    same = {number for number, other in zip(before, after, strict=True) if number == other}
    settings = {f"{0.001 * 2**i:.4f}" for i in range(7)} | {
        *("0.0025", "0.0067", "0.012", "0.0120"),  # λ
        "0.90",
        "0.8",
        "0.95",
        "0.4",
        "0.3",
        "1.0",
        "0.1",
        "0.15",
    }
    sections = {number for number in before if re.fullmatch(r"[1-9]\.[1-9]", number)}
    assert same <= CONSTANTS | settings | sections
    assert len(before) > 150


@pytest.mark.parametrize("column", ["bpp", "roi_sse", "bg_sse", "ms_ssim"])
def test_every_measured_column_of_the_reference_records_reaches_the_text(tmp_path, column):
    folder = shutil.copytree(REFERENCE / "one_rate", tmp_path / "one_rate")
    records = json.loads((folder / "records.json").read_text())
    plain = text_of(folder, tmp_path / "none", tmp_path / "out.pdf")
    changed = [r | {column: r[column] * 1.37} for r in records]
    write(folder / "records.json", changed)
    write_tables(folder, {"rates": rate_table(changed)})
    assert text_of(folder, tmp_path / "none", tmp_path / "out.pdf") != plain


@pytest.mark.slow
def test_figures_are_the_same_bytes_when_drawn_again_and_others_when_their_table_changes(
    full, tmp_path
):
    made = build.draw(full, tmp_path / "a")
    assert set(made) == {
        "rate_psnr",
        "roi_plane",
        "detection",
        "training",
        "arms",
    }
    build.draw(full, tmp_path / "b")
    names = {f"{name}.{kind}" for name in made for kind in ("pdf", "png")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in names
    )
    assert text_of(full, tmp_path / "a", tmp_path / "out.pdf")
    other = shutil.copytree(full.parent, tmp_path / "all") / "full"
    for name in ("rates", "roi_trade", "detection", "training"):
        scaled(pd.read_csv(full / f"{name}.csv"), 1.1).to_csv(other / f"{name}.csv", index=False)
    arms = other.parent / "paper" / "arms.json"
    write(arms, scaled(json.loads(arms.read_text()), 1.1))
    build.draw(other, tmp_path / "b")
    assert all(
        (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()
        for name in names
    )


def test_models_of_one_rate_stand_in_a_table_with_all_that_was_measured(tmp_path):
    folder = REFERENCE / "one_rate"
    text = text_of(folder, tmp_path / "none", tmp_path / "out.pdf")
    rates = pd.read_csv(folder / "rates.csv").query("codec == 'roi_vbr (fixed_rate)'")
    assert len(rates) == 3
    for name, form in {"bpp": "{:.3f}", "roi_psnr": "{:.2f}", "bg_psnr": "{:.2f}"}.items():
        assert all(value in text for value in rates[name].map(form.format))


@pytest.mark.slow
def test_the_readmes_curves_are_those_of_the_shipped_results(tmp_path):
    build.draw(REFERENCE / "shipped", tmp_path)
    for name in ("rate_psnr.png", "roi_plane.png", "detection.png"):
        drawn, shown = (
            np.asarray(Image.open(folder / name).convert("L"), float)
            for folder in (tmp_path, REPOSITORY / "report" / "pictures")
        )
        assert drawn.shape == shown.shape
        assert (
            np.abs(drawn - shown).mean() < 0.5
        )  # another processor may smooth an edge by another grey


def test_a_codec_whose_every_mode_costs_much_background_has_a_curve():
    rates = [(bpp, more) for more in (0, 0.3, 0.4) for bpp in (0.5, 1, 2)]
    points = [
        {
            "lmbda": bpp,
            "bpp": bpp,
            "alpha": 0.5 + more,
            "roi_psnr": 30 + bpp + more,
            "bg_psnr": 29 + bpp - 9 * more,
        }
        for bpp, more in rates
    ]
    figure = figures.rate_curves(pd.DataFrame(points).assign(codec="roi_vbr"), pd.DataFrame())
    assert named(figure.axes[0]) == {"roi_vbr, uniform", "roi_vbr, α 0.8"}
    pictures.plt.close(figure)


def named(ax):
    """The names of lines that stand beside their ends."""
    return {text.get_text() for text in ax.texts}


def test_lines_are_named_beside_their_ends_without_overlaps():
    trade, rates, seen = (
        pd.read_csv(REFERENCE / "shipped" / f"{name}.csv")
        for name in ("roi_trade", "rates", "detection")
    )
    for figure in (figures.rate_curves(rates, trade), figures.detection_curves(seen, trade)):
        for ax in figure.axes:
            lines = [line for line in ax.get_lines() if line.get_label()[0] != "_"]
            assert named(ax) == {line.get_label() for line in lines}
            places = sorted(text.get_position()[1] for text in ax.texts)
            points = 72 * ax.figure.get_figheight() * 0.8
            assert np.diff(places).min() * points > figures.NAME_SIZE
        pictures.plt.close(figure)
    codecs = {name.split(",")[0] for name in named(ax)} - {"uncompressed"}
    assert codecs == {"roi_vbr", "roi_vbr (yuv)", "x265 slow", "x264 slow"}


@pytest.mark.parametrize("names", [("psnr", "roi_psnr"), ("ms_ssim_loss", "roi_ms_ssim_loss")])
def test_a_history_of_one_epoch_shows_points(names):
    entry = {"step": 3, "test": {"loss": 1.0, "bpp_loss": 0.5} | dict.fromkeys(names, 0.9)}
    figure = pictures.history([entry])
    assert all(
        line.get_marker() == "o"
        for ax in figure.axes
        for line in ax.get_lines()
        if len(line.get_xdata())
    )
    assert len(figure.axes[2].get_lines()) >= 2
    assert figure.axes[2].get_ylabel() == ("test PSNR (dB)" if "psnr" in names else "test MS-SSIM")
    pictures.plt.close(figure)


def test_tables_are_shown_with_what_they_have():
    table = pd.DataFrame(
        {"label": ["a", "b"], "bpp": [0.12345, np.nan], "alpha": [np.nan, np.nan], "more": [1, 2]}
    )
    shown = formatted(table, RATE_COLUMNS)
    assert shown.to_dict("list") == {"codec": ["a", "b"], "bpp": ["0.123", "–"]}


def test_yuv_curves_need_weights_tuned_for_it():
    points = pd.DataFrame(
        {"codec": "roi_vbr (yuv)", "bpp": bpp, "lmbda": bpp, "alpha": alpha, "run": ""}
        | dict.fromkeys(figures.YUV_AXES, 30 + bpp + alpha)
        for alpha in (0.5, 0.9)
        for bpp in (0.25, 0.5, 1)
    )
    theirs = points[:3].assign(codec="x265 slow", alpha=np.nan, qoffset=0.0)
    both = pd.concat([points, theirs, theirs.assign(codec="x265 slow 4:2:0")])
    figure = figures.yuv_rate_curves(both, pd.DataFrame())
    assert named(figure.axes[0]) >= {"x265 slow 4:2:0"}
    assert "x265 slow" not in named(figure.axes[0])
    pictures.plt.close(figure)
    assert figures.yuv_rate_curves(theirs, pd.DataFrame()) is None


def test_rates_far_above_ours_are_not_drawn():
    points = [
        {"bpp": bpp, "roi_psnr": 30 + bpp, "bg_psnr": 29 + bpp, "quality": bpp}
        for bpp in (0.25, 0.5, 1, 2, 4)
    ]
    rows = [p | {"codec": "roi_vbr", "alpha": 0.5} for p in points[:3]] + [
        p | {"codec": "x265 medium", "qoffset": 0.0} for p in points
    ]
    rows.append(
        {"codec": "jpeg", "bpp": 3, "roi_psnr": 33, "bg_psnr": 32, "quality": 90, "qoffset": 0.0}
    )
    for shown, highest in ((rows, 1), (rows[3:], 4)):
        figure = figures.rate_curves(pd.DataFrame(shown), pd.DataFrame())
        assert (
            max(rate for ax in figure.axes for line in ax.get_lines() for rate in line.get_xdata())
            == highest
        )
        assert ("JPEG" in named(figure.axes[0])) == (highest == 4)
        pictures.plt.close(figure)


@pytest.mark.parametrize(
    "missing",
    [
        "equal_background",
        "roi_trade",
        "bd_rates",
        "byte_ratios",
        "detection_at_bpp",
        "detection_at_loss",
    ],
)
def test_a_report_without_a_table_leaves_its_sections_out(full, tmp_path, missing):
    other = tmp_path / "full"
    shutil.copytree(full, other)
    (other / f"{missing}.csv").unlink()
    assert len(text_of(other, tmp_path / "none", tmp_path / "out.pdf")) > 1000


@pytest.mark.parametrize("name", ["kodak", "one_rate", "shipped"])
def test_every_folder_of_reference_results_makes_a_report(name, tmp_path):
    assert text_of(REFERENCE / name, tmp_path / "none", tmp_path / "out.pdf")


def test_a_figure_without_data_is_none_and_takes_its_files_away(tmp_path):
    empty = pd.DataFrame()
    assert (
        figures.rate_curves(empty, empty)
        is figures.roi_plane(empty)
        is figures.alpha_sweep(empty)
        is figures.training_curves(empty)
        is None
    )
    assert figures.arm_curves(empty) is figures.detection_curves(empty, empty) is None
    (tmp_path / "old.png").write_bytes(b"stale")
    assert save_figure(None, tmp_path, "old") == []
    assert not list(tmp_path.iterdir())


def test_only_arms_of_several_rates_have_a_curve():
    points = {"arm": ["plain", "plain", "crops"], "lmbda": [0.001, 0.01, 0.01]}
    arms = pd.DataFrame(points | {"bpp": 0.2, "roi_psnr": 25.0, "bg_psnr": 24.0})
    figure = figures.arm_curves(arms)
    assert [line.get_label() for line in figure.axes[0].lines] == ["plain"]
    plt.close(figure)
    assert figures.arm_curves(arms.iloc[1:]) is None
