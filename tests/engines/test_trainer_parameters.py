"""Each parameter changes what its description says: one `test_<name>` each, on real runs."""

import numpy as np
import pytest
import torch
from conftest import on_gpu, other_detector, street, write_tiny_kitti
from PIL import Image
from torch._dynamo.eval_frame import OptimizedModule

from roilib.datasets.dataset import batches, load_splits
from roilib.engines import train
from roilib.engines.distributed import process_count
from roilib.engines.runs import open_run
from roilib.engines.step import forward, knobs, start, train_step
from roilib.models.layers import FeatureTransform
from roilib.models.weights import build_model, read_weights, save_weights
from roilib.parameters import Parameters
from roilib.roi import quality_index
from roilib.utils.device import resolve_device, resolve_precision
from roilib.utils.pretrained import PRETRAINED_DETECTOR, pretrained

WITH_FEATURES = {"which": "hyperprior_with_obj_features"}


def trained(p):
    """The run of `p` and its metrics."""
    run = open_run(p)
    return run, train.train(run, *load_splits(p))


def first_batch(p, train=True):
    data = load_splits(p)[0 if train else 1]
    return next(iter(batches(data, p, train)))


def first_output(p, **change):
    """The output of an untrained model for the first batch, with the same noise each time."""
    session = start(p, steps_per_epoch=2)
    with torch.no_grad():
        return forward(session, first_batch(p) | change)[0]


def first_terms(p):
    """The loss terms of an untrained model on the first batch."""
    session, batch = start(p, steps_per_epoch=2), first_batch(p)
    output, x, roi_mask = forward(session, batch)
    return {name: float(v.detach()) for name, v in session.loss(output, x, roi_mask).items()}


def differ(a, b):
    """Whether two models give other pictures and other bits for w."""
    return not torch.equal(a["x_hat"], b["x_hat"]) and not torch.equal(
        a["likelihoods"]["w"], b["likelihoods"]["w"]
    )


def same(a, b):
    """Whether two models give one picture and the same bits for w."""
    return torch.equal(a["x_hat"], b["x_hat"]) and torch.equal(
        a["likelihoods"]["w"], b["likelihoods"]["w"]
    )


def test_every_parameter_has_its_test():
    assert [name for name in Parameters.model_fields if f"test_{name}" not in globals()] == []


def test_what(tiny_parameters):
    run, _ = trained(tiny_parameters())
    p = tiny_parameters(what="test", model_load_file=str(run.weights))
    tested = open_run(p)
    metrics = train.test(tested, load_splits(p)[1])
    assert (metrics["steps"], metrics["train"]) == (0, None)
    assert metrics["test"]["loss"] > 0
    assert not tested.weights.exists()
    assert not tested.checkpoints.all()


def test_which(tiny_parameters):
    plain = first_terms(tiny_parameters(which="hyperprior"))
    with_objs = first_terms(tiny_parameters(which="hyperprior_eval_with_objs"))
    extended = first_terms(tiny_parameters(which="hyperprior_with_obj_features"))
    assert with_objs.keys() == plain.keys() | {"roi_mse_loss", "bg_mse_loss"}
    assert {name: with_objs[name] for name in plain} == pytest.approx(
        plain, rel=1e-5
    )  # the same, ROI terms logged
    assert extended.keys() == with_objs.keys() | {"bpp_w"}


def test_device(tiny_parameters):
    session = start(tiny_parameters(device="cpu"), 2)
    assert {v.device.type for v in session.codec.parameters()} == {"cpu"}
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(ValueError, match=rf"^device {name} [^\n]+$"):
            start(tiny_parameters(device=name), 2)


@on_gpu
def test_device_cuda(tiny_parameters):
    session = start(tiny_parameters(device="cuda", **WITH_FEATURES), 2)
    assert {
        v.device.type for v in [*session.codec.parameters(), *session.detector.parameters()]
    } == {"cuda"}
    assert train_step(session, first_batch(session.p))[0]["loss"].isfinite()


