"""What codecs are called and drawn with, and at which ROI strength each treats all pixels alike."""

from roilib.parameters import Parameters

CODEC_NAMES = {  # what a codec is called in figures, in the order of the paper's
    "hyperprior": "baseline",
    "hyperprior_eval_with_objs": "baseline",
    "hyperprior_with_obj_features (zero_hooks)": "ROI loss, zero hooks",
    "hyperprior_with_obj_features (mask_hooks)": "ROI loss, mask hooks",
    "hyperprior_with_obj_features": "ROI loss, object features",
    "roi_vbr": "roi_vbr",
    "roi_vbr (fixed_rate)": "roi_vbr, one rate each",
}


def codec_name(p: Parameters) -> str:
    """The engine, with what sets this training apart."""
    variant = next(
        (name for name in ("zero_hooks", "mask_hooks", "fixed_rate") if getattr(p, name)), None
    )
    return f"{p.which} ({variant})" if variant else p.which


LOOKS = {  # colour (Okabe and Ito's, which colour-blind people tell apart) and marker of a codec
    "roi_vbr": ("#0072B2", "o"),
    "roi_vbr (fixed_rate)": ("#56B4E9", "P"),
    "hyperprior_with_obj_features": ("#009E73", "^"),
    "hyperprior_with_obj_features (mask_hooks)": ("#CC79A7", "<"),
    "hyperprior_with_obj_features (zero_hooks)": ("#8C6BB1", "v"),
    "hyperprior_eval_with_objs": ("#222222", "X"),
    "hyperprior": ("#222222", "X"),
    "bmshj2018-hyperprior": ("#222222", "X"),
    "x265 medium": ("#D55E00", "s"),
    "x265 slow": ("#993300", "D"),
    "x264 medium": ("#E69F00", "h"),
    "x264 slow": ("#B07500", "H"),
    "x265 ultrafast+zerolatency": ("#FF9E66", "1"),
    "x264 ultrafast+zerolatency": ("#F5C96B", "2"),
    "jpeg": ("#999999", "*"),
    "webp": ("#00A6C8", "p"),
    "avif": ("#66A61E", "d"),
    "jxl": ("#E7298A", ">"),
}


OTHER = {"x265": ("#D55E00", "8"), "x264": ("#E69F00", "8")}  # of presets that LOOKS does not have


DRAWN = ("slow", "medium")  # of a video encoder's presets the first that was measured is drawn


UNKNOWN = ("#777777", ".")


def look(codec: str) -> tuple[str, str]:
    """Colour and marker of a codec."""
    return LOOKS.get(codec) or OTHER.get(codec.partition(" ")[0], UNKNOWN)


def codec_label(codec: str) -> str:
    """What a codec is called."""
    return {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL"}.get(
        codec
    ) or CODEC_NAMES.get(codec, codec)


def strength_label(codec: str, strength: float) -> str:
    """What a ROI strength is called: α of ours, a quantiser offset of a peer."""
    return f"α {strength:g}" if codec in CODEC_NAMES else f"offset {strength:g}".replace("-", "−")


def uniform_strength(codec: str) -> float:
    """The ROI strength at which a codec treats all alike."""
    return 0.5 if codec in CODEC_NAMES else 0.0


def curve_label(codec: str, strength: float, several: bool) -> str:
    """A codec's name, with the ROI strength where it has several."""
    if not several:
        return codec_label(codec)
    return f"{codec_label(codec)}, {'uniform' if strength == uniform_strength(codec) else strength_label(codec, strength)}"
