"""What happens in toy kitchen, without a pixel: who handles what, how, where, when, and where the camera points.

`write_script(dials)` gives every video as plain data; `state_at(scene, t)` says where everything is at an instant.
The renderer, the boxes, the gaze and the captions all read that one function, so they cannot disagree.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from extract.datasets.toykitchen.dials import Dials

__all__ = ["NOUNS", "SIZE", "VERBS", "Scene", "State", "Video", "frame_ticks", "state_at", "write_script"]

VERBS = ("take", "put", "shake", "turn", "slide", "lift")
NOUNS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = (224, 168)  # width, height
GRID = 60  # annotations are on EPIC's nominal 60 fps grid
SCENE = 2 * GRID  # grid steps a scene lasts
PLAIN_RATE = "15"
CLOCK_RATES = ("60000/1001", "30000/1001", "variable")
TRAIN_KITCHENS = tuple(range(1, 13))  # participants P01..P12
VAL_KITCHENS = tuple(range(26, 32))  # P26..P31: EPIC-55's validation rule holds here too
APPROACH = 0.25  # seconds a hand needs to come or go


@dataclass(frozen=True)
class Thing:
    """An object: a card with one real handwritten digit."""

    noun: int
    sample: float  # which of the split's real digits of that class, as a fraction of their number
    x: float  # centre, pixels of the frame at rest
    y: float
    size: float
    tile: tuple[int, int, int]
    ink: tuple[int, int, int]
    tilt: float  # radians


@dataclass(frozen=True)
class Scene:
    """Two seconds with one table, its objects, and at most one action; times in seconds from the scene's start."""

    start: int  # grid steps from the video's start
    verb: int  # -1: nothing is handled
    begin: float
    end: float
    things: tuple[Thing, ...]  # the first is the handled one, if any is
    angle: float  # where the hand comes from, radians from straight below
    way: float  # +1 or -1: which way it is slid or turned
    tempo: float  # how fast, about 1
    idle: tuple[int, float, float] | None  # a resting hand: beside which thing, its angle, its distance
    table: tuple[int, int]  # pattern, seed of its colours
    camera: tuple[float, ...]  # pan x, y (pixels a second); jitter amplitude (pixels), frequency (Hz), phase
    skin: tuple[int, int, int]
    sleeve: tuple[int, int, int]


@dataclass(frozen=True)
class State:
    """Where everything is at one instant, in pixels of the frame."""

    camera: tuple[float, float]  # what to subtract from a place on the table
    things: tuple[tuple[float, float, float, float], ...]  # x, y, size, angle
    hand: tuple[float, float] | None  # the finger tips
    contact: bool
    idle: tuple[float, float] | None


@dataclass(frozen=True)
class Video:
    """One video: its scenes one after the other, and how it is filmed."""

    name: str
    participant: str
    split: str  # train | val
    rate: str  # frames a second: a number, a fraction, or "variable"
    seed: tuple[int, ...]
    scenes: tuple[Scene, ...]
    events: bool = False  # untrimmed: its actions are event labels, not clips

    @property
    def counter(self) -> bool:
        """Whether each frame carries its own time (read_counter)."""
        return self.rate in CLOCK_RATES

    @property
    def seconds(self) -> float:
        """How long the video lasts."""
        return len(self.scenes) * SCENE / GRID


def frame_ticks(video: Video) -> tuple[np.ndarray, int, int]:
    """Presentation times of all frames: (ticks int64, numerator, denominator of a tick in seconds)."""
    if video.rate != "variable":
        up, _, down = video.rate.partition("/")
        numerator, denominator = int(down or 1), int(up)
        n = math.ceil(video.seconds * denominator / numerator)
        return np.arange(n, dtype=np.int64), numerator, denominator
    # A phone in changing light: runs of frames at 30, 24, 15 and 12.5 fps, each frame a little early or late.
    rng = np.random.default_rng([*video.seed, 7])
    ticks, now, steps = [], 0, []
    while now < video.seconds * 90_000:
        steps = steps or list(rng.permutation([3000, 3750, 6000, 7200]))
        step = steps.pop()
        for _ in range(int(rng.integers(6, 13))):
            ticks.append(now)
            now += int(step * (0.9 + 0.2 * rng.random()))
    ticks = np.array(ticks, np.int64)
    return ticks[ticks < video.seconds * 90_000], 1, 90_000


def ease(s: float) -> float:
    """0 to 1, slow at both ends."""
    s = min(max(s, 0.0), 1.0)
    return s * s * (3 - 2 * s)


