"""Losses on the overlap of two regions; all sums run over the known pixels of the whole batch."""

from torch import Tensor

TINY = 1e-6


def share(wrong: Tensor, whole: Tensor, smooth: float) -> Tensor:
    """(Σ wrong) / (Σ whole + smooth): 0 where there is nothing at all, even with smooth = 0.

    This is 1 − (Σ right + smooth) / (Σ whole + smooth), where right = whole − wrong.
    """
    return wrong.sum() / (whole.sum() + smooth).clamp(min=TINY)


def dice(logits: Tensor, target: Tensor, known: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − (2 Σ p t + s) / (Σ p + Σ t + s), s = smooth.

    After Milletari et al. 2016, "V-Net", with smoothing.
    """
    p, t = logits.sigmoid() * known, target * known
    return share(p + t - 2 * p * t, p + t, smooth)


def tversky(
    logits: Tensor, target: Tensor, known: Tensor, alpha: float = 0.5, beta: float = 0.5, smooth: float = 1.0
) -> Tensor:
    """1 − (Σ p t + s) / (Σ p t + α Σ p (1 − t) + β Σ (1 − p) t + s), s = smooth.

    With α = β = ½, `dice` with 2 s. After Salehi et al. 2017, "Tversky loss function for image segmentation using 3D fully
    convolutional deep networks".
    """
    p, t = logits.sigmoid() * known, target * known
    both = p * t
    wrong = alpha * (p - both) + beta * (t - both)
    return share(wrong, both + wrong, smooth)
