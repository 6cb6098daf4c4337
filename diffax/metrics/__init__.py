"""How good samples are, judged by something other than the model."""

from diffax.metrics.classifier import Judge, accuracy, judge
from diffax.metrics.image_quality import Calibration, calibration, multi_scale_ssim, psnr, ssim
from diffax.metrics.neighbours import nearest_distance

__all__ = [
    "Calibration",
    "Judge",
    "accuracy",
    "calibration",
    "judge",
    "multi_scale_ssim",
    "nearest_distance",
    "psnr",
    "ssim",
]