def state_at(scene: Scene, t: float) -> State:
    """Where everything is, t seconds after the scene's start."""
    pan_x, pan_y, jitter, frequency, phase = scene.camera
    wave = 2 * math.pi * frequency * t + phase
    camera = (pan_x * (t - 1) + jitter * math.sin(wave), pan_y * (t - 1) + jitter * math.cos(1.3 * wave))

    places = [(a.x, a.y, a.size, a.tilt) for a in scene.things]
    hand, contact = None, False
    if scene.verb >= 0:
        places[0], hand, contact = handled(scene, t)
    idle = None
    if scene.idle is not None:
        which, angle, distance = scene.idle
        reach = scene.things[which].size / 2 + distance
        sway = 1.5 * math.sin(2 * math.pi * 0.4 * t + phase)
        beside = scene.things[which]
        idle = (beside.x + reach * math.sin(angle) + sway, beside.y + reach * math.cos(angle))

    def seen(x, y):
        return x - camera[0], y - camera[1]

    return State(
        camera=camera,
        things=tuple((*seen(x, y), size, angle) for x, y, size, angle in places),
        hand=None if hand is None else seen(*hand),
        contact=contact,
        idle=None if idle is None else seen(*idle),
    )


def handled(scene: Scene, t: float):
    """The handled object's (x, y, size, angle), the finger tips or None, and whether they touch."""
    thing, verb = scene.things[0], VERBS[scene.verb]
    x, y, size, tilt = thing.x, thing.y, thing.size, thing.tilt
    away_x, away_y = math.sin(scene.angle), math.cos(scene.angle)  # from the object to where the hand lives
    reach = size / 2 - 6  # the fingers lie over the card's edge
    far = 150.0  # from any place on the table, this far along the arm is outside the frame
    length = scene.end - scene.begin

    if verb in ("take", "put"):
        # A put is a take run backwards.
        s = (t - scene.begin if verb == "take" else scene.end - t) / length
        touch, move = 0.15, 0.35
        if s < touch:  # the empty hand comes
            out = far * (1 - ease(1 + (s - touch) * length / APPROACH))
            return (x, y, size, tilt), (x + (reach + out) * away_x, y + (reach + out) * away_y), False
        carried = far * min(max((s - move) / (1 - move), 0.0), 1.3) ** 1.7
        x, y = x + carried * away_x, y + carried * away_y
        return (x, y, size, tilt), (x + reach * away_x, y + reach * away_y), s <= 1

    first, last = scene.begin + 0.08, scene.end - 0.08
    out = far * (1 - min(ease(1 + (t - first) / APPROACH), ease(1 + (last - t) / APPROACH)))
    s = min(max((t - first) / (last - first), 0.0), 1.0)
    if verb == "shake":
        fade = min(1.0, 6 * s, 6 * (1 - s))
        x += fade * 9 * math.sin(2 * math.pi * 4 * scene.tempo * (t - first))
        y += fade * 3 * math.cos(2 * math.pi * 4 * scene.tempo * (t - first))
    elif verb == "turn":
        tilt += scene.way * math.radians(70) * math.sin(2 * math.pi * ease(s))
    elif verb == "slide":
        x += scene.way * 52 * ease(s)
    elif verb == "lift":
        up = ease(3 * s) * ease(3 * (1 - s))
        y -= 30 * up
        size *= 1 + 0.25 * up
        reach = size / 2 - 6
    hand = (x + (reach + out) * away_x, y + (reach + out) * away_y)
    return (x, y, size, tilt), None if out > far - 1 else hand, first <= t <= last


def pair_weights(affinity: float) -> np.ndarray:
    """How often each (verb, noun) occurs, (6, 10), summing to 1: nouns equally, each with one usual verb."""
    weights = np.ones((len(VERBS), len(NOUNS)))
    for noun in range(len(NOUNS)):
        weights[noun % len(VERBS), noun] += affinity
    return weights / weights.sum()


