"""The sound of video files: clock, resampling, gaps, damage; a window holds the same whatever was read before."""

import os
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media import add_stream, encode, make_video, remux

from extract import audio
from extract.audio import AudioSource, NoAudio, open_audio
from extract.decode import FrameError, VideoError

RATE = 16000
CODECS = {"mp4": "aac", "ts": "aac", "mkv": "libopus", "mov": "pcm_s16le", "avi": "pcm_s16le", "webm": "libopus"}


def burst(t):
    """A 440 Hz tone at half volume, sounding during the odd tenths of a second; t in seconds."""
    return 0.5 * np.sin(2 * np.pi * 440 * t) * (np.floor(t * 10) % 2 == 1)


def noise(t):
    """Something else at every sample, smooth enough to survive any rate used here."""
    return 0.2 * (np.sin(900 * t + 40 * np.sin(3 * t)) + np.sin(2500 * t + 90 * np.sin(1.7 * t)))


def make_sound(
    path: Path, seconds: float = 2.0, *, codec=None, rate=48000, layout="mono", start=0.0, hole=None, video_s=2.0,
    video_start=0, wave=burst, gains=(1.0, 1.0),
) -> Path:  # fmt: skip
    """A video with sound: `wave` of the video's clock, from `start` on.

    hole: (from, to) seconds of the sound left out; gains: per channel.
    """
    codec = codec or CODECS[path.suffix[1:]]
    with av.open(str(path), "w") as out:
        video = add_stream(out, "libvpx" if path.suffix == ".webm" else "libx264", 25, (64, 48))
        sound = out.add_stream(codec, rate=rate, layout=layout)
        frames = range(video_start, video_start + round(25 * video_s))
        encode(out, video, [k % 200 for k in frames], frames, (64, 48), Fraction(1, 25))
        kind = sound.codec_context.format.name
        size = sound.codec_context.frame_size or 1024
        gains = np.array(gains[: 1 if layout == "mono" else 2])[:, None]
        packets = []
        for at in range(0, round(seconds * rate), size):
            pcm = gains * wave(start + np.arange(at, min(at + size, round(seconds * rate))) / rate)[None]
            if kind.startswith("flt"):
                pcm = pcm.astype(np.float32)
            else:
                bits = int(kind.strip("sp"))
                pcm = np.round(pcm * (2 ** (bits - 1) - 1)).astype(f"int{bits}")
            frame = av.AudioFrame.from_ndarray(pcm if kind.endswith("p") else pcm.T.reshape(1, -1), kind, layout)
            shift = start + video_start / 25
            frame.sample_rate, frame.pts, frame.time_base = rate, at + round(shift * rate), Fraction(1, rate)
            packets += [(at / rate, p) for p in sound.encode(frame)]
        packets += [(seconds, p) for p in sound.encode(None)]
        for at, packet in packets:
            if hole is None or not hole[0] <= at < hole[1]:
                out.mux(packet)
    return path


def power(samples, at, seconds=0.04):
    """Mean square of the stretch that begins `at` seconds."""
    part = samples[round(at * RATE) : round((at + seconds) * RATE)]
    return float(np.mean(np.square(part, dtype=np.float64)))


def onsets(samples, rate=RATE):
    """Seconds at which the sound passes a quarter of full volume after 50 ms below it."""
    loud = np.flatnonzero(np.abs(samples) > 0.25) / rate
    return loud[np.diff(loud, prepend=-1.0) > 0.05]


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mp4", {}),
        ("a.mp4", {"rate": 44100, "layout": "stereo"}),
        ("a.mp4", {"rate": 22050}),
        ("a.mp4", {"rate": 16000}),
        ("a.mkv", {}),
        ("a.mkv", {"codec": "libmp3lame", "rate": 44100}),
        ("a.mkv", {"codec": "flac", "rate": 44100, "layout": "stereo"}),
        ("a.mkv", {"codec": "ac3", "layout": "stereo"}),
        ("a.mov", {"rate": 44100, "layout": "stereo"}),
        ("a.avi", {"rate": 22050}),
        ("a.webm", {}),
    ],
)
def test_tones_sound_when_they_should(tmp_path, name, options):
    path = make_sound(tmp_path / name, **options)
    with open_audio(path, RATE) as source:
        assert abs(source.start_s) < 0.03 and abs(source.stop_s - 2) < 0.07, (source.start_s, source.stop_s)
        samples, missing = source.read(0, 2)
        assert samples.dtype == np.float32 and samples.shape == (32000,) and missing < 0.03 * RATE
        np.testing.assert_allclose(onsets(samples), np.arange(0.1, 2, 0.2), atol=0.003)
        for k in range(19):
            want = 0.125 if k % 2 else 0.0
            assert abs(power(samples, k / 10 + 0.03) - want) < 0.02, k


