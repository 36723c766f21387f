"""benchmarks/paper_arms.py: a row an arm, and each arm's swap test."""

import paper_arms
import pytest
from conftest import strictly

from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import load_splits
from roilib.engines import train
from roilib.engines.runs import open_run
from roilib.evaluation.evaluate import evaluate, write_records
from roilib.metrics import pooled_psnr

ARMS = {  # name: what differs
    "plain": {"zero_hooks": True, "alpha": 0.5},
    "roi-mask-both": {"mask_hooks": True, "decoder_roi": True, "alpha": 0.9},
    "roi-mask-both-again": {"mask_hooks": True, "decoder_roi": True, "alpha": 0.9, "seed": 1},
    "plain-lower": {"zero_hooks": True, "alpha": 0.5, "lmbda": 0.001},
}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"alpha": 0.9}, "roi-features"),
        ({"alpha": 0.9, "conditioning": "sft"}, "roi-features-sft"),
        ({"alpha": 0.9, "decoder_roi": True}, "roi-features-both"),
        ({"alpha": 0.995, "loss_form": "paper"}, "roi-features-paper-loss"),
        ({"alpha": 0.9, "crop": "native", "obj_det_img_size": 320}, "roi-features-320"),
        ({"alpha": 0.9, "crop": "native", "zero_hooks": True}, "roi-zeros"),
        ({"alpha": 0.5}, "plain-features"),
        ({"alpha": 0.9, "mask_hooks": True}, "roi-mask"),
        ({"alpha": 0.9, "zero_hooks": True}, "roi-zeros"),
        (ARMS["plain"], "plain"),
        (ARMS["roi-mask-both"], "roi-mask-both"),
    ],
)
def test_an_arm_is_named_by_its_loss_and_what_its_encoder_sees(tiny_parameters, values, name):
    model = {"which": "hyperprior_with_obj_features", "crop": "grid"}
    assert paper_arms.arm_name(tiny_parameters(**(model | values))) == name


def test_another_model_is_no_arm(tiny_parameters):
    with pytest.raises(ValueError, match="an arm is a hyperprior_with_obj_features"):
        paper_arms.arm_name(tiny_parameters(which="hyperprior"))


@pytest.mark.slow
def test_rows_are_those_of_the_records_and_only_first_seeds_swap(
    tiny_parameters, tiny_kitti, tmp_path, capsys
):
    runs, records = {}, []
    for name, values in ARMS.items():
        p = tiny_parameters(which="hyperprior_with_obj_features", **values)
        runs[name] = open_run(p)
        train.train(runs[name], *load_splits(p))
        codec, data = load_codec(runs[name].weights), load_splits(p)[1]
        records += [record for record, _ in evaluate(codec, data)]
    write_records(tmp_path / "results", "records", records)
    folder = tmp_path / "results"
    logdir = str(runs["plain"].folder.parent)
    words = [logdir, str(folder), "--data-root", str(tiny_kitti), "--pictures", "2"]
    assert paper_arms.main(words) == 0
    arms, swaps = (strictly(folder / f"{name}.json") for name in ("arms", "swaps"))
    assert arms["environment"]["commit"]
    lower = [row for row in arms["rows"] if row["lmbda"] == 0.001]
    assert [row["arm"] for row in lower] == ["plain"]
    rows = {(row["arm"], row["seed"]): row for row in arms["rows"] if row not in lower}
    assert rows.keys() == {("plain", 0), ("roi-mask-both", 0), ("roi-mask-both", 1)}
    own = [r for r in records if r["run"] == runs["roi-mask-both-again"].folder.name]
    assert len(own) == 2
    row = rows["roi-mask-both", 1]
    assert (row["steps"], row["alpha"]) == (3, 0.9)
    assert row["roi_psnr"] == pooled_psnr(own, "roi_")
    assert row["bpp"] == sum(r["bpp"] for r in own) / 2
    first = [arm for arm, seed in rows if seed == 0]
    assert [(row["arm"], row["lmbda"] == 0.001, row["hooks"]) for row in swaps["rows"]] == [
        (*arm, hooks)
        for arm in [*((arm, False) for arm in first), ("plain", True)]
        for hooks in ("own", "zeros", "ones", "inverted", "another")
    ]
    assert {row["pictures"] for row in swaps["rows"]} == {2}
    (folder / "swaps.json").unlink()
    assert paper_arms.main([*words, "--arms-only"]) == 0
    assert not (folder / "swaps.json").exists()
    assert paper_arms.main([logdir, str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("paper_arms: ")
