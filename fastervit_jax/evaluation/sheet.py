"""Pictures side by side."""

from collections.abc import Sequence

from PIL import Image

_SIDE = 320
_LARGEST = 800
_GAP = 8
_BACKGROUND = (40, 40, 40)


def sheet(images: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Puts RGB images into rows; larger ones than 800 pixels are scaled down.

    Args:
        images: at least one.
        columns: images in a row.
    """
    side = max(_SIDE, min(_LARGEST, max(max(image.size) for image in images)))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    result = Image.new("RGB", (columns * (side + _GAP), rows * (side + _GAP)), _BACKGROUND)
    for number, image in enumerate(images):
        cell = image.copy()
        cell.thumbnail((side, side))
        row, column = divmod(number, columns)
        place = (column * (side + _GAP) + _GAP // 2, row * (side + _GAP) + _GAP // 2)
        result.paste(cell, place)
    return result