def test_exact_samples(tmp_path):
    """Sound kept without loss at the wanted rate comes out as it is; at three times the rate nearly so."""
    expected = noise(np.arange(2 * RATE) / RATE)
    same = make_sound(tmp_path / "same.mov", rate=RATE, wave=noise)
    np.testing.assert_allclose(open_audio(same, RATE).read(0, 2)[0], expected, atol=2e-4)
    higher = make_sound(tmp_path / "higher.mov", rate=48000, wave=noise, layout="stereo", gains=(1.5, 0.5))
    np.testing.assert_allclose(open_audio(higher, RATE).read(0.1, 1.9)[0], expected[1600:-1600], atol=2e-3)


@pytest.mark.parametrize("start", [0.5, 0.123])
@pytest.mark.parametrize("name", ["a.mkv", "a.mov"])
def test_sound_that_starts_late(tmp_path, name, start):
    path = make_sound(tmp_path / name, 1.0, start=start)
    with open_audio(path, RATE) as source:
        assert source.start_s == pytest.approx(start, abs=0.002)
        samples, missing = source.read(0, 2)
        assert not samples[: round(start * RATE)].any()
        t = np.arange(0, start + 1, 1 / RATE)
        np.testing.assert_allclose(onsets(samples), onsets(burst(t) * (t >= start)), atol=0.003)
        outside = source.start_s + 2 - source.stop_s
        assert missing == pytest.approx(outside * RATE, abs=0.03 * RATE)
        with pytest.raises(NoAudio, match="no sound from 0.000 to 0.100 s") as error:
            source.read(0, 0.1)
        assert error.value.reason == "absent"


def test_the_clock_is_that_of_the_video(tmp_path):
    """Both streams 2 s into the container's time: the video's first frame is at zero all the same."""
    path = make_sound(tmp_path / "late.mkv", video_start=50, codec="flac")
    with open_audio(path, RATE) as source:
        assert source.start_s == pytest.approx(0, abs=0.002)
        np.testing.assert_allclose(onsets(source.read(0, 2)[0]), np.arange(0.1, 2, 0.2), atol=0.003)


@pytest.mark.parametrize("seconds", [1.0, 3.5])
def test_sound_shorter_or_longer_than_the_video(tmp_path, seconds):
    with open_audio(make_sound(tmp_path / "a.mov", seconds), RATE) as source:
        assert source.stop_s == pytest.approx(seconds, abs=0.03)
        samples, missing = source.read(seconds - 0.5, seconds + 0.5)
        assert missing == pytest.approx(0.5 * RATE, abs=0.03 * RATE) and samples[:1600].any()
        assert not samples[-missing:].any()
        for window in ((seconds + 1, seconds + 2), (-2, -1)):
            with pytest.raises(NoAudio):
                source.read(*window)


@pytest.mark.parametrize("name", ["a.mkv", "b.mkv"])
def test_a_gap_is_silence(tmp_path, name):
    codec = "flac" if name == "a.mkv" else "libopus"
    path = make_sound(tmp_path / name, codec=codec, hole=(0.75, 1.25), wave=noise)
    whole = make_sound(tmp_path / f"whole_{name}", codec=codec, wave=noise)
    found, missing = open_audio(path, RATE).read(0, 2)
    expected, _ = open_audio(whole, RATE).read(0, 2)
    assert missing < 0.03 * RATE
    assert not found[round(0.86 * RATE) : round(1.24 * RATE)].any()
    for part in (slice(100, 11000), slice(22500, 31000)):  # the container rounds times to a millisecond: 16 samples
        shifted = [np.abs(found[part] - np.roll(expected, k)[part]).max() for k in range(-16, 17)]
        assert min(shifted) < 0.02


