"""Frames drawn for the networks that find something in them: words, and faces of plain ellipses."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

LINES = ("Olive oil 500 ml", "PASTA 2020", "JAPAN 2 NETHERLANDS 1", "Fresh milk", "DO NOT TOUCH", "open at 7.30")


def words_frame(seed, lines=None, size=(320, 160)):
    """uint8 (H, W, 3): lines of white writing, by default two of LINES, on a grey that depends on the seed."""
    lines = [LINES[(2 * seed + i) % len(LINES)] for i in range(2)] if lines is None else lines
    image = Image.new("RGB", size, (40 + 20 * seed % 80, 70, 90))
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((14, 20 + 60 * i), line, fill=(255, 255, 255), font=ImageFont.load_default(24))
    return np.array(image)


def faces_frame(seed, centres=((90, 120), (230, 120)), size=(320, 240)):
    """uint8 (H, W, 3): a face of about 100 pixels at each centre; another seed draws other faces."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, (120, 140, 150))
    for centre in centres:
        _face(ImageDraw.Draw(image), *centre, rng.uniform(54, 62), rng.uniform((170, 120, 90), (225, 180, 150)), rng)
    return np.array(image.filter(ImageFilter.GaussianBlur(1)))


def _face(draw, x, y, s, skin, rng):
    skin, shade, dark = (tuple(int(f * c) for c in skin) for f in (1.0, 0.75, 0.35))
    vary = rng.uniform(0.93, 1.07, 3)

    def ellipse(cx, cy, rx, ry, colour):
        draw.ellipse((x + (cx - rx) * s, y + (cy - ry) * s, x + (cx + rx) * s, y + (cy + ry) * s), fill=colour)

    def line(x0, x1, cy, width):
        draw.line((x + x0 * s, y + cy * s, x + x1 * s, y + cy * s), fill=dark, width=round(width * s))

    ellipse(0, -0.12, 0.85, 1.05, dark)  # hair
    ellipse(0, 0.1, 0.7, 0.95 * vary[0], skin)
    for eye in (-0.3, 0.3):
        ellipse(eye, -0.2, 0.2, 0.12, shade)
        ellipse(eye, -0.15, 0.14, 0.07, (240, 240, 240))
        ellipse(eye, -0.15, 0.06, 0.07, (20, 20, 20))
        line(eye - 0.2, eye + 0.2, -0.36 * vary[1], 0.08)
    ellipse(0, 0.2, 0.1, 0.08, shade)  # nose
    for nostril in (-0.07, 0.07):
        ellipse(nostril, 0.24, 0.04, 0.03, dark)
    ellipse(0, 0.55, 0.28 * vary[2], 0.07, (150, 60, 60))  # mouth
    line(-0.26, 0.26, 0.55, 0.04)