@on_gpu
def test_device_cuda_makes_a_codec_whose_pictures_are_those_of_the_cpu(tiny_parameters):
    run, metrics = trained(tiny_parameters(device="cuda", which="roi_vbr", M=48, lmbda=0.012))
    assert metrics["steps"] == 3
    on_cuda, on_cpu = run.codec("cuda"), run.codec("cpu")
    stream = on_cuda.encode(street(0))
    assert np.array_equal(on_cuda.decode(stream), on_cpu.decode(stream))


@on_gpu
def test_device_cuda_resumes(tiny_parameters):
    shorter, _ = trained(tiny_parameters(device="cuda", max_steps=2))
    _, metrics = trained(tiny_parameters(device="cuda", max_steps=3))
    assert metrics["continues"] == {"run": shorter.folder.name, "step": 2}
    assert metrics["steps"] == 3
    assert np.isfinite(metrics["test"]["loss"])


@on_gpu
def test_precision_16_trains_on_cuda(tiny_parameters):
    session = start(tiny_parameters(device="cuda", precision="16"), 2)
    assert train_step(session, first_batch(session.p))[0]["loss"].isfinite()
    assert session.step == 1


def test_devices(tiny_parameters):
    assert (
        process_count(tiny_parameters(devices=2)) == 2
    )  # on a CPU; that they train as one is tested in test_distributed.py
    assert process_count(tiny_parameters()) == 1


def test_checkpoint_seconds(tiny_parameters):
    for seconds, steps in ((0, [3, 2]), (1e6, [3])):
        run, _ = trained(
            tiny_parameters(
                checkpoint_seconds=seconds, logdir=f"{tiny_parameters().logdir}/{seconds}"
            )
        )
        assert [int(path.stem.removeprefix("step-")) for path in run.checkpoints.recent()] == steps


def test_batch_size(tiny_parameters):
    for size in (1, 3):
        p = tiny_parameters(batch_size=size, max_epochs=1)
        assert len(first_batch(p)["x"]) == size
        assert trained(p)[1]["steps"] == {1: 3, 3: 2}[size]  # four pictures, at most max_steps


@pytest.mark.slow
def test_num_workers(tiny_parameters, tmp_path):
    metrics = []
    for count in (0, 2):
        p = tiny_parameters(num_workers=count, logdir=str(tmp_path / str(count)))
        assert batches(load_splits(p)[0], p, train=True).num_workers == count
        metrics.append(trained(p)[1]["history"])
    assert metrics[0] == metrics[1]


def test_max_lr(tiny_parameters):
    for max_lr in (1e-3, 5e-3):
        session = start(tiny_parameters(max_lr=max_lr, max_steps=100), steps_per_epoch=100)
        rates = []
        for _ in range(100):
            rates.append(session.optimizer.param_groups[0]["lr"])
            session.optimizer.step()
            session.scheduler.step()
        assert max(rates) == pytest.approx(max_lr)
        assert 0 < rates.index(max(rates)) < 50
        assert rates[-1] < rates[0] < max_lr / 10


def test_warmup(tiny_parameters):
    for warmup in (0.1, 0.6):
        session = start(tiny_parameters(warmup=warmup, max_steps=100), steps_per_epoch=100)
        rates = []
        for _ in range(100):
            rates.append(session.scheduler.get_last_lr()[0])
            session.optimizer.step()
            session.scheduler.step()
        assert rates.index(max(rates)) == pytest.approx(100 * warmup, abs=1)


def test_max_epochs(tiny_parameters):
    _, metrics = trained(tiny_parameters(max_epochs=2, max_steps=None))
    assert (len(metrics["history"]), metrics["steps"]) == (2, 4)


def test_max_steps(tiny_parameters):
    _, metrics = trained(tiny_parameters(max_epochs=50, max_steps=1))
    assert (len(metrics["history"]), metrics["steps"]) == (1, 1)


def test_obj_det_img_size(tiny_parameters):
    small, large = (tiny_parameters(obj_det_img_size=size, **WITH_FEATURES) for size in (64, 96))
    assert first_batch(small)["detector_x"].shape == (2, 3, 64, 64)
    assert first_batch(large)["detector_x"].shape == (2, 3, 96, 96)
    assert torch.equal(first_batch(small)["x"], first_batch(large)["x"])
    assert differ(first_output(small), first_output(large))


