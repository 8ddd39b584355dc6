"""A small dataset for base training: clips of plain colours that drift, and their frames as a store."""

from fractions import Fraction

import av
import numpy as np

from pipelines import Extraction, extract

COLOURS = {"red": (210, 50, 50), "green": (50, 200, 60), "blue": (60, 60, 220)}
CLIP_S = 0.8


def colour_dataset(folder, videos=4, clips=6, size=(64, 48)):
    """(csv, folder of videos): every clip has one colour (noun 0..2) that brightens or darkens (verb 0..1)."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    lines = ["video,start,stop,verb,noun,split"]
    rng = np.random.default_rng(0)
    for v in range(videos):
        path = folder / "videos" / f"v{v}.mp4"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", rate=25, options={"crf": "12", "g": "25"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.codec_context.thread_count = 1
            frame_number = 0
            for c in range(clips):
                noun, verb = int(rng.integers(3)), int(rng.integers(2))
                for t in range(20):
                    light = 0.5 + 0.5 * (t / 19 if verb else 1 - t / 19)
                    image = np.empty((size[1], size[0], 3), np.uint8)
                    image[:] = np.array(list(COLOURS.values())[noun]) * light
                    image[::4, ::4] = rng.integers(0, 255)
                    frame = av.VideoFrame.from_ndarray(image, "rgb24")
                    frame.pts, frame.time_base = frame_number, Fraction(1, 25)
                    frame_number += 1
                    out.mux(stream.encode(frame))
                start = c * CLIP_S
                lines.append(f"v{v},{start},{start + CLIP_S},{verb},{noun},{'val' if v == videos - 1 else 'train'}")
            out.mux(stream.encode(None))
    (folder / "colours.csv").write_text("\n".join(lines) + "\n")
    return folder / "colours.csv", folder / "videos"


def frames_request(folder, **options):
    """The extraction of the dataset's frames, 32 x 32 by default."""
    values = {"option": ('resize={"mode":"squash","size":32}',), **options}
    return Extraction(
        dataset=str(folder / "colours.csv"),
        videos=folder / "videos",
        features=(folder / "features",),
        backbone="frames",
        **values,
    )


def colour_frames(folder, **options):
    """Path of the store of frames, extracted into `folder`/features."""
    (report,) = extract(frames_request(folder, **options))
    assert report.complete
    return report.store
