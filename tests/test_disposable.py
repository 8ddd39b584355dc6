"""Frames that nothing is predicted from are not decoded on the way to others: same pixels, same failures, less work."""

import os

import av
import media
import numpy as np
import pytest
from media import x264, x265

from extract import video_files
from extract.decode import FrameError, open_source
from extract.disposable import Coded, reader_of

N = 48
MADE = {  # name: (maker(path), whether frames are left out on the way to others)
    "h264.mp4": (lambda p: media.make_video(p, "libx264", N, options=x264(keyint=16, bframes=3)), True),
    "open_gop.mkv": (lambda p: media.make_video(p, "libx264", N, options=x264(keyint=16, bframes=3, open_gop=1)), True),
    "long_gop.ts": (lambda p: media.make_video(p, "libx264", N, options=x264(keyint=250, bframes=5)), True),
    "slices.mp4": (lambda p: media.make_video(p, "libx264", N, options=x264(keyint=16, bframes=3, slices=4)), True),
    "hevc.mp4": (lambda p: media.make_video(p, "libx265", N, options=x265(keyint=16, bframes=4, open_gop=0)), True),
    "hevc.ts": (lambda p: media.make_video(p, "libx265", N, options=x265(keyint=24, bframes=4, open_gop=1)), True),
    "layers.mp4": (
        lambda p: media.make_video(p, "libx265", N, options=x265(keyint=16, bframes=4, temporal_layers=3)), True),
    "no_b.mp4": (lambda p: media.make_video(p, "libx264", N, options=x264(keyint=16, bframes=0)), False),
    "mpeg4.mp4": (lambda p: media.make_video(p, "mpeg4", N, options={"bf": "2", "g": "16"}), False),
    "vp9.webm": (lambda p: media.make_video(p, "libvpx-vp9", N, options={"lag-in-frames": "16", "g": "24"}), False),
    "h264.avi": (lambda p: media.make_video(p, "libx264", N, options=x264(keyint=16, bframes=3)), False),
}  # fmt: skip
SHARED = [
    "activitynet_v_GGSY1Qvo990.mp4", "activitynet_v_ZNVhz7ctTq0.mp4", "corrupted.mp4", "ego4d_3c0dffd0_012_014.mp4",
    "kinetics_flipping_a_pancake.mkv", "msrvtt_video7500.mp4", "odd_vp9.mp4", "test_non_zero_start.mp4",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return media.when_asked_for(MADE, tmp_path_factory.mktemp("videos"))


@pytest.fixture
def fed(monkeypatch):
    """The pts of every packet that a decoder is given: a list that can be cleared."""
    given, decode = [], video_files._Decoder._decode

    def counted(decoder, packet):
        given.append(packet.pts)
        return decode(decoder, packet)

    monkeypatch.setattr(video_files._Decoder, "_decode", counted)
    return given


def selections(n):
    """Lists of frames: all, some of them at even or uneven steps, jumps back and forth, one alone."""
    rng = np.random.default_rng(0)
    yield [list(range(n))]
    for step in (2, 7, 19):
        yield [list(range(start, n, step)) for start in (0, step // 2)]
    yield [sorted(rng.choice(n, 5, replace=False).tolist()) for _ in range(12)]
    yield [[int(k)] for k in rng.permutation(n)[:24]]


def read(path, lists, threads):
    """{frame: pixels, or None of one that cannot be had}, by one source that has seen nothing of the file before."""
    video_files._indices.clear()
    with open_source(path, threads=threads) as source:
        pairs = [pair for picked in lists for pair in source.read(picked)]
    found = {}
    for k, frame in pairs:
        value = None if isinstance(frame, FrameError) else frame
        assert k not in found or np.array_equal(found[k], value), k
        found[k] = value
    return found


def check_all_ways(path, truth, threads=(1, 2)):
    """However frames are chosen, each is the same, or cannot be had, as when all of them are read."""
    whole = read(path, [range(len(truth))], 1)
    lost = {k for k, frame in whole.items() if frame is None}
    for count in threads:
        for lists in selections(min(len(truth), 100)):
            for k, frame in read(path, lists, count).items():
                assert (frame is None) == (k in lost), (k, lists, count)
                if k not in lost:
                    np.testing.assert_array_equal(frame, truth[k], err_msg=f"frame {k} of {lists}, {count} threads")
    return lost


def decoded(path):
    return [media.rgb(frame) for _, frame in media.plain_decode(path)]


@pytest.mark.parametrize("name", MADE)
def test_the_same_frames_however_they_are_chosen(made, name):
    assert check_all_ways(made(name), decoded(made(name))) == set()


@pytest.mark.parametrize("name", SHARED)
def test_the_same_frames_of_the_shared_videos(shared, name):
    path = shared / "videos" / name
    if name == "corrupted.mp4":
        by_time = {frame.pts // 1024: media.rgb(frame) for _, frame in media.plain_decode(path)}
        assert check_all_ways(path, [by_time.get(k) for k in range(50)], [1]) == set(range(29, 50))
    else:
        truth = read(path, [range(video_files.VideoFile(path).n_frames)], 1)
        assert check_all_ways(path, truth, [2]) == set()


@pytest.mark.parametrize("name", MADE)
def test_fewer_frames_are_decoded_where_some_are_disposable(made, fed, name):
    path, spares = made(name), MADE[name][1]
    index = video_files.frame_index(path)
    fed.clear()
    with open_source(path, threads=1) as source:
        list(source.read([14]))  # in the first stretch: every frame before it is decoded before it
    ranks = {index.rank(pts) for pts in fed if pts is not None}
    assert any(k not in ranks for k in range(14) if index.disposable[k]) == spares
    with av.open(str(path)) as container:
        first = {p.pts for p in container.demux(video=0) if p.size and p.pts is not None and p.is_keyframe}
    assert index.disposable.any() == spares and not set(index.ids[index.disposable].tolist()) & first
    fed.clear()
    with open_source(path, threads=1) as source:
        list(source.read(range(N)))
    assert len(fed) >= N  # each of them is wanted


def test_what_follows_a_frame_is_not_decoded_before_a_seek(made, fed):
    path = made("h264.mp4")
    order = video_files.frame_index(path).order
    fed.clear()
    with open_source(path, threads=1) as source:
        assert source.seeks(np.array([4, 33, 34, 47])).tolist() == [False, True, False, False]
        assert source.seeks(np.array([], np.int64)).tolist() == [] and source.seeks(np.array([3])).tolist() == [False]
        pictures = dict(source.read([4, 44]))
        ids = source.index.ids.tolist()
    assert [media.counter(pictures[k]) for k in (4, 44)] == [4, 44]
    ranks = [ids.index(pts) for pts in fed]
    assert max(order[k] for k in ranks if k < 16) == order[4] and not any(16 <= k < 32 for k in ranks)


def test_frames_passed_over_can_be_asked_for_after_all(made):
    truth = decoded(made("long_gop.ts"))
    with open_source(made("long_gop.ts"), threads=1) as source:
        ahead = source.read([3, 40])
        assert np.array_equal(next(ahead)[1], truth[3])
        for k in (4, 5, 6, 7, 40, 8):
            np.testing.assert_array_equal(dict(source.read([k]))[k], truth[k])


def test_two_readers_of_one_source_in_step(made):
    path = made("h264.mp4")
    truth, picked = decoded(path), [1, 5, 6, 20, 43]
    with open_source(path, threads=1) as source:
        for (k, one), (_, other) in zip(source.read(picked), source.read(picked), strict=True):
            np.testing.assert_array_equal(one, truth[k])
            np.testing.assert_array_equal(other, truth[k])


# --- damage ----------------------------------------------------------------------------------------------


def damaged(path, folder, frame, kind):
    """A copy of `path` whose packet of `frame` is overwritten: from its 20th byte on, or as a whole with zeros."""
    index = video_files.frame_index(path)
    with av.open(str(path)) as container:
        packet = next(p for p in container.demux(video=0) if p.pts == index.ids[frame])
        start, stop = packet.pos + (20 if kind == "noise" else 0), packet.pos + packet.size
    data = bytearray(path.read_bytes())
    data[start:stop] = np.random.default_rng(frame).bytes(stop - start) if kind == "noise" else bytes(stop - start)
    out = folder / f"{kind}{frame}{path.suffix}"
    out.write_bytes(data)
    os.utime(out, (1e9 + frame, 1e9 + frame))
    return out


def test_a_damaged_frame_that_nothing_is_predicted_from_loses_itself_only(made, tmp_path):
    path = made("h264.mp4")
    truth, index = decoded(path), video_files.frame_index(path)
    chosen = np.flatnonzero(index.disposable)[[1, 6, -2]].tolist()
    for frame in chosen:
        assert check_all_ways(damaged(path, tmp_path, frame, "noise"), truth, [1]) == {frame}


@pytest.mark.parametrize("kind", ["noise", "zeros"])
def test_a_damaged_frame_that_others_are_predicted_from_loses_them_too(made, tmp_path, kind):
    path = made("h264.mp4")
    truth, index = decoded(path), video_files.frame_index(path)
    frame = int(np.flatnonzero(~index.disposable[17:31])[1]) + 17
    lost = check_all_ways(damaged(path, tmp_path, frame, kind), truth, [1])
    later = {k for k in range(16, 32) if index.order[k] >= index.order[frame]}
    assert lost and frame in lost and lost <= set(range(16, 32)) and later <= lost


# --- what packets say ------------------------------------------------------------------------------------

START = b"\0\0\0\1"
H264 = {"reference": b"\x41\x9a", "plain": b"\x01\x9e", "sei": b"\x06\x05", "aud": b"\x09\xf0", "sps": b"\x67\x64"}
HEVC = {"reference": b"\x02\x01", "plain": b"\x00\x01", "upper": b"\x00\x02", "above": b"\x02\x02", "sei": b"\x4e\x01"}
AVCC, HVCC = b"\1\x64\0\x1f\xff", bytes([1, *[0] * 20, 0x0F])


def lengths(*units):
    return b"".join(len(unit).to_bytes(4) + unit for unit in units)


def codes(*units):
    return b"".join(START + unit for unit in units)


@pytest.mark.parametrize(("codec", "units", "boxed"), [("h264", H264, AVCC), ("hevc", HEVC, HVCC)])
def test_what_the_units_of_a_packet_say(codec, units, boxed):
    body, referenced, free = b"\x88\x77", Coded(0, True), Coded(0, False)
    for extradata, packet in ((boxed, lengths), (None, codes), (codes(b"\x67\x64"), codes)):
        says = reader_of(codec, extradata)
        plain, reference, sei = (units[name] + body for name in ("plain", "reference", "sei"))
        assert says(packet(plain)) == says(packet(sei, plain, plain)) == free
        assert says(packet(reference)) == says(packet(plain, reference)) == referenced
        assert says(packet(sei)) == says(b"") == referenced  # no picture at all
        assert says(b"\5" + packet(plain)) == referenced  # broken
    says = reader_of(codec, boxed)
    assert says(lengths(units["plain"] + body)[:-1]) == says(lengths(units["plain"]) + bytes(4)) == referenced


def test_parameter_sets_and_layers():
    assert reader_of("h264", AVCC)(lengths(H264["aud"], H264["sps"], H264["plain"])).reference
    says = reader_of("hevc", HVCC)
    assert says(lengths(HEVC["upper"])) == Coded(1, False) and says(lengths(HEVC["above"])) == Coded(1, True)
    assert says(lengths(b"\x01\x01")).reference and says(lengths(b"\x00\x09")).reference  # other layers
    assert reader_of("vp9", None) is None and reader_of("mpeg4", None) is None