def test_compr_img_size(tiny_parameters):
    small, large = (tiny_parameters(compr_img_size=size, **WITH_FEATURES) for size in (64, 128))
    assert first_output(small)["x_hat"].shape == (2, 3, 64, 64)
    assert first_output(large)["x_hat"].shape == (2, 3, 128, 128)
    assert torch.equal(first_batch(small)["detector_x"], first_batch(large)["detector_x"])


def test_crop(tiny_parameters):
    square, native = (
        first_batch(tiny_parameters(crop=crop))["x"] for crop in ("square", "native")
    )  # of pictures 96 high
    pictures = [
        image
        for part in load_splits(tiny_parameters())
        for image, _, _ in (part[i] for i in range(len(part)))
    ]
    windows = (image.unfold(1, 64, 1).unfold(2, 64, 1).permute(1, 2, 0, 3, 4) for image in pictures)
    assert any((window == native[0]).all((2, 3, 4)).any() for window in windows)  # same pixels
    assert square.shape == native.shape
    frames = first_batch(tiny_parameters(crop="grid", **WITH_FEATURES))
    for x, frame, (_, _, top, left) in zip(*map(frames.get, ("x", "frame", "place")), strict=True):
        assert torch.equal(x, frame[:, top : top + 64, left : left + 64])
        assert top % 32 == left % 32 == 0


def test_features_are_those_of_the_whole_frame(tiny_parameters):
    p = tiny_parameters(crop="grid", **WITH_FEATURES)
    session, batch = start(p, 2), first_batch(p)
    cut = session.frame_features(batch["frame"], batch["place"], 64)
    frame, (_, _, top, left) = batch["frame"][1], batch["place"][1]
    whole = session.detector.codec_features(frame[None].float() / 255)[0]
    window = whole[0, :, top // 8 : top // 8 + 8, left // 8 : left // 8 + 8]
    torch.testing.assert_close(cut[0][1], window, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        output = session.codec.eval()(batch["x"].float() / 255, cut, batch["roi_mask"])
        session.model.eval()
        assert torch.equal(forward(session, batch)[0]["x_hat"], output["x_hat"])


def test_flip(tiny_parameters):
    plain, flipped = (
        tiny_parameters(flip=flip, batch_size=16, train_size_p1=1.0) for flip in (False, True)
    )
    a, b = first_batch(plain), first_batch(flipped)
    mirrored = [
        torch.equal(x.flip(-1), y) and not torch.equal(x, y)
        for x, y in zip(a["x"], b["x"], strict=True)
    ]
    assert 0 < sum(mirrored) < len(mirrored)
    for x, y, is_mirrored in zip(a["roi_mask"], b["roi_mask"], mirrored, strict=True):
        assert torch.equal(x.flip(-1) if is_mirrored else x, y)
    tests = [first_batch(tiny_parameters(flip=flip), train=False)["x"] for flip in (False, True)]
    assert torch.equal(*tests)


@pytest.mark.slow
def test_ema(tiny_parameters):
    p = tiny_parameters(ema=0.5, max_lr=0.01, max_steps=8, max_epochs=4)
    session = start(p, 2)
    assert start(tiny_parameters(), 2).ema is None
    batch, kept = first_batch(p), []
    for _ in range(4):
        train_step(session, batch)
        kept.append(session.codec.g_s[0].weight.detach().clone())
    wanted = kept[0]
    for weight in kept[1:]:
        wanted = 0.5 * wanted + 0.5 * weight
    assert torch.allclose(session.trained.g_s[0].weight, wanted, atol=1e-7)
    session.model.eval()
    averaged, latest = (
        forward(session, batch)[0]["x_hat"],
        session.codec.eval()(batch["x"].float() / 255)["x_hat"],
    )
    assert not torch.allclose(averaged, latest)
    run, metrics = trained(p)
    tested = train.test(
        open_run(tiny_parameters(what="test", model_load_file=str(run.weights))), load_splits(p)[1]
    )
    assert tested["test"]["loss"] == pytest.approx(metrics["test"]["loss"], rel=1e-5)


def test_fixed_rate(tiny_parameters):
    one = {"which": "roi_vbr", "N": 16, "lmbda": 0.02, "alpha": 0.5}
    for fixed, indices in ((True, {quality_index(0.02)}), (False, None)):
        p = tiny_parameters(fixed_rate=fixed, **one)
        drawn = [
            knobs(p, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])] * 2, 64, range(2), step)[0]
            for step in range(3)
        ]
        found = {int(q) for maps in drawn for q in maps.unique()}
        assert found == indices if fixed else len(found) > 3
    with pytest.raises(ValueError, match="fixed_rate belongs to roi_vbr"):
        tiny_parameters(fixed_rate=True)