def balanced_pairs(n: int, affinity: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """n (verb, noun) pairs in random order whose counts follow `pair_weights` to within one."""
    expected = pair_weights(affinity).ravel() * n
    counts = np.floor(expected).astype(int)
    left = np.argsort(-(expected - counts) - 1e-6 * rng.random(expected.size))[: n - counts.sum()]
    counts[left] += 1
    pairs = np.repeat(np.arange(expected.size), counts)
    rng.shuffle(pairs)
    return [divmod(int(p), len(NOUNS)) for p in pairs]


def colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    """Any tint with channels in [low, high)."""
    return tuple(int(v) for v in rng.integers(low, high, 3))


def make_scene(start: int, verb: int, noun: int, dials: Dials, rng: np.random.Generator, wardrobe) -> Scene:
    """One scene; noun -1 and verb -1 where nothing is handled."""
    others = [n for n in range(len(NOUNS)) if n != noun]
    nouns = ([noun] if noun >= 0 else []) + list(rng.permutation(others)[: dials.distractors + (noun < 0)])
    columns, small = (3, 1.0) if len(nouns) <= 6 else (4, 0.75)
    step = SIZE[0] / columns
    places = [((column + 0.5) * step, 60 + 64 * row) for row in range(2) for column in range(columns)]
    way = 1.0
    things = []
    for i, slot in enumerate(rng.permutation(len(places))[: len(nouns)]):
        x, y = places[slot]
        if i == 0:
            way = 1.0 if x < SIZE[0] / 2 else -1.0  # slid towards the middle
        dark = rng.random() < 0.5  # dark ink on a light card, or the other way round
        tile, ink = (colour(rng, 160, 256), colour(rng, 0, 80))[:: 1 if dark else -1]
        things.append(
            Thing(
                int(nouns[i]),
                float(rng.random()),
                x + 8 * rng.random() - 4,
                y + 6 * rng.random() - 3,
                small * (50 + 8 * rng.random()),
                tile,
                ink,
                0.2 * rng.random() - 0.1,
            )  # fmt: skip
        )
    length = 1.1 + 0.5 * rng.random()
    begin = round((0.2 + (1.6 - length) * rng.random()) * GRID) / GRID
    end = round((begin + length) * GRID) / GRID
    idle = None
    rested = list(range(1 if noun >= 0 else 0, len(things)))
    if rested and rng.random() < dials.idle_hands:
        idle = (int(rng.choice(rested)), float(rng.uniform(-0.9, 0.9)), float(rng.uniform(1, 7)))
    related = rng.random() < dials.context
    pattern = noun if related and noun >= 0 else int(rng.integers(len(NOUNS)))
    heading, speed = 2 * math.pi * rng.random(), 9 * rng.random() * dials.camera
    camera = (
        speed * math.cos(heading), speed * math.sin(heading), 1.5 * rng.random() * dials.camera,
        0.8 + 1.2 * rng.random(), 2 * math.pi * rng.random(),
    )  # fmt: skip
    return Scene(
        start, verb, begin, end, tuple(things), float(rng.uniform(-0.9, 0.9)), way, 0.85 + 0.3 * float(rng.random()),
        idle, (pattern, int(rng.integers(2**31))), camera, *wardrobe,
    )  # fmt: skip


def kitchen_wardrobe(dials: Dials, kitchen: int, rng: np.random.Generator):
    """The skin of a participant, one for all of their videos, and a sleeve of the day."""
    own = np.random.default_rng([dials.seed, 5, kitchen])
    light = 0.45 + 0.5 * own.random()
    skin = tuple(int(c * light + 12 * own.random()) for c in (235, 180, 140))
    return skin, colour(rng, 20, 230)


@cache
def write_script(dials: Dials) -> tuple[Video, ...]:
    """All videos of a variant, in name order: clips of the training and validation kitchens, and untrimmed ones."""
    videos = []
    for stream, (split, n, kitchens) in enumerate(
        [("train", dials.train_clips, TRAIN_KITCHENS), ("val", dials.val_clips, VAL_KITCHENS)]
    ):
        pairs = balanced_pairs(n, dials.affinity, np.random.default_rng([dials.seed, 1, stream]))
        shares = []  # (rate, clips)
        if split == "train" and dials.clock_clips:
            shares += [(rate, dials.clock_clips) for rate in CLOCK_RATES]
        left = n - sum(clips for _, clips in shares)
        plain = math.ceil(left / dials.clips_per_video)
        shares += [(PLAIN_RATE, left // plain + (i < left % plain)) for i in range(plain)]
        for i, (rate, clips) in enumerate(shares):
            kitchen = kitchens[i % len(kitchens)]
            seed = (dials.seed, 2, stream, i)
            rng = np.random.default_rng(seed)
            wardrobe = kitchen_wardrobe(dials, kitchen, rng)
            mine = [pairs.pop() for _ in range(clips)]
            scenes = tuple(make_scene(k * SCENE, *p, dials, rng, wardrobe) for k, p in enumerate(mine))
            name = f"P{kitchen:02d}_{i // len(kitchens) + 1:02d}"
            videos.append(Video(name, f"P{kitchen:02d}", split, rate, seed, scenes))
    for i in range(dials.untrimmed):
        split = "val" if i % 4 == 3 else "train"
        kitchens = VAL_KITCHENS if split == "val" else TRAIN_KITCHENS
        kitchen = kitchens[i % len(kitchens)]
        seed = (dials.seed, 3, i)
        rng = np.random.default_rng(seed)
        wardrobe = kitchen_wardrobe(dials, kitchen, rng)
        noun = int(rng.integers(len(NOUNS)))  # what this video is about
        n = dials.untrimmed_seconds * GRID // SCENE
        told = set(rng.permutation(n)[: max(1, round(n * (1 - dials.irrelevant)))].tolist())
        labels = [(int(rng.integers(len(VERBS))), noun) if k in told else (-1, -1) for k in range(n)]
        scenes = tuple(make_scene(k * SCENE, *p, dials, rng, wardrobe) for k, p in enumerate(labels))
        name = f"P{kitchen:02d}_{901 + i // len(kitchens)}"
        videos.append(Video(name, f"P{kitchen:02d}", split, PLAIN_RATE, seed, scenes, events=True))
    return tuple(sorted(videos, key=lambda v: v.name))
