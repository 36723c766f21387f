"""roilib: the models, losses, data sets and measurements behind the workbook."""

import warnings

# CompressAI causes this warning whenever it is imported; a reader can do nothing about it.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
