"""roilib: models, losses, datasets and measurements behind the ROI-aware image compression workbook."""

import warnings

warnings.filterwarnings(
    "ignore", "`torch.jit.script` is deprecated", FutureWarning
)  # CompressAI's, at every import; nothing a reader can do
