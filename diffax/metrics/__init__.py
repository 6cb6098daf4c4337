"""How good samples are, judged by something other than the model.

    features(extractor, images)     what the next three compare: `enlite0`, `inception` (a file that you have), `pixels`
    frechet_distance(a, b)          two Gaussians, from `moments` that merge exactly; with `inception` it is FID
    kernel_distance(a, b)           two sets of features, without bias; with `inception` it is KID
    precision_recall(a, b)          are samples where the data are, and do they cover them
    sliced_wasserstein(a, b)        optimal transport along lines
    judge, accuracy                 does a classifier of real images take samples for the class that was asked for
    nearest_distance(a, b)          are samples copies of the training images
    psnr, ssim, multi_scale_ssim    is a restored image the true one
    calibration                     is the spread of several restorations that of their errors

Bits per dimension are in `diffax.likelihood`.
"""

from diffax._public import list_names
from diffax.metrics.classifier import Judge, accuracy, judge
from diffax.metrics.enlite0 import enlite0, enlite0_weights
from diffax.metrics.features import Extractor, features, pixels
from diffax.metrics.frechet import frechet_distance
from diffax.metrics.image_quality import Calibration, calibration, multi_scale_ssim, psnr, ssim
from diffax.metrics.inception import inception
from diffax.metrics.kernel import kernel_distance
from diffax.metrics.moments import Moments, fold, gather, merge, moments
from diffax.metrics.neighbours import nearest_distance
from diffax.metrics.precision_recall import PrecisionRecall, precision_recall
from diffax.metrics.sliced import sliced_wasserstein

__all__ = [
    "Calibration",
    "Extractor",
    "Judge",
    "Moments",
    "PrecisionRecall",
    "accuracy",
    "calibration",
    "enlite0",
    "enlite0_weights",
    "features",
    "fold",
    "frechet_distance",
    "gather",
    "inception",
    "judge",
    "kernel_distance",
    "merge",
    "moments",
    "multi_scale_ssim",
    "nearest_distance",
    "pixels",
    "precision_recall",
    "psnr",
    "sliced_wasserstein",
    "ssim",
]

list_names(__name__)
