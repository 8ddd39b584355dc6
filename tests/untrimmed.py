"""A small dataset in ActivityNet's official layout: videos of one frame, of 12 seconds and of more than 25."""

import json
from pathlib import Path

import media

SECONDS = {"aaaaaaaaaa1": 40, "bbbbbbbbbb2": 12, "-cccccccc_3": 30, "v_dddddddd4": 33, "eeeeeeeeee5": 27}
ONE_FRAME = "_ffffffff-6"
GONE = "ggggggggggg"
NAMES = ("Archery", "Ballet, classical", "Zumba")


def activitynet(data: Path) -> Path:
    """Make `<data>/activitynet`; returns `data`. Rate 5 a second; one video of the list is not there."""
    root = data / "activitynet"
    (root / "annotations").mkdir(parents=True)
    (root / "videos").mkdir()
    database = {}
    for i, (name, seconds) in enumerate([*SECONDS.items(), (ONE_FRAME, 0.2), (GONE, 20)]):
        if name != GONE:
            path = root / "videos" / f"{'v_' if i % 2 else ''}{name}.mp4"
            media.make_video(path, "libx264", round(seconds * 5), rate=5, size=(64, 48), options=media.x264(keyint=10))
        segments = [{"segment": [0.1 * seconds, 0.5 * seconds], "label": NAMES[i % 3]}]
        if i in (0, 4):
            segments += [{"segment": [0.0, 0.0], "label": NAMES[(i + 1) % 3]}, segments[0]]
        database[name] = {
            "duration": seconds,
            "subset": "validation" if i in (2, 4) else "training",
            "annotations": segments,
        }
    (root / "annotations" / "activity_net.v1-3.min.json").write_text(
        json.dumps({"version": "VERSION 1.3", "taxonomy": [], "database": database})
    )
    return data
