"""A clock burned into the picture: two rows of black and white cells that survive resizing and H.264.

The strip spans the whole width and the top seventh of the frame, so the same fractions find it at any size to which
the whole frame is squashed. It carries the frame's own presentation time in milliseconds (20 bits, most significant
first) and a 4-bit check.
"""

import numpy as np

__all__ = ["HEIGHT", "draw_counter", "read_counter"]

HEIGHT = 1 / 7  # of the frame
ROWS, COLUMNS = 2, 12
BITS = 20


def check_bits(milliseconds: int) -> int:
    """Four check bits: the sum of the five 4-bit digits, each times its place, modulo 16, inverted."""
    return 15 - sum((place + 1) * (milliseconds >> 4 * place & 15) for place in range(5)) % 16


def draw_counter(frame: np.ndarray, milliseconds: int) -> None:
    """Draw the counter into a uint8 (H, W, 3) frame, in place; milliseconds in [0, 2**20)."""
    if not 0 <= milliseconds < 1 << BITS:
        raise ValueError(f"the counter holds 0..{(1 << BITS) - 1} ms, got {milliseconds}")
    word = milliseconds << 4 | check_bits(milliseconds)
    height, width = frame.shape[:2]
    ys = np.round(np.linspace(0, height * HEIGHT, ROWS + 1)).astype(int)
    xs = np.round(np.linspace(0, width, COLUMNS + 1)).astype(int)
    for cell in range(ROWS * COLUMNS):
        row, column = divmod(cell, COLUMNS)
        white = word >> ROWS * COLUMNS - 1 - cell & 1
        frame[ys[row] : ys[row + 1], xs[column] : xs[column + 1]] = 235 if white else 16


def read_counter(frame: np.ndarray) -> int | None:
    """The presentation time, in milliseconds from the video's start, burned into a frame of a clock video.

    frame: uint8 or float (H, W, 3), 0..255, the whole frame at any size from about 48 x 48 (squashed or not, not
    cropped). None where there is no counter or it cannot be read with certainty.
    """
    grey = np.asarray(frame, np.float32).mean(axis=2)
    height, width = grey.shape
    word = 0
    for cell in range(ROWS * COLUMNS):
        row, column = divmod(cell, COLUMNS)
        y, x = (row + 0.5) * height * HEIGHT / ROWS, (column + 0.5) * width / COLUMNS
        dy, dx = 0.2 * height * HEIGHT / ROWS, 0.2 * width / COLUMNS
        level = grey[round(y - dy) : max(round(y + dy), round(y - dy) + 1),
                     round(x - dx) : max(round(x + dx), round(x - dx) + 1)].mean()  # fmt: skip
        if 90 < level < 160:
            return None
        word = word << 1 | int(level > 125)
    milliseconds = word >> 4
    return milliseconds if word & 15 == check_bits(milliseconds) else None
