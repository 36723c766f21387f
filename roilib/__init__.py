"""roilib: models, losses, datasets and measurements behind the ROI-aware image compression workbook."""