@pytest.mark.parametrize("options", [{}, {"rate": 44100, "layout": "stereo"}])
def test_an_overlap_is_dropped(tmp_path, options):
    """Two transport streams put end to end, the second 0.5 s too early: the end of the first counts."""
    first = make_sound(tmp_path / "first.ts", wave=noise)
    second = make_sound(tmp_path / "second.ts", wave=lambda t: -noise(t), start=1.5, **options)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with open_audio(path, RATE) as source:
        assert source.stop_s == pytest.approx(3.5, abs=0.05)
        found, _ = source.read(0.1, 3.4)
    t = 0.1 + np.arange(len(found)) / RATE
    expected = np.where(t < 2.0, noise(t), -noise(t))
    wrong = t[np.abs(found - expected) > 0.1]
    assert ((1.9 < wrong) & (wrong < 2.1)).all(), (wrong.min(), wrong.max())


def test_any_order_gives_the_same_samples(tmp_path):
    path = make_sound(tmp_path / "a.mkv", 4.0, rate=48000, wave=noise, start=0.0137)
    with open_audio(path, RATE) as source:
        whole, _ = source.read(0, 4)
    windows = [(0.96 * k, 0.96 * k + 0.975) for k in range(4)]
    rng = np.random.default_rng(0)
    windows += [(a, a + n / RATE) for a, n in zip(rng.uniform(0, 3, 30), rng.integers(1, 15000, 30), strict=True)]
    for order in (range(len(windows)), range(len(windows) - 1, -1, -1)):
        with open_audio(path, RATE) as source:
            for k in order:
                first = round(windows[k][0] * RATE)
                samples, _ = source.read(*windows[k])
                assert np.array_equal(samples, whole[first : first + len(samples)])
                with open_audio(path, RATE) as fresh:
                    assert np.array_equal(fresh.read(*windows[k])[0], samples)


def test_forward_windows_decode_once(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(audio._Samples, "__init__", counting(audio._Samples.__init__, opened))
    with open_audio(make_sound(tmp_path / "a.mp4", 3.0), RATE) as source:
        for k in range(3):
            source.read(0.96 * k, 0.96 * k + 0.975)
        assert len(opened) == 1
        source.read(0.5, 1.0)
        assert len(opened) == 2
        source.close()
        assert source.read(1.0, 1.5)[1] == 0


def counting(function, calls):
    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted


def spoil(path: Path, numbers=None) -> Path:
    """Overwrite the packets of these numbers, or all, with bytes that no codec takes."""
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(audio=0) if p.size]
    data = path.read_bytes()
    for number in range(len(packets)) if numbers is None else numbers:
        at = data.index(packets[number])
        data = data[:at] + b"\xff" * len(packets[number]) + data[at + len(packets[number]) :]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name, codec, numbers", [("a.mp4", "aac", (40, 41)), ("a.mkv", "flac", (9, 10)), ("a.mkv", "libmp3lame", (40, 41))]
)
def test_a_damaged_stretch_loses_its_own_windows_only(tmp_path, name, codec, numbers):
    """Two packets of 48 kHz sound are broken: a stretch after 0.8 s."""
    good = make_sound(tmp_path / f"good_{name}", codec=codec, wave=noise)
    path = spoil(make_sound(tmp_path / name, codec=codec, wave=noise), numbers)
    with open_audio(path, RATE) as source, open_audio(good, RATE) as other:
        expected, _ = other.read(0, 2)
        lost = []
        for k in range(39):
            try:
                samples, _ = source.read(k / 20, (k + 1) / 20)
            except FrameError as error:
                assert error.reason == "damaged" and "damaged from" in str(error)
                lost.append(k)
                continue
            assert np.abs(samples - expected[k * 800 : (k + 1) * 800]).max() < 0.02, k
    assert lost and lost == list(range(lost[0], lost[-1] + 1)) and len(lost) <= 7
    with open_audio(path, RATE) as source, pytest.raises(FrameError):
        source.read(0, 2)


