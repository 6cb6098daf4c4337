"""Images for people: sample grids and the loss per noise level, as PNG."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffax._files import whole

__all__ = ["ema_lengths", "full_range", "grid", "levels", "read_png", "save_png"]


def full_range(images: np.ndarray, levels: int) -> np.ndarray:
    """Whole numbers in [0, levels - 1] -> uint8 in [0, 255], of the same shape."""
    return np.round(images * (255 / (levels - 1))).astype(np.uint8)


def grid(images: np.ndarray, columns: int, *, levels: int = 256, min_side: int = 56, gap: int = 2) -> np.ndarray:
    """Images [n, height, width, 1 or 3] with values in [0, levels - 1], row by row -> one uint8 picture [H, W, 3].

    Small images are enlarged by whole factors until a side is at least min_side pixels.
    """
    n, height, width, _channels = images.shape
    factor = max(1, -(-min_side // min(height, width)))
    scaled = full_range(images, levels).repeat(factor, axis=1).repeat(factor, axis=2)
    rows = -(-n // columns)
    cell_h, cell_w = height * factor + gap, width * factor + gap
    picture = np.full((rows * cell_h + gap, columns * cell_w + gap, 3), 128, np.uint8)
    for i, image in enumerate(scaled):
        top, left = gap + (i // columns) * cell_h, gap + (i % columns) * cell_w
        picture[top : top + height * factor, left : left + width * factor] = image  # one channel spreads to three
    return picture


def levels(scalars: Mapping[str, float], *, width: int = 640, height: int = 360) -> np.ndarray:
    """The loss per bin of logSNR, from the names that `diffax.training.metrics.scalars` gives, as bars on a logarithmic
    axis -> one uint8 picture [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [(name.rpartition("logsnr_")[2].split("_to_"), v) for name, v in scalars.items() if "logsnr_" in name]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    canvas, ax = FigureCanvasAgg(figure), figure.subplots()
    for (low, high), value in found:
        ax.bar(float(low), value, float(high) - float(low), align="edge", color="#0072B2", edgecolor="white")
    ax.set(xlabel=r"logSNR  (noise $\leftarrow$   $\rightarrow$ clean)", ylabel="training loss")
    if any(value > 0 for _, value in found):
        ax.set_yscale("log")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def ema_lengths(result: Mapping[str, Any], *, width: int = 640, height: int = 400) -> np.ndarray:
    """Held-out loss against the length of the average, from what `experiments.posthoc` finds -> [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    canvas, ax = FigureCanvasAgg(figure), figure.subplots()
    for reached, style, label in ((True, "o-", "rebuilt"), (False, "x", "out of the snapshots' reach")):
        if rows := [row for row in result["lengths"] if row["reached"] == reached]:
            losses, colour = [row["loss"] for row in rows], "#0072B2" if reached else "#999999"
            ax.plot([row["sigma_rel"] for row in rows], losses, style, color=colour, label=label)
    if "exponential" in result:
        ax.axhline(result["exponential"]["loss"], color="#D55E00", linestyle="--", label="exponential average")
    for tracked in result["tracked"]:
        ax.axvline(tracked, color="#CCCCCC", zorder=0)
    ax.set(xlabel=r"$\sigma_{rel}$ of the average", ylabel="held-out loss", title=f"step {result['step']}")
    ax.legend()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes a uint8 picture [H, W, 3] as PNG, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")


def read_png(path: str | Path, *, max_side: int = 1200) -> bytes:
    """The bytes of a PNG file, of a smaller copy if a side is longer. Raises ValueError if it is damaged."""
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if max(image.size) <= max_side:
                return data
            image.thumbnail((max_side, max_side))
            stream = io.BytesIO()
            image.save(stream, format="PNG", optimize=True)
    except (OSError, SyntaxError, ValueError) as error:  # which one depends on where it is cut
        raise ValueError(f"{path} is damaged: it is no picture ({error})") from error
    return stream.getvalue()
