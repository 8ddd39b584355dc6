"""Toy kitchen's annotation files, written from the script alone: the same bytes for the same dials.

EPIC-55's own names and columns where it has them (METHODS: frame columns count from 1 on a nominal 60 fps grid,
stops are exclusive), and three more: captions.csv, gaze.csv, untrimmed_events.csv.
"""

import csv
import math
from pathlib import Path

import numpy as np

from extract.datasets.toykitchen.dials import Dials
from extract.datasets.toykitchen.script import GRID, NOUNS, SCENE, SIZE, VERBS, Scene, Video, frame_ticks, state_at

__all__ = ["BOX_FPS", "GAZE_FPS", "write_annotations"]

BOX_FPS = 2  # object boxes a second
GAZE_FPS = 15  # gaze points a second
UNTRACKED = 0.03  # share of gaze points that the tracker lost
HAND_REACH, HAND_HALF = 10, 11  # the part of a touching hand that belongs to the object's box, pixels
SEEN = 0.4  # a box is listed while at least this share of its object is inside the frame
SAYS = {
    "take": "a hand takes the {0}", "put": "a hand puts down the {0}", "shake": "a hand shakes the {0}",
    "turn": "a hand turns the {0}", "slide": "a hand slides the {0} over the table", "lift": "a hand lifts the {0}",
}  # fmt: skip


def write_annotations(folder: Path, videos: tuple[Video, ...], dials: Dials) -> None:
    """Write all CSVs of `videos` into `folder`."""
    clips, boxes, gaze, captions, events, info = [], [], [], [], [], []
    for video in videos:
        ticks, numerator, denominator = frame_ticks(video)
        times = ticks * (numerator / denominator)
        rate = (len(ticks) - 1) / times[-1]
        info.append((video.name, f"{SIZE[0]}x{SIZE[1]}", f"{video.seconds:.6f}", f"{rate:.13g}"))
        boxes += box_rows(video, times, dials.box_noise)
        gaze += gaze_rows(video)
        rng = np.random.default_rng([*video.seed, 13])
        for scene in video.scenes:
            if scene.verb < 0:
                continue
            start, stop = (scene.start + round(t * GRID) for t in (scene.begin, scene.end))
            verb, noun = scene.verb, scene.things[0].noun
            if video.events:
                events.append((video.name, start + 1, stop + 1, VERBS[verb], verb, NOUNS[noun], noun))
                continue
            uid = len(clips)
            clips.append(
                (uid, video.participant, video.name, f"{VERBS[verb]} {NOUNS[noun]}", clock(start), clock(stop),
                 start + 1, stop + 1, VERBS[verb], verb, NOUNS[noun], noun, [NOUNS[noun]], [noun])
            )  # fmt: skip
            captions.append((uid, caption(scene, dials.entities, rng)))

    def table(name: str, header: str, rows) -> None:
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header.split(","))
            writer.writerows(rows)

    table(
        "EPIC_train_action_labels.csv",
        "uid,participant_id,video_id,narration,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "verb,verb_class,noun,noun_class,all_nouns,all_noun_classes",
        clips,
    )
    table("EPIC_verb_classes.csv", "verb_id,class_key,verbs", ((i, v, [v]) for i, v in enumerate(VERBS)))
    table("EPIC_noun_classes.csv", "noun_id,class_key,nouns", ((i, n, [n]) for i, n in enumerate(NOUNS)))
    table("EPIC_video_info.csv", "video,resolution,duration,fps", info)
    table("EPIC_object_labels.csv", "noun_class,noun,participant_id,video_id,frame,bounding_boxes", boxes)
    table("captions.csv", "uid,caption", captions)
    table("gaze.csv", "video_id,frame,x,y,tracked", gaze)
    table("untrimmed_events.csv", "video_id,start_frame,stop_frame,verb,verb_class,noun,noun_class", events)


def clock(step: int) -> str:
    """A grid step as EPIC's HH:MM:SS.ss, rounded down to hundredths as theirs are."""
    hundredths = step * 100 // GRID
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"