def test_damage_at_either_end(tmp_path):
    path = spoil(make_sound(tmp_path / "a.mp4", wave=noise), (0, 1, *range(90, 95)))
    with open_audio(path, RATE) as source:
        for window in ((0, 0.02), (1.99, 2.1)):
            with pytest.raises(FrameError):
                source.read(*window)
        assert source.read(0.2, 1.7)[1] == 0


def test_videos_without_usable_sound(tmp_path):
    def reason(path):
        with pytest.raises(VideoError) as error:
            open_audio(path, RATE)
        return error.value.reason

    silent = make_video(tmp_path / "silent.mp4", "libx264", 10)
    with pytest.raises(NoAudio, match="no audio stream in the file .streams: video"):
        open_audio(silent, RATE)
    (tmp_path / "frames").mkdir()
    assert reason(tmp_path / "frames") == reason(tmp_path / "frames.tar") == "absent"
    assert reason(tmp_path / "nothing.mp4") == "missing"
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "empty.mp4") == "empty"
    (tmp_path / "text.mp4").write_text("not a video at all, " * 50)
    assert reason(tmp_path / "text.mp4") == "not_video"
    whole = make_sound(tmp_path / "whole.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:-3000])
    assert reason(cut) == "growing"
    os.utime(cut, (time.time() - 100,) * 2)
    assert reason(cut) == "truncated"
    bad = spoil(make_sound(tmp_path / "bad.mp4"))
    os.utime(bad, (time.time() - 100,) * 2)
    assert reason(bad) == "damaged"
    with pytest.raises(ValueError, match="start_s < stop_s"):
        open_audio(whole, RATE).read(1, 1)
    with pytest.raises(ValueError, match="rate"):
        open_audio(whole, 0)


def test_remuxed_without_sound_is_absent(tmp_path):
    with pytest.raises(NoAudio):
        AudioSource(remux(make_sound(tmp_path / "a.mp4"), tmp_path / "b.mp4"), RATE)


def test_a_long_video_stays_in_bounded_memory(tmp_path):
    """20 minutes of stereo sound, 110 MB of samples at 24 kHz: read in windows, 40 MB more at most."""
    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as out:
        video, sound = add_stream(out, "libx264", 1, (64, 48)), out.add_stream("flac", rate=24000, layout="stereo")
        encode(out, video, range(3), range(3), (64, 48), Fraction(1))
        for at in range(0, 1200 * 24000, 4096):
            pcm = np.round(3000 * noise(np.arange(at, at + 4096) / 24000)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.stack([pcm, pcm], 1).reshape(1, -1), "s16", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 24000, at, Fraction(1, 24000)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    code = (
        "import resource, sys\nfrom extract.audio import open_audio\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "source = open_audio(sys.argv[1], 24000); source.read(0, 1); before = used()\n"
        "for k in range(0, 1199): source.read(k, k + 1.01)\n"
        "assert used() - before < 40, (before, used())"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=root)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="compares with the ffmpeg program")
def test_real_videos_as_ffmpeg_decodes_them(shared):
    heard = 0
    for path in sorted((shared / "videos").glob("*.m[pk][4v]")):
        try:
            source = open_audio(path, RATE)
        except NoAudio:
            continue
        heard += 1
        with source:
            samples, _ = source.read(source.start_s, source.stop_s)
        command = ["ffmpeg", "-v", "error", "-i", str(path), "-vn", "-ac", "1", "-ar", str(RATE), "-f", "s16le", "-"]
        expected = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.int16) / 32768
        n = min(len(samples), len(expected))
        assert abs(len(samples) - len(expected)) < 0.03 * RATE
        assert np.abs(samples[:n] - expected[:n]).max() < 1e-3, path.name
    assert heard == 4
