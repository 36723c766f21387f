"""Models from parameters."""

from compressai.models import CompressionModel, ScaleHyperprior

from roilib.models.hyperprior import HyperpriorWithObjFeatures
from roilib.models.roi_vbr import RoiVbr
from roilib.parameters import Parameters


def build_model(p: Parameters) -> CompressionModel:
    """The untrained model that `p.which` names."""
    if p.which == "roi_vbr":
        return RoiVbr(p.N, p.M)
    if p.which == "hyperprior_with_obj_features":
        return HyperpriorWithObjFeatures(p.N, p.M, p.zero_hooks, p.mask_hooks)
    return ScaleHyperprior(p.N, p.M)
