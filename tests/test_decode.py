"""The right frame, however it is reached; and a clear word where there is none.

Every video is compared with a decode that is independent of the project: from the first frame, one
thread, no seeking, frames in the order in which they come out (`media.plain_decode`).
"""

import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tarfile
from fractions import Fraction
from pathlib import Path

import media
import numpy as np
import pytest
from media import x264, x265

from errors import UserError
from extract import video_files
from extract.decode import FrameError, Probe, VideoError, open_source, probe, quick_probe, stat_video
from extract.transforms import Resize

REAL = [
    "activitynet_v_GGSY1Qvo990.mp4", "activitynet_v_ZNVhz7ctTq0.mp4", "ego4d_3c0dffd0_012_014.mp4",
    "kinetics_flipping_a_pancake.mkv", "msrvtt_video7500.mp4", "odd_vp9.mp4", "test_non_zero_start.mp4",
]  # fmt: skip
VFR = np.cumsum(np.random.default_rng(0).integers(1, 90, 72)).tolist()

MADE = {  # name: (maker(path), what decord does with it: "same", or why it is refused)
    "closed.mp4": (lambda p: media.make_video(p, "libx264", options=x264(keyint=24, bframes=3)), "same"),
    "open_gop.mp4": (
        lambda p: media.make_video(p, "libx264", options=x264(keyint=24, bframes=3, open_gop=1)), "open GOP"),
    "long_gop.mkv": (lambda p: media.make_video(p, "libx264", options=x264(keyint=250, bframes=5)), "same"),
    "intra_refresh.mp4": (
        lambda p: media.make_video(p, "libx264", options=x264(keyint=24, bframes=0, intra_refresh=1)), "picture"),
    "hevc.mp4": (lambda p: media.make_video(p, "libx265", options=x265(keyint=24, bframes=4, open_gop=0)), "HEVC"),
    "hevc_open_gop.mkv": (
        lambda p: media.make_video(p, "libx265", options=x265(keyint=24, bframes=4, open_gop=1)), "HEVC"),
    "vfr.mp4": (
        lambda p: media.make_video(
            p, "libx264", pts=VFR, time_base=Fraction(1, 1000), options=x264(keyint=24, bframes=3)), "same"),
    "mpeg4.avi": (lambda p: media.make_video(p, "mpeg4", options={"bf": "2", "g": "24"}), "open GOP"),
    "xvid.avi": (lambda p: media.make_video(p, "mpeg4", options={"g": "24"}), "same"),
    "h264.avi": (lambda p: media.make_video(p, "libx264", options=x264(keyint=24, bframes=3)), "no usable times"),
    "mjpeg.avi": (lambda p: media.make_video(p, "mjpeg", pixel_format="yuvj420p"), "same"),
    "h264.ts": (lambda p: media.make_video(p, "libx264", options=x264(keyint=24, bframes=3)), None),
    "mpeg2.ts": (lambda p: media.make_video(p, "mpeg2video", options={"bf": "2", "g": "15"}), "open GOP"),
    "raw.h264": (lambda p: media.make_video(p, "libx264", options=x264(keyint=24, bframes=3)), "no usable times"),
    "vp8.webm": (
        lambda p: media.make_video(p, "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "g": "24"}),
        "no usable times"),
    "two_streams.mp4": (media.two_streams, "same"),
    "cover.mp4": (media.with_cover, "same"),
    "edit_list.mp4": (
        lambda p: media.remux(
            media.make_video(p.with_name("whole.mp4"), "libx264", options=x264(keyint=24, bframes=3)), p,
            shift=-10 * 512, container_options={"avoid_negative_ts": "disabled"}), "counts 72"),
    "narrow.mp4": (
        lambda p: media.make_video(p, "libx264", size=(96, 64), options=x264(keyint=24)), "lost the batch"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return media.when_asked_for(MADE, tmp_path_factory.mktemp("videos"))


def decoded(path):
    frames = media.plain_decode(path)
    return [media.rgb(f) for _, f in frames], [pts for pts, _ in frames]


def read_all(path, indices=None, resize=None, **options):
    with open_source(path, **options) as source:
        return dict(source.read(range(source.n_frames) if indices is None else indices, resize))


def check_every_frame(path):
    """Every frame in sequence, then each by a reader of its own (always a seek), then jumping on one reader; of long
    videos a hundred that way."""
    truth, _ = decoded(path)
    in_sequence = read_all(path)
    assert len(in_sequence) == len(truth)
    for k, frame in enumerate(truth):
        np.testing.assert_array_equal(in_sequence[k], frame, err_msg=f"frame {k} in sequence")
    targets = np.random.default_rng(1).permutation(len(truth))[:100].tolist()
    for k in targets:
        np.testing.assert_array_equal(read_all(path, [k])[k], truth[k], err_msg=f"frame {k} by seek")
    with open_source(path) as source:
        for k in targets:
            np.testing.assert_array_equal(dict(source.read([k]))[k], truth[k], err_msg=f"frame {k} jumping")


# --- the right frame -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_every_frame_of_the_real_videos(shared, name):
    check_every_frame(shared / "videos" / name)


@pytest.mark.parametrize("name", [n for n in MADE if n != "narrow.mp4"])
def test_every_frame_of_the_made_videos(made, name):
    check_every_frame(made(name))


@pytest.mark.parametrize("name", ["closed.mp4", "open_gop.mp4", "hevc_open_gop.mkv", "h264.avi", "mpeg2.ts"])
def test_seeks_are_used_where_they_can_be(made, name):
    with open_source(made(name)) as source:
        list(source.read([60]))
        assert source._began > 0


def test_keyframes_that_decoding_cannot_start_at_are_found_out(made):
    path = made("intra_refresh.mp4")
    read_all(path, [60])
    assert 48 not in video_files.frame_index(path).keys


class Restless(video_files.FrameIndex):
    """An index whose keys are replaced by another thread between any two looks at them."""

    @property
    def keys(self):
        return next(self.lists)

    @keys.setter
    def keys(self, keys):
        self.lists = itertools.cycle([keys, [0], [0, 24], [0, 48], [0]])


def restless(path):
    index = video_files.frame_index(path)
    copy = Restless(**{f.name: getattr(index, f.name) for f in dataclasses.fields(index) if f.init})
    copy.lost = np.zeros(len(index.ids), bool)
    return copy


def test_keyframes_struck_out_by_another_reader(made):
    path = made("closed.mp4")
    truth, _ = decoded(path)
    index = video_files.frame_index(path)
    assert index.keys == [0, 24, 48] and [index.key_before(k) for k in (0, 24, 25, 72)] == [0, 0, 24, 48]
    assert [index.key_before(48, steps) for steps in (1, 2, 9)] == [24, 0, 0]
    with open_source(path) as source:
        source.index = restless(path)
        for k in np.random.default_rng(0).integers(0, 72, 200).tolist():
            np.testing.assert_array_equal(dict(source.read([k]))[k], truth[k])


def test_damage_while_keyframes_are_struck_out(made):
    index = restless(made("closed.mp4"))
    for frame in (0, 10, 24, 40, 60, 71):
        index.damage(frame)
        assert index.lost[frame]


def test_the_stream_ffmpeg_calls_best(made):
    assert probe(made("two_streams.mp4")).width == media.plain_decode(made("two_streams.mp4"))[0][1].width
    found = probe(made("cover.mp4"))
    assert (found.width, found.height, found.n_frames) == (128, 96, 30)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation(tmp_path, degrees):
    path = media.make_video(tmp_path / "turned.mp4", "libx264", 5, rotate=degrees)
    upright = media.plain_decode(path)
    found, frames = probe(path), read_all(path)
    assert (found.width, found.height) == ((128, 96) if degrees == 180 else (96, 128))
    assert quick_probe(path)[2:] == (found.width, found.height)
    for k, (_, frame) in enumerate(upright):
        np.testing.assert_array_equal(frames[k], np.rot90(media.rgb(frame), degrees // 90))


def test_size_that_changes(tmp_path):
    parts = [media.make_video(tmp_path / f"{w}.h264", "libx264", 10, size=(w, 96)) for w in (128, 64)]
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    frames = read_all(path)
    assert len(frames) == 20 and all(f.shape == (96, 128, 3) for f in frames.values())
    assert [media.counter(frames[k]) for k in range(20)] == [*range(10), *range(10)]


@pytest.mark.parametrize("resize", [Resize("squash", 256), Resize("short_side", 64, crop=56), Resize("short_side", 50)])
def test_resizing_is_swscale_bilinear(shared, resize):
    from extract.transforms import plan_resize

    path = shared / "videos" / "odd_vp9.mp4"
    place = plan_resize(resize, 321, 241)
    frames = read_all(path, resize=resize)
    for k, (_, frame) in enumerate(media.plain_decode(path)):
        whole = media.rgb(frame, place.width, place.height)
        wanted = whole[place.top : place.top + place.crop_h, place.left : place.left + place.crop_w]
        np.testing.assert_array_equal(frames[k], wanted)


def test_calls_go_on_where_the_last_one_ended(made):
    path = made("long_gop.mkv")
    truth, _ = decoded(path)
    with open_source(path) as source:
        list(source.read([3, 4]))
        decoder = source._decoder
        for indices in ([4, 5, 9], [9], [12, 40], [40, 41, 71]):
            for k, frame in source.read(indices):
                np.testing.assert_array_equal(frame, truth[k])
        assert source._decoder is decoder


def test_indices_are_checked(made):
    with open_source(made("closed.mp4")) as source:
        for wrong in ([3, 2], [1, 1], [-1], [72]):
            with pytest.raises(ValueError, match="ascend"):
                list(source.read(wrong))


# --- the right time --------------------------------------------------------------------------------------


def test_times(made, shared):
    index = video_files.frame_index(made("vfr.mp4"))
    np.testing.assert_allclose(index.times, (np.array(VFR) - VFR[0]) / 1000, atol=1e-4)
    index = video_files.frame_index(shared / "videos" / "test_non_zero_start.mp4")
    np.testing.assert_allclose(index.times, np.arange(12) / 30, atol=1e-9)
    assert probe(made("h264.avi")).times == "counted"
    np.testing.assert_allclose(video_files.frame_index(made("h264.avi")).times, np.arange(72) / 25)
    edited = probe(made("edit_list.mp4"))
    assert (edited.n_frames, round(edited.duration_s, 6)) == (62, 2.48)


def test_instants(made):
    with open_source(made("closed.mp4")) as source:  # 72 frames, 25 a second: 2.88 s
        t = np.array([[-0.01, -0.0004, 0.0, 0.0394, 0.0396], [0.04, 1.0, 2.8794, 2.8796, 99.0]])
        indices, outside = source.at(t)
        assert indices.dtype == np.int64 and indices.shape == outside.shape == t.shape
        assert indices.tolist() == [[0, 0, 0, 0, 1], [1, 25, 71, 71, 71]]
        assert outside.tolist() == [[True, False, False, False, False], [False, False, False, True, True]]


def test_probe(shared, made):
    found = probe(shared / "videos" / "kinetics_flipping_a_pancake.mkv")
    assert (found.n_frames, found.width, found.height, found.times) == (310, 426, 240, "container")
    assert found.fps == 30 and found.kind == "file" and found.content_hash.startswith("sha256:56279fa0")
    assert Probe.from_json(json.loads(json.dumps(found.to_json()))) == found
    fps, duration, width, height = quick_probe(made("closed.mp4"))
    assert (fps, round(duration, 3), width, height) == (25, 2.88, 128, 96)


def test_the_index_is_made_once(made, monkeypatch):
    path = made("closed.mp4")
    video_files.frame_index(path)
    monkeypatch.setattr(video_files, "_build_index", None)
    assert len(read_all(path, [70])) == 1


# --- damage ----------------------------------------------------------------------------------------------


def test_damaged_video_gives_its_good_frames(shared):
    path = shared / "videos" / "corrupted.mp4"
    truth = {f.pts // 1024: media.rgb(f) for _, f in media.plain_decode(path)}
    for threads in (1, 2, 4):
        video_files._indices.clear()
        frames = read_all(path, threads=threads)
        lost = [k for k, f in frames.items() if isinstance(f, FrameError)]
        # One packet is broken; the frames predicted from it differ from one thread count to the next.
        assert lost == list(range(29, 50))
        assert all(np.array_equal(frames[k], truth[k]) for k in range(29))
        assert frames[40].reason == "damaged" and "corrupted.mp4: frame 40" in str(frames[40])


@pytest.mark.parametrize("open_gop", [0, 1])
def test_a_damaged_stretch_loses_its_own_frames_only(tmp_path, open_gop):
    path = media.make_video(tmp_path / "v.mp4", "libx264", 160, options=x264(keyint=20, bframes=3, open_gop=open_gop))
    truth, _ = decoded(path)
    break_packet(path, 65)
    expected = None
    for order in (range(160), np.random.default_rng(0).permutation(160)):
        for threads in (1, 2):
            video_files._indices.clear()
            with open_source(path, threads=threads) as source:
                frames = {k: dict(source.read([k]))[k] for k in map(int, order)}
            lost = sorted(k for k, f in frames.items() if isinstance(f, FrameError))
            assert lost and set(lost) <= set(range(60, 80)), lost
            assert expected in (None, lost)
            expected = lost
            for k in set(range(160)) - set(lost):
                np.testing.assert_array_equal(frames[k], truth[k], err_msg=f"frame {k}")


def break_packet(path, number):
    import av

    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][number]
        start, stop = packet.pos + 20, packet.pos + packet.size
    data = bytearray(path.read_bytes())
    data[start:stop] = np.random.default_rng(5).bytes(stop - start)
    path.write_bytes(data)


def cut(source: Path, path: Path, share: float, age: float = 3600) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    old = path.stat().st_mtime - age
    os.utime(path, (old, old))
    return path


@pytest.mark.parametrize("name", ["kinetics_flipping_a_pancake.mkv", "activitynet_v_GGSY1Qvo990.mp4"])
def test_a_file_that_ends_early_gives_what_is_there(shared, tmp_path, name):
    path = cut(shared / "videos" / name, tmp_path / name, 0.5)
    truth, _ = decoded(shared / "videos" / name)
    frames = read_all(path)
    good = [k for k, f in frames.items() if not isinstance(f, FrameError)]
    assert len(frames) - 1 <= len(good) and 100 < len(good) < len(truth)
    assert all(np.array_equal(frames[k], truth[k]) for k in good)
    with open_source(path) as source:
        assert source.at(np.array([source.duration_s + 1]))[1].all()


def test_an_avi_that_ends_early(made, tmp_path):
    path = cut(made("h264.avi"), tmp_path / "cut.avi", 0.6)
    frames = read_all(path)
    assert 20 < sum(not isinstance(f, FrameError) for f in frames.values()) < 72


def bad_files(folder: Path, whole: Path):
    """(path, reason, words of the message)"""
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video\n" * 100)
    media.sound_only(folder / "sound.mp4")
    return [
        (folder / "gone.mp4", "missing", "no such file"),
        (folder / "empty.mp4", "empty", "0 bytes"),
        (folder / "text.mp4", "not_video", "not a video"),
        (folder / "sound.mp4", "not_video", "no video stream"),
        (cut(whole, folder / "cut.mp4", 0.5), "truncated", "moov"),
        (cut(whole, folder / "fresh.mp4", 0.5, age=0), "growing", "still being copied"),
    ]


def test_files_that_are_no_videos(made, tmp_path, capfd):
    for path, reason, words in bad_files(tmp_path, made("closed.mp4")):
        for opens in (probe, quick_probe, open_source):
            with pytest.raises(VideoError, match=words) as caught:
                opens(path)
            assert caught.value.reason == reason and str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_stat_video(made, tmp_path, monkeypatch):
    assert stat_video(made("closed.mp4")).st_size > 0
    stat_video(tmp_path)
    (tmp_path / "empty.mp4").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path))  # root may read everything
    wrong = {"gone.mp4": "missing", "empty.mp4": "empty", "empty.mp4/x": "unreadable", made("closed.mp4"): "unreadable"}
    for path, reason in wrong.items():
        with pytest.raises(VideoError) as caught:
            stat_video(tmp_path / path)
        assert caught.value.reason == reason


def test_a_file_that_changes_while_it_is_read(made, tmp_path, monkeypatch):
    path = tmp_path / "growing.mp4"
    path.write_bytes(made("closed.mp4").read_bytes())
    monkeypatch.setattr(video_files, "hash_file", lambda p: path.write_bytes(b"more") and "sha256:0")
    with pytest.raises(VideoError, match="still being copied") as caught:
        probe(path)
    assert caught.value.reason == "growing"


def test_memory_does_not_grow_with_length(tmp_path):
    short = media.make_video(
        tmp_path / "short.mp4", "libx264", 50, size=(640, 360), options={"preset": "ultrafast", **x264(keyint=25)}
    )
    long = media.remux(short, tmp_path / "long.mp4", times=24)
    script = (
        "import resource, sys; from extract.decode import open_source, probe; probe(sys.argv[1])\n"
        "with open_source(sys.argv[1], threads=2) as s: n = sum(1 for _ in s.read(range(s.n_frames)))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    root = Path(video_files.__file__).parents[1]
    ran = [
        subprocess.run([sys.executable, "-c", script, str(p)], cwd=root, capture_output=True, text=True, check=True)
        for p in (short, long)
    ]
    (n, peak), (n_long, peak_long) = (map(int, r.stdout.split()) for r in ran)
    assert n_long == 24 * n and peak_long < 1.2 * peak


# --- frame folders and tars ------------------------------------------------------------------------------


def frame_folder(folder: Path, numbers, name="frame_{:010d}.jpg", codec="mjpeg") -> Path:
    for number in numbers:
        media.write_image(folder / name.format(number), media.picture(number), codec)
    return folder


def make_tar(folder: Path, path: Path, prefix="./") -> Path:
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*"), reverse=True):  # any order will do
            tar.add(file, prefix + str(file.relative_to(folder)), recursive=False)
        link = tarfile.TarInfo(prefix + "frame_0000000099.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("../frame_0000000098.jpg"))
    return path


def test_frame_folder(tmp_path):
    folder = frame_folder(tmp_path / "P01_01", [n for n in range(1, 13) if n != 7])
    found = probe(folder, grid_fps=60)
    assert (found.kind, found.n_frames, found.fps, found.times) == ("frames", 12, 60, "grid")
    assert (found.width, found.height, found.duration_s) == (128, 96, pytest.approx(0.2))
    frames = read_all(folder, grid_fps=60)
    for k, frame in frames.items():
        if k == 6:
            assert isinstance(frame, FrameError) and frame.reason == "missing" and "number 7" in str(frame)
        else:
            assert media.counter(frame) == k + 1
    with open_source(folder, grid_fps=60) as source:
        indices, outside = source.at(np.array([-1 / 60, 0, 1 / 60, 0.024, 0.026, 11 / 60, 12 / 60]))
        assert indices.tolist() == [0, 0, 1, 1, 2, 11, 11]
        assert outside.tolist() == [True, False, False, False, False, False, True]


def test_numbering_from_zero_png_and_other_names(tmp_path):
    folder = frame_folder(tmp_path / "v", range(5), "img_{:05d}.png", "png")
    frames = read_all(folder, grid_fps=25)
    for k in range(5):
        np.testing.assert_array_equal(frames[k], media.picture(k))
    (folder / "img_00002.png").write_bytes((folder / "img_00002.png").read_bytes()[:-40])
    (folder / "img_00003.png").write_bytes(b"")
    frames = read_all(folder, grid_fps=25)
    assert [k for k in frames if isinstance(frames[k], FrameError)] == [2, 3]


def test_tar_gives_what_the_folder_gives(tmp_path):
    folder = frame_folder(tmp_path / "P01_01", range(1, 9))
    tar = make_tar(folder, tmp_path / "P01_01.tar")
    resize = Resize("squash", 64)
    of_folder, of_tar = (read_all(p, grid_fps=60, resize=resize) for p in (folder, tar))
    assert len(of_tar) == 8
    for k in range(8):
        np.testing.assert_array_equal(of_tar[k], of_folder[k])
    found = probe(tar, grid_fps=60)
    assert (found.kind, found.n_frames) == ("tar", 8)
    short = cut(tar, tmp_path / "short.tar", 0.5)
    assert 1 <= len([f for f in read_all(short, grid_fps=60).values() if isinstance(f, np.ndarray)]) < 8
    with pytest.raises(VideoError) as caught:
        probe(cut(tar, tmp_path / "fresh.tar", 0.5, age=0), grid_fps=60)
    assert caught.value.reason == "growing"


def test_flow(tmp_path):
    for shift, part in ((0, "u"), (100, "v")):
        for number in (1, 2, 3, 4):
            image = np.full((48, 64, 3), 10 * number + shift, np.uint8)
            media.write_image(tmp_path / "f" / part / f"frame_{number:010d}.jpg", image)
    (tmp_path / "f" / "v" / "frame_0000000003.jpg").unlink()
    for path in (tmp_path / "f", make_tar(tmp_path / "f", tmp_path / "f.tar")):
        with open_source(path, grid_fps=60, reads="flow") as source:
            assert (source.n_frames, source.fps) == (4, 30)
            # one flow image for two grid frames: grid frame i (file i + 1) has flow image ceil((i + 1) / 2)
            assert source.at(np.arange(8) / 60)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
            assert source.at(np.array([8 / 60]))[1].all()
            frames = dict(source.read(range(4)))
        for k in (0, 1, 3):
            assert frames[k].shape == (48, 64, 2)
            assert abs(int(frames[k][5, 5, 0]) - 10 * (k + 1)) <= 1
            assert abs(int(frames[k][5, 5, 1]) - 10 * (k + 1) - 100) <= 1
        assert isinstance(frames[2], FrameError) and "of v/" in str(frames[2])


def test_truncated_jpeg_is_damaged(tmp_path):
    folder = frame_folder(tmp_path / "v", range(1, 4))
    file = folder / "frame_0000000002.jpg"
    file.write_bytes(file.read_bytes()[:-100])
    frames = read_all(folder, grid_fps=60)
    assert [k for k in frames if isinstance(frames[k], FrameError)] == [1]


def test_content_hash_of_a_folder(tmp_path):
    folder = frame_folder(tmp_path / "a", range(1, 6))
    first = probe(folder, grid_fps=60).content_hash
    assert probe(frame_folder(tmp_path / "b", range(1, 6)), grid_fps=60).content_hash == first
    media.write_image(folder / "frame_0000000003.jpg", media.picture(77))
    assert probe(folder, grid_fps=60).content_hash != first


@pytest.mark.parametrize("reads", ["rgb", "flow"])
def test_probe_looks_at_each_file_of_a_folder_once(tmp_path, monkeypatch, reads):
    folders = ["u", "v"] if reads == "flow" else [""]
    for inside in folders:
        frame_folder(tmp_path / "f" / inside, range(1, 31))
    stat, looked = os.stat, []
    monkeypatch.setattr(os, "stat", lambda path, **kw: looked.append(os.fspath(path)) or stat(path, **kw))
    found = probe(tmp_path / "f", grid_fps=60, reads=reads)
    monkeypatch.undo()
    files = sorted(str(p) for p in (tmp_path / "f").rglob("*.jpg"))
    assert sorted(p for p in looked if p.endswith(".jpg")) == files and len(files) == 30 * len(folders)
    assert found.size_bytes == sum(os.path.getsize(p) for p in files)
    digest = hashlib.sha256(b"clipbank frame folder 1\n")  # in stores' probes: fixed for ever
    for inside in folders:
        paths = sorted((tmp_path / "f" / inside).iterdir())
        for path in paths:
            digest.update(f"{path.relative_to(tmp_path / 'f')} {path.stat().st_size}\n".encode())
        for i in (0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19, 21, 23, 25, 27, 29):
            digest.update(paths[i].read_bytes())
    assert found.content_hash == "sha256:" + digest.hexdigest()


def test_folders_without_frames(tmp_path):
    with pytest.raises(VideoError) as caught:
        probe(tmp_path, grid_fps=60)
    assert caught.value.reason == "empty"
    with pytest.raises(UserError, match="grid_fps"):
        open_source(tmp_path)


# --- decord, and choosing a decoder ----------------------------------------------------------------------


def test_unknown_decoder(made):
    with pytest.raises(UserError, match="pyav, decord"):
        open_source(made("closed.mp4"), decoder="opencv")


def check_decord(path):
    """decord picks the same frames: in sequence, and each by seek, within a mean of 2 grey levels."""
    truth = read_all(path)
    frames = read_all(path, decoder="decord")
    with open_source(path, decoder="decord") as source:
        jumped = {k: dict(source.read([k]))[k] for k in range(0, len(truth), max(1, len(truth) // 25))}
    for k, frame in [*frames.items(), *jumped.items()]:
        assert np.abs(frame.astype(int) - truth[k]).mean() <= 2, k


@pytest.mark.parametrize("name", REAL)
def test_decord_on_the_real_videos(shared, name):
    pytest.importorskip("decord")
    check_decord(shared / "videos" / name)


@pytest.mark.parametrize("name", [n for n in MADE if MADE[n][1]])
def test_decord_on_the_made_videos(made, name):
    pytest.importorskip("decord")
    if MADE[name][1] == "same":
        check_decord(made(name))
    else:
        with pytest.raises(UserError, match=MADE[name][1]):
            open_source(made(name), decoder="decord")


def test_decord_is_refused_for_damage(shared):
    pytest.importorskip("decord")
    with pytest.raises(UserError, match="--decoder pyav"):
        open_source(shared / "videos" / "corrupted.mp4", decoder="decord")