def test_full_and_short_batches_see_all_rates(tiny_parameters):
    p, own = tiny_parameters(which="roi_vbr", N=16, batch_size=8), torch.zeros(0, 4)
    drawn = np.array(
        [knobs(p, [own] * 8, 64, range(8), step)[1].log2().mean((1, 2, 3)) for step in range(40)]
    )
    full = np.sort(drawn, 1)[:, 2:]  # but those below the range, and ROIs
    assert (full[:, -1] - full[:, 0]).min() > 3
    short = np.array(
        [knobs(p, [own] * 2, 64, range(2), step)[1].log2().mean((1, 2, 3)) for step in range(40)]
    )
    assert abs(short.mean() - drawn.mean()) < 0.7
    assert short.max() > drawn.max() - 1


def test_unlabelled(tiny_parameters, tmp_path):
    more = tmp_path / "more" / "deeper"
    more.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(street(i)).save(more / f"{i}.png")
    (more / "notes.txt").write_text("no picture")
    (train, test), (own, own_test) = (
        load_splits(tiny_parameters(unlabelled=v)) for v in (str(tmp_path / "more"), None)
    )
    assert train.ids == own.ids + [f"more/deeper/{i}.png" for i in range(3)]
    assert test.ids == own_test.ids
    assert train[len(own)][1].shape == (0, 4)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="empty: no pictures here"):
        load_splits(tiny_parameters(unlabelled=f"{more},{empty}"))
    with pytest.raises(ValueError, match="an empty name among the folders"):
        load_splits(tiny_parameters(unlabelled=f"{more},"))


def test_optimizer(tiny_parameters):
    plain, muon = (
        tiny_parameters(optimizer=name, which="roi_vbr", N=16) for name in ("adamw", "muon")
    )
    assert plain.name != muon.name
    session = start(muon, 2)
    kinds = {
        id(v): (group.get("muon", False), group["max_lr"])
        for group in session.optimizer.param_groups
        for v in group["params"]
    }
    found = {name: kinds.get(id(v)) for name, v in session.codec.named_parameters()}
    assert found["g_a.1.weight"] == (True, 2.5 * muon.max_lr)
    assert found["a_lin.1.weight"] == (False, 0.25 * muon.max_lr)
    assert found["g_a.1.bias"] == found["gain.0.weight"] == (False, muon.max_lr)
    assert [name for name, kind in found.items() if kind is None] == [
        "entropy_bottleneck.quantiles"
    ]
    assert len(start(plain, 2).optimizer.param_groups) == 1
    trained(muon)


def test_lmbda(tiny_parameters):
    small, large = (first_terms(tiny_parameters(lmbda=lmbda)) for lmbda in (0.001, 0.1))
    assert large["loss"] - small["loss"] == pytest.approx(
        0.099 * 255**2 * small["mse_loss"], rel=1e-4
    )
    assert small | {"loss": 0} == large | {"loss": 0}


def test_alpha(tiny_parameters):
    low, high = (first_terms(tiny_parameters(alpha=alpha, **WITH_FEATURES)) for alpha in (0.0, 1.0))
    assert low | {"loss": 0} == high | {"loss": 0}
    roi_share = float(first_batch(tiny_parameters(**WITH_FEATURES))["roi_mask"].mean())
    distortion = {"roi_mse_loss": roi_share, "bg_mse_loss": 1 - roi_share}
    for terms, name in ((low, "bg_mse_loss"), (high, "roi_mse_loss")):
        expected = 0.0037 * 255**2 * 2 * distortion[name] * terms[name]
        assert terms["loss"] - terms["bpp_loss"] == pytest.approx(expected, rel=1e-4)
    for which in (
        "hyperprior",
        "hyperprior_eval_with_objs",
    ):  # the baselines' loss is the plain one
        assert first_terms(tiny_parameters(which=which, alpha=0.9)) == first_terms(
            tiny_parameters(which=which)
        )


