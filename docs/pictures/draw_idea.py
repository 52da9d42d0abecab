"""Draws the README's picture: python docs/pictures/draw_idea.py (needs scikit-image)."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from skimage.data import astronaut

SIDE, WINDOWS = 512, 4
CENTRES = [SIDE / WINDOWS * (i + 0.5) for i in range(WINDOWS)]
CARRIER, EDGE = "#ffb000", "white"


def _windows(axis, photo):
    axis.imshow(photo)
    for i in range(1, WINDOWS):
        axis.axhline(i * SIDE / WINDOWS, color=EDGE, linewidth=2)
        axis.axvline(i * SIDE / WINDOWS, color=EDGE, linewidth=2)
    axis.set_axis_off()


def _carriers(axis):
    axis.scatter(
        [x for _ in CENTRES for x in CENTRES],
        [y for y in CENTRES for _ in CENTRES],
        s=90,
        color=CARRIER,
        edgecolor="black",
        zorder=3,
    )


def main():
    photo = astronaut()
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.7), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.15)
    for axis in axes:
        _windows(axis, photo)
        _carriers(axis)
    axes[0].set_title("1. Every window owns carrier tokens,\na summary of it")
    axes[1].set_title("2. Carrier tokens of all windows\nattend to each other: global, few")
    asked = (CENTRES[1], CENTRES[1])
    for x in CENTRES:
        for y in CENTRES:
            axes[1].plot([asked[0], x], [asked[1], y], color=CARRIER, linewidth=1.6, zorder=2)
    axes[2].set_title("3. Each window attends to itself\nand to its own carriers: local, many")
    step = SIDE / WINDOWS / 7
    left = SIDE / WINDOWS
    grid = [left + step * (i + 0.5) for i in range(7)]
    for x in grid:
        for y in grid:
            axes[2].plot([asked[0], x], [asked[1], y], color=EDGE, linewidth=0.7, zorder=2)
            axes[2].plot(x, y, ".", color=EDGE, markersize=3)
    figure.savefig(Path(__file__).with_name("idea.png"), dpi=90)


if __name__ == "__main__":
    main()