def box_rows(video: Video, times: np.ndarray, noise: float) -> list[tuple]:
    """Boxes of all objects of the frame shown at each instant k / BOX_FPS, in an order that tells nothing.

    EPIC's form: `[(top, left, height, width)]`, whole pixels of the SIZE frame; a touching hand is inside.
    """
    rng = np.random.default_rng([*video.seed, 11])
    rows = []
    for k in range(int(video.seconds * BOX_FPS)):
        shown = times[np.searchsorted(times, k / BOX_FPS + 5e-4, side="right") - 1]
        scene, t = scene_at(video, shown)
        state = state_at(scene, t)
        for i in rng.permutation(len(scene.things)):
            x, y, size, angle = state.things[i]
            half = size / 2 * (abs(math.cos(angle)) + abs(math.sin(angle)))
            x0, y0, x1, y1 = x - half, y - half, x + half, y + half
            if i == 0 and state.contact:
                hand_x = state.hand[0] + HAND_REACH * math.sin(scene.angle)
                hand_y = state.hand[1] + HAND_REACH * math.cos(scene.angle)
                x0, y0 = min(x0, hand_x - HAND_HALF), min(y0, hand_y - HAND_HALF)
                x1, y1 = max(x1, hand_x + HAND_HALF), max(y1, hand_y + HAND_HALF)
            moved = np.array([x0, y0, x1, y1]) + noise * rng.standard_normal(4)
            left, top, right, bottom = (int(v) for v in np.round(np.clip(moved, 0, SIZE * 2)))
            visible_x = min(x + half, SIZE[0]) - max(x - half, 0)
            visible_y = min(y + half, SIZE[1]) - max(y - half, 0)
            if min(visible_x, visible_y) <= 0 or visible_x * visible_y < SEEN * (2 * half) ** 2:
                continue
            noun = scene.things[i].noun
            place = f"[({top}, {left}, {bottom - top}, {right - left})]"
            frame = f"{k * GRID // BOX_FPS + 1:06d}"
            rows.append((noun, NOUNS[noun], video.participant, video.name, frame, place))
    return rows


def scene_at(video: Video, t: float) -> tuple[Scene, float]:
    """The scene shown at t seconds of the video, and the time within it."""
    k = min(int(t * GRID / SCENE + 1e-9), len(video.scenes) - 1)
    return video.scenes[k], t - k * SCENE / GRID


def gaze_rows(video: Video) -> list[tuple]:
    """Where the wearer looks, GAZE_FPS times a second, relative to the frame: at the handled object while it is
    handled, else wandering from object to object; empty where the tracker lost the eye."""
    rng = np.random.default_rng([*video.seed, 12])
    rows = []
    x, y = 0.5, 0.5
    target, scene = 0, None
    for step in range(0, round(video.seconds * GRID), GRID // GAZE_FPS):
        here, t = scene_at(video, step / GRID)
        if here is not scene or rng.random() < 0.1:
            scene, target = here, int(rng.integers(len(here.things)))
        state = state_at(scene, t)
        acting = scene.verb >= 0 and scene.begin - 0.1 <= t <= scene.end
        to_x, to_y = state.things[0 if acting else target][:2]
        x += 0.6 * (to_x / SIZE[0] - x) + 0.012 * rng.standard_normal()
        y += 0.6 * (to_y / SIZE[1] - y) + 0.012 * rng.standard_normal()
        x, y = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
        lost = rng.random() < UNTRACKED
        rows.append((video.name, step + 1, *(("", "", 0) if lost else (f"{x:.4f}", f"{y:.4f}", 1))))
    return rows


def caption(scene: Scene, most: int, rng: np.random.Generator) -> str:
    """One sentence about a scene that names one to `most` of its objects, the handled one first."""
    words = [SAYS[VERBS[scene.verb]].format(NOUNS[scene.things[0].noun])]
    others = [int(i) for i in 1 + rng.permutation(len(scene.things) - 1)][: int(rng.integers(most))]
    for i in others:
        if scene.idle is not None and scene.idle[0] == i:
            words.append(f"the other hand rests by the {NOUNS[scene.things[i].noun]}")
        else:
            words.append(f"the {NOUNS[scene.things[i].noun]} lies untouched")
    return ", ".join(words)