def test_metric(tiny_parameters):
    mse, similarity = (
        first_terms(tiny_parameters(metric=metric, compr_img_size=192, **WITH_FEATURES))
        for metric in ("mse", "ms-ssim")
    )
    assert {"mse_loss", "roi_mse_loss", "bg_mse_loss"} == mse.keys() - similarity.keys()
    assert {"ms_ssim_loss", "roi_ms_ssim_loss", "bg_ms_ssim_loss"} == similarity.keys() - mse.keys()
    assert similarity["loss"] - similarity["bpp_loss"] == pytest.approx(
        0.0037 * (1 - similarity["ms_ssim_loss"]), rel=1e-3
    )


def test_loss_form(tiny_parameters):
    corrected, paper = (
        first_terms(tiny_parameters(loss_form=form, **WITH_FEATURES))
        for form in ("corrected", "paper")
    )
    assert paper["loss"] < corrected["loss"]  # every area below 1 counts twice
    assert paper | {"loss": 0} == corrected | {"loss": 0}
    plain = {"which": "hyperprior_eval_with_objs"}
    assert first_terms(tiny_parameters(loss_form="paper", **plain)) == first_terms(
        tiny_parameters(**plain)
    )


def test_train_size_p1(tiny_parameters):
    sizes = [
        [len(part) for part in load_splits(tiny_parameters(train_size_p1=share))]
        for share in (0.0, 0.5, 1.0, None)
    ]
    assert sizes == [[0, 6], [3, 3], [6, 0], [5, 1]]  # None: 0.95, but one tests


def test_zero_hooks(tiny_parameters):
    p = tiny_parameters(zero_hooks=True, **WITH_FEATURES)
    assert start(p, 2).detector is None
    assert "detector_x" not in first_batch(p)
    assert differ(first_output(p), first_output(tiny_parameters(**WITH_FEATURES)))
    assert same(first_output(p), first_output(p))


def test_mask_hooks(tiny_parameters):
    p = tiny_parameters(mask_hooks=True, **WITH_FEATURES)
    assert start(p, 2).detector is None
    mask = first_batch(p)["roi_mask"]
    assert differ(first_output(p), first_output(p, roi_mask=1 - mask))
    zero = tiny_parameters(zero_hooks=True, **WITH_FEATURES)
    assert same(first_output(zero), first_output(zero, roi_mask=1 - mask))


def test_conditioning(tiny_parameters):
    p = tiny_parameters(conditioning="sft", **WITH_FEATURES)
    session = start(p, 2)
    assert all(isinstance(way, FeatureTransform) for way in session.codec.g_a_hooks)
    batch = first_batch(p)
    other = batch | {"detector_x": 255 - batch["detector_x"]}
    a, b = (forward(session, told)[0]["likelihoods"]["z"] for told in (batch, other))
    assert torch.equal(a, b)  # scales of one, shifts of zero
    for _ in range(2):
        train_step(session, batch)
    a, b = (forward(session, told)[0]["likelihoods"]["z"] for told in (batch, other))
    assert not torch.equal(a, b)


def test_decoder_roi(tiny_parameters):
    p = tiny_parameters(zero_hooks=True, decoder_roi=True, **WITH_FEATURES)
    session, batch = start(p, 2), first_batch(p)
    other = batch | {"roi_mask": 1 - batch["roi_mask"]}
    a, b = (forward(session, told)[0]["x_hat"] for told in (batch, other))
    assert torch.equal(a, b)  # gains of zero
    for _ in range(2):
        train_step(session, batch)
    a, b = (forward(session, told)[0]["x_hat"] for told in (batch, other))
    assert not torch.equal(a, b)


