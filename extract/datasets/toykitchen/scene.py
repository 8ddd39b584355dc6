"""Toy kitchen's pixels: one scene drawn at one instant, from sprites made once a scene.

Sprites are premultiplied: `out = (frame * (256 - alpha) + colour * alpha) >> 8`, in uint16.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from extract.datasets.toykitchen.script import SIZE, Scene, State, Thing

__all__ = ["SceneRenderer", "digit_shapes"]

MARGIN = 40  # of the table around the frame, for the moving camera
TABLES = (
    (190, 70, 70), (70, 160, 80), (70, 90, 190), (190, 170, 70), (170, 80, 180),
    (70, 170, 180), (130, 130, 130), (200, 130, 90), (95, 70, 55), (190, 190, 205),
)  # fmt: skip
TRAIN_SHARE = 0.6  # of each class's real digits; the rest are the validation kitchens'


@cache
def digit_shapes(split: str) -> tuple[np.ndarray, ...]:
    """Per class the split's real handwritten digits (scikit-learn's, UCI optdigits), float32 (n, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    shapes = []
    for noun in range(10):
        mine = digits.images[digits.target == noun].astype(np.float32) / 16
        cut = int(len(mine) * TRAIN_SHARE)
        shapes.append(mine[:cut] if split == "train" else mine[cut:])
    return tuple(shapes)


def bilinear(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """image (h, w[, c]) sampled at float positions (pixel centres at integers), zero outside."""
    h, w = image.shape[:2]
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = (y - y0).astype(np.float32), (x - x0).astype(np.float32)
    if image.ndim == 3:
        fy, fx = fy[..., None], fx[..., None]
    padded = np.pad(image, [(1, 2), (1, 2)] + [(0, 0)] * (image.ndim - 2))
    y0, x0 = np.clip(y0, -1, h) + 1, np.clip(x0, -1, w) + 1
    top = padded[y0, x0] * (1 - fx) + padded[y0, x0 + 1] * fx
    bottom = padded[y0 + 1, x0] * (1 - fx) + padded[y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


@dataclass(frozen=True)
class Sprite:
    """colour: uint16 (h, w, 3), colour * alpha; keep: uint16 (h, w, 1), 256 - alpha; anchor: (x, y) inside it."""

    colour: np.ndarray
    keep: np.ndarray
    anchor: tuple[float, float]

    def paste(self, frame: np.ndarray, x: float, y: float) -> None:
        """Draw it into frame with the anchor at (x, y), clipped at the edges."""
        h, w = self.keep.shape[:2]
        left, top = round(x - self.anchor[0]), round(y - self.anchor[1])
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + w, frame.shape[1]), min(top + h, frame.shape[0])
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        under = frame[y0:y1, x0:x1]
        under[:] = (under * self.keep[part] + self.colour[part]) >> 8


def sprite(rgb: np.ndarray, alpha: np.ndarray, anchor: tuple[float, float]) -> Sprite:
    """From float rgb (h, w, 3) in 0..255 and alpha (h, w) in 0..1."""
    a = np.round(np.clip(alpha, 0, 1) * 256).astype(np.uint16)[..., None]
    return Sprite(np.clip(rgb, 0, 255).astype(np.uint16) * a, 256 - a, anchor)


def card_sprite(thing: Thing, shape: np.ndarray, size: float, angle: float) -> Sprite:
    """A rounded card with the digit `shape` (8, 8) on it, `size` pixels wide, turned by `angle`."""
    half = int(size * 0.72) + 2
    ys, xs = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    c, s = math.cos(angle), math.sin(angle)
    u, v = (c * xs + s * ys) / size, (c * ys - s * xs) / size  # in the card's own frame, the card is +-0.5
    corner = np.hypot(np.maximum(np.abs(u) - 0.38, 0), np.maximum(np.abs(v) - 0.38, 0)) - 0.12
    alpha = np.clip(0.5 - corner * size, 0, 1)
    edge = np.clip(1.5 + corner * size, 0, 1)  # a dark rim
    ink = np.clip((bilinear(shape, v * 9.5 + 3.5, u * 9.5 + 3.5) - 0.3) * 2.2, 0, 1)[..., None]
    rgb = np.array(thing.tile, np.float32) * (1 - ink) + np.array(thing.ink, np.float32) * ink
    return sprite(rgb * (1 - 0.5 * edge[..., None]), alpha, (half, half))


def hand_sprite(skin, sleeve, angle: float, grasping: bool) -> Sprite:
    """A hand whose finger tips are at the anchor and whose arm leaves along `angle` (radians from straight down)."""
    reach = 190
    ys, xs = np.mgrid[-20:reach, -reach:reach].astype(np.float32)
    along = xs * math.sin(angle) + ys * math.cos(angle)
    across = xs * math.cos(angle) - ys * math.sin(angle)

    def capsule(a0, c0, a1, c1, radius):
        """Signed distance to the thick line from (along, across) = (a0, c0) to (a1, c1)."""
        da, dc = a1 - a0, c1 - c0
        s = np.clip(((along - a0) * da + (across - c0) * dc) / (da * da + dc * dc), 0, 1)
        return np.hypot(along - a0 - s * da, across - c0 - s * dc) - radius

    palm = capsule(16, -3, 22, 3, 10)
    if grasping:  # thumb and fingers closed around the card's edge
        fingers = [capsule(0, -8, 13, -11, 3.5), capsule(-3, 0, 12, 0, 3.5), capsule(0, 8, 13, 10, 4)]
    else:  # flat, fingers side by side
        fingers = [capsule(3, c, 14, c * 0.8, 2.8) for c in (-9, -3, 3, 9)]
    arm = capsule(34, 0, 320, 0, 9.5)
    hand = np.minimum.reduce([palm, *fingers])
    alpha = np.clip(0.5 - np.minimum(hand, arm), 0, 1)
    is_skin = (hand < arm)[..., None]
    shade = 1 - 0.35 * np.clip(1 + np.minimum(hand, arm) / 3, 0, 1)[..., None]  # darker towards the outline
    rgb = np.where(is_skin, np.array(skin, np.float32), np.array(sleeve, np.float32)) * shade
    used = np.flatnonzero(alpha.any(axis=0))
    x0, x1 = used[0], used[-1] + 1
    return sprite(rgb[:, x0:x1], alpha[:, x0:x1], (reach - x0, 20))


def table_picture(pattern: int, seed: int) -> np.ndarray:
    """The table top, uint8 (H + 2 MARGIN, W + 2 MARGIN, 3): one of ten kinds, each a pattern and roughly a colour."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    ys, xs = np.mgrid[: height + 2 * MARGIN, : width + 2 * MARGIN].astype(np.float32)
    ys, xs = ys + 60 * rng.random(), xs + 60 * rng.random()
    period = 18 + 10 * rng.random()
    a, b = np.sin(2 * np.pi * xs / period), np.sin(2 * np.pi * ys / period)
    diagonal = np.sin(2 * np.pi * (xs + ys) / (1.4 * period))
    wave = [
        np.zeros_like(xs), np.sign(a), np.sign(b), np.sign(a * b), np.sign(diagonal), (a * b > 0.4) * 2.0 - 1,
        np.sin(2 * np.pi * (ys + 6 * np.sin(xs / 25)) / period * 2), np.maximum(a, b) ** 5, diagonal * a,
        np.sin(np.hypot(xs - 150, ys - 120) * 2 * np.pi / period),
    ][pattern]  # fmt: skip
    base = np.array(TABLES[pattern], np.float32) + 40 * rng.random(3, dtype=np.float32) - 20
    tint = (24 * rng.random(3) - 12 + 10 * np.sign(rng.random() - 0.5)).astype(np.float32)
    grain = 4 * rng.random(xs.shape, dtype=np.float32) - 2
    return np.clip(base + wave[..., None] * tint + grain[..., None], 0, 255).astype(np.uint8)


class SceneRenderer:
    """Draws one scene; keeps its sprites."""

    def __init__(self, scene: Scene, split: str):
        """split: whose real digits (`train` or `val`) are on the cards."""
        self.scene = scene
        shapes = digit_shapes(split)
        self.shapes = [shapes[a.noun][int(a.sample * len(shapes[a.noun]))] for a in scene.things]
        pairs = zip(scene.things, self.shapes, strict=True)
        self.cards = [card_sprite(thing, shape, thing.size, thing.tilt) for thing, shape in pairs]
        self.table = table_picture(*scene.table)
        self.hand = hand_sprite(scene.skin, scene.sleeve, scene.angle, True) if scene.verb >= 0 else None
        self.idle = hand_sprite(scene.skin, scene.sleeve, scene.idle[1], False) if scene.idle else None

    def draw(self, state: State) -> np.ndarray:
        """uint8 (H, W, 3): table, untouched objects, a resting hand, the handled object, its hand."""
        width, height = SIZE
        left, top = MARGIN + round(state.camera[0]), MARGIN + round(state.camera[1])
        frame = self.table[top : top + height, left : left + width].copy()
        first = 1 if self.scene.verb >= 0 else 0
        for card, (x, y, _, _) in zip(self.cards[first:], state.things[first:], strict=True):
            card.paste(frame, x, y)
        if self.idle is not None:
            self.idle.paste(frame, *state.idle)
        if self.scene.verb >= 0:
            x, y, size, angle = state.things[0]
            thing, card = self.scene.things[0], self.cards[0]
            if (size, angle) != (thing.size, thing.tilt):
                card = card_sprite(thing, self.shapes[0], size, angle)
            card.paste(frame, x, y)
            if state.hand is not None:
                self.hand.paste(frame, *state.hand)
        return frame
