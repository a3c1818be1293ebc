"""How sure an accuracy is; no torch, so that tables and reports are quick."""

from __future__ import annotations

NORMAL_975 = 1.959964


def wilson_interval(correct: float, total: float) -> tuple[float, float]:
    """Return the 95 % score interval (Wilson 1927) of ``correct`` out of ``total``, in percent."""
    share, z2 = correct / total, NORMAL_975**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = share * (1 - share) / total + z2 / (4 * total**2)
    half = NORMAL_975 * spread**0.5 / (1 + z2 / total)
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def accuracy_text(correct: float, total: float, images: str) -> str:
    """Write an accuracy with its interval: ``93.10 % of 1,000 test images (95 % interval ...)``."""
    low, high = wilson_interval(correct, total)
    return (
        f"{100 * correct / total:.2f} % of {total:,.0f} {images} "
        f"(95 % interval {low:.1f} to {high:.1f})"
    )