@pytest.mark.slow
def test_model_load_file(tiny_parameters, tmp_path):
    run, metrics = trained(tiny_parameters(max_lr=0.01))
    p = tiny_parameters(model_load_file=str(run.weights), max_steps=1)
    loaded, weights = start(p, 2).codec.state_dict(), read_weights(run.weights)[0]
    assert all(torch.equal(loaded[name], v) for name, v in weights.items())
    fresh, further = trained(tiny_parameters(max_steps=1))[1], trained(p)[1]
    assert abs(further["test"]["loss"] - metrics["test"]["loss"]) < abs(
        fresh["test"]["loss"] - metrics["test"]["loss"]
    )
    with pytest.raises(ValueError, match=r"^[^\n]*missing\.safetensors[^\n]*$"):
        start(tiny_parameters(model_load_file=str(tmp_path / "missing.safetensors")), 2)


@pytest.mark.slow
def test_training_the_extended_model_starts_from_the_baselines_picture(tiny_parameters):
    run, _ = trained(tiny_parameters(max_lr=0.01))
    baseline = tiny_parameters(model_load_file=str(run.weights))
    mask = WITH_FEATURES | {"mask_hooks": True}
    sft = WITH_FEATURES | {"conditioning": "sft"}
    for options in (WITH_FEATURES, mask, mask | {"decoder_roi": True}, sft):
        p = tiny_parameters(model_load_file=str(run.weights), **options)
        sessions = [start(parameters, 2) for parameters in (baseline, p)]
        for session in sessions:
            session.model.eval()
        plain, extended = (forward(session, first_batch(p))[0] for session in sessions)
        assert torch.allclose(plain["x_hat"], extended["x_hat"], atol=1e-5)
        assert torch.allclose(
            plain["likelihoods"]["y"], extended["likelihoods"]["y"][:, :12], atol=1e-5
        )
        assert extended["likelihoods"]["y"][:, 12:].log2().sum() > -0.01  # bits of the new ones
        sessions[1].model.train()
        train_step(sessions[1], first_batch(p))
        codec = sessions[1].codec
        way = codec.g_a_hooks[0].scale_shift if options is sft else codec.g_a[0]
        gains = [codec.roi_gain] if options.get("decoder_roi") else []
        moved = codec.g_s[0].weight[12:], way.weight[:, 3 if options is not sft else 0 :], *gains
        assert all(v.abs().max() > 0 for v in moved)  # what was zero learns
    with pytest.raises(ValueError, match=r"N=8, but the parameters say N=16"):
        start(tiny_parameters(model_load_file=str(run.weights), N=16, **WITH_FEATURES), 2)
    with pytest.raises(ValueError, match="which=hyperprior"):
        start(tiny_parameters(what="test", model_load_file=str(run.weights), **WITH_FEATURES), 2)


def test_logdir(tiny_parameters, tmp_path):
    run, metrics = trained(tiny_parameters(logdir=str(tmp_path / "deep" / "er")))
    assert run.folder.parent == tmp_path / "deep" / "er"
    assert run.folder.name == tiny_parameters().name
    assert metrics["history"] == trained(tiny_parameters())[1]["history"]


def test_dataset(tiny_parameters):
    for name in ("kitti", "sample"):  # one layout
        assert [len(part) for part in load_splits(tiny_parameters(dataset=name))] == [4, 2]
    with pytest.raises(
        ValueError, match="instances_train2017"
    ):  # another; its reader is tested in tests/datasets/test_coco.py
        load_splits(tiny_parameters(dataset="coco"))


def test_data_root(tiny_parameters, tmp_path):
    other = write_tiny_kitti(tmp_path / "other", pictures=3)
    assert sum(map(len, load_splits(tiny_parameters(data_root=str(other))))) == 3
    with pytest.raises(ValueError, match=r"^[^\n]*nowhere[^\n]*$"):
        load_splits(tiny_parameters(data_root=str(tmp_path / "nowhere")))


