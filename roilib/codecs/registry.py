"""Names, colours and markers of codecs, and the ROI strength at which each is uniform."""

from typing import get_args

from roilib.parameters import Parameters

CODEC_NAMES = {  # our codecs in the order of the paper's figures → label
    "hyperprior": "baseline",
    "hyperprior_eval_with_objs": "baseline",
    "hyperprior_with_obj_features (zero_hooks)": "zero hooks",
    "hyperprior_with_obj_features (mask_hooks)": "mask hooks",
    "hyperprior_with_obj_features (mask_hooks, decoder_roi)": "mask on both sides",
    "hyperprior_with_obj_features": "object features",
    "hyperprior_with_obj_features (sft)": "features by scale and shift",
    "hyperprior_with_obj_features (native 320)": "features of crops at 320 pixels",
    "hyperprior_with_obj_features (native 640)": "features of crops at 640 pixels",
    "roi_vbr": "roi_vbr",
    "roi_vbr (yuv)": "roi_vbr (yuv)",
    "roi_vbr (fixed_rate)": "roi_vbr, one rate each",
}
ENGINES = get_args(Parameters.model_fields["which"].annotation)
TUNED_FOR_YUV = "roi_vbr (yuv)"
ANY_RATE = ("roi_vbr", TUNED_FOR_YUV)  # one model for every rate and ROI strength
STILL_LABELS = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL"}
LOOKS = {  # codec → colour (Okabe and Ito's colour-blind-safe palette and beyond) and marker
    "roi_vbr": ("#0072B2", "o"),
    "roi_vbr (yuv)": ("#0B3C5D", "8"),
    "roi_vbr (fixed_rate)": ("#56B4E9", "P"),
    "hyperprior_with_obj_features": ("#009E73", "^"),
    "hyperprior_with_obj_features (sft)": ("#66C2A5", "+"),
    "hyperprior_with_obj_features (native 320)": ("#A6761D", "4"),
    "hyperprior_with_obj_features (native 640)": ("#7F5217", "|"),
    "hyperprior_with_obj_features (mask_hooks)": ("#CC79A7", "<"),
    "hyperprior_with_obj_features (mask_hooks, decoder_roi)": ("#A6325A", "x"),
    "hyperprior_with_obj_features (zero_hooks)": ("#8C6BB1", "v"),
    "hyperprior_eval_with_objs": ("#222222", "X"),
    "hyperprior": ("#222222", "X"),
    "bmshj2018-hyperprior": ("#222222", "X"),
    "x265 medium": ("#D55E00", "s"),
    "x265 slow": ("#993300", "D"),
    "x264 medium": ("#E69F00", "h"),
    "x264 slow": ("#B07500", "H"),
    "x265 ultrafast+zerolatency": ("#C4674A", "1"),
    "x264 ultrafast+zerolatency": ("#7A5200", "2"),
    "jpeg": ("#999999", "*"),
    "webp": ("#00A6C8", "p"),
    "avif": ("#66A61E", "d"),
    "svtav1 6 4:2:0": ("#3B6B12", "3"),
    "jxl": ("#E7298A", ">"),
}
OTHER_PRESETS = {  # presets and 4:2:0 variants that are not in LOOKS
    "x265": ("#D55E00", "8"),
    "x264": ("#E69F00", "8"),
    "svtav1": ("#3B6B12", "8"),
    "avif": ("#66A61E", "8"),
}
UNKNOWN = ("#777777", ".")
DRAWN = (
    "slow",
    "medium",
    "slow 4:2:0",
    "medium 4:2:0",
    "6 4:2:0",
)  # of a video codec, figures draw the first that was measured


def codec_name(p: Parameters) -> str:
    """Return the name of a trained codec in records: its engine and its variant."""
    flags = ("zero_hooks", "mask_hooks", "decoder_roi", "fixed_rate")
    variants = [name for name in flags if getattr(p, name)]
    variants += [p.conditioning] if p.conditioning != "concat" else []
    variants += [f"native {p.obj_det_img_size}"] if p.uses_detector and p.crop == "native" else []
    variants += [p.metric] if p.metric == "yuv" else []
    return f"{p.which} ({', '.join(variants)})" if variants else p.which


def is_ours(codec: str) -> bool:
    """Return whether a codec of records is a model of this package, pretrained or trained."""
    return codec.partition(" ")[0] in ENGINES


def look(codec: str) -> tuple[str, str]:
    """Return a codec's colour and marker."""
    return LOOKS.get(codec) or OTHER_PRESETS.get(codec.partition(" ")[0], UNKNOWN)


def codec_label(codec: str) -> str:
    """Return a codec's name in figures and tables."""
    engine, _, variants = codec.partition(" ")
    if codec not in CODEC_NAMES and is_ours(codec):
        return f"{CODEC_NAMES[engine]} {variants}"
    return STILL_LABELS.get(codec) or CODEC_NAMES.get(codec, codec)


def strength_label(codec: str, strength: float) -> str:
    """Name a ROI strength: α of our codecs, a quantiser offset of a conventional one."""
    return f"α {strength:g}" if is_ours(codec) else f"offset {strength:g}".replace("-", "−")


def uniform_strength(codec: str) -> float:
    """Return the ROI strength at which a codec treats all pixels alike."""
    return 0.5 if is_ours(codec) else 0.0


def curve_label(codec: str, strength: float, several: bool) -> str:
    """Return a codec's label, with its ROI strength where it has several."""
    if not several:
        return codec_label(codec)
    uniform = strength == uniform_strength(codec)
    return f"{codec_label(codec)}, {'uniform' if uniform else strength_label(codec, strength)}"