def test_detector_weights(tiny_parameters, tmp_path):
    other, named, default = (
        first_output(tiny_parameters(detector_weights=weights, **WITH_FEATURES))
        for weights in (str(other_detector(tmp_path)), str(pretrained(PRETRAINED_DETECTOR)), None)
    )
    assert same(named, default)
    assert differ(other, default)
    with pytest.raises(ValueError, match=r"^[^\n]*missing\.pt[^\n]*$"):
        start(tiny_parameters(detector_weights=str(tmp_path / "missing.pt"), **WITH_FEATURES), 2)


def test_N(tiny_parameters):
    for which in ("hyperprior", "hyperprior_with_obj_features"):
        assert [
            build_model(tiny_parameters(which=which, N=N)).g_a[0].out_channels for N in (8, 16)
        ] == [8, 16]


def test_M(tiny_parameters):
    for which, share in (("hyperprior", 1), ("hyperprior_with_obj_features", 2)):
        channels = [
            first_output(tiny_parameters(which=which, M=M))["likelihoods"]["y"].shape[1]
            for M in (12, 20)
        ]
        assert channels == [12 * share, 20 * share]


@pytest.mark.slow
def test_seed(tiny_parameters, tmp_path):
    one, again, other = (
        trained(tiny_parameters(seed=s, logdir=str(tmp_path / f)))[1]["history"]
        for s, f in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert one == again
    assert one != other
    crops = [first_batch(tiny_parameters(seed=seed), train=False)["x"] for seed in (0, 1)]
    assert not torch.equal(*crops)


def test_precision(tiny_parameters):
    full, mixed = (
        tiny_parameters(precision=precision, **WITH_FEATURES) for precision in ("32", "bf16")
    )
    assert [start(p, 2).fabric._precision.precision for p in (full, mixed)] == [
        "32-true",
        "bf16-mixed",
    ]
    a, b = first_output(full)["x_hat"], first_output(mixed)["x_hat"]
    assert 0 < (a - b).abs().max() < 0.1
    session, seen = start(tiny_parameters(precision="bf16"), 2), []
    session.codec.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = first_batch(session.p)
    forward(session, batch)
    assert torch.equal(
        seen[0], batch["x"].float() / 255
    )  # the picture itself is not rounded to bf16
    metrics = trained(mixed)[1]
    assert all(value == value for value in metrics["test"].values())  # no NaN
    assert resolve_precision("auto", torch.device("cpu")) in ("32-true", "bf16-mixed")
    with pytest.raises(
        ValueError, match="precision=16 needs a GPU, this is device=cpu"
    ):  # Fabric would take bf16 without a word
        start(tiny_parameters(precision="16"), 2)
    assert resolve_precision("16", torch.device("cuda")) == "16-mixed"


@pytest.mark.slow
def test_compile(tiny_parameters):
    def kinds(p):
        return {type(module) for module in start(p, 2).model.modules()}

    assert OptimizedModule in kinds(
        tiny_parameters(compile=True)
    )  # Dynamo compiles at the first call, which takes a minute
    assert OptimizedModule not in kinds(tiny_parameters(compile=False))


@pytest.mark.slow
def test_a_compiled_roi_vbr_takes_the_same_step(tiny_parameters):
    def step(compile):
        session = start(
            tiny_parameters(which="roi_vbr", N=4, M=12, compile=compile, precision="32"), 2
        )
        terms, *_ = train_step(session, first_batch(session.p))
        assert (session.codec.g_s._compiled_call_impl is not None) == compile
        return {name: float(v) for name, v in terms.items()}, session.codec.g_a[
            1
        ].weight.detach().clone()

    (plain, weight), (terms, other) = step(False), step(True)
    assert terms == pytest.approx(plain, rel=1e-4)
    torch.testing.assert_close(other, weight, rtol=1e-3, atol=1e-4)


def test_resume(tiny_parameters):
    p = tiny_parameters()
    run, metrics = trained(p)
    save_weights(run.weights, build_model(p), p, step=99)
    assert trained(p)[1] == metrics  # finished: nothing is trained
    anew, again = trained(p.model_copy(update={"resume": False}))
    assert (anew.folder, again["history"]) == (run.folder, metrics["history"])
    assert read_weights(run.weights)[1]["resume"] is False
