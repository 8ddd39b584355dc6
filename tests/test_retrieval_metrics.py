"""Retrieval metrics against the published code's cases, and against its procedure (sorting) written out anew."""

import json

import numpy as np
import pytest

from heads.retrieval_metrics import retrieval, retrieval_by_blocks, retrieval_ranks

NAMES = {"R@1": "R1", "R@5": "R5", "R@10": "R10", "R@50": "R50", "MdR": "MedR", "MnR": "MeanR"}


def test_golden(shared):
    cases = json.loads((shared / "golden" / "metrics_retrieval.json").read_text())["cases"]
    assert len(cases) >= 7
    for case in cases:
        sims = np.array(case["sims"])
        n_texts, n_videos = sims.shape
        video = np.repeat(np.arange(n_videos), n_texts // n_videos)
        if case["query_masks"] is not None:
            video[~np.array(case["query_masks"], bool).reshape(-1)] = -1
        ours = retrieval(sims, video)
        for way in ("t2v", "v2t"):
            for name, theirs in NAMES.items():
                assert ours[way][name] == pytest.approx(case[way][theirs], abs=1e-9), (case["name"], way, name)
        for ranks, way in zip(retrieval_ranks(sims.__getitem__, video, n_videos), ("t2v", "v2t"), strict=True):
            assert ranks[~np.isnan(ranks)].astype(int).tolist() == case[way]["cols"]


def sorted_ranks(sims, video):
    """The published procedure: sort, find the own score's places, average them; of a video the best caption's."""
    texts = []
    for row, own in zip(sims, video, strict=True):
        texts.append(np.flatnonzero(np.sort(-row) == -row[own]).mean())
    videos = []
    for v in range(sims.shape[1]):
        column = np.sort(-sims[:, v])
        places = [np.flatnonzero(column == -sims[t, v]).mean() for t in np.flatnonzero(video == v)]
        videos.append(min(places, default=np.nan))
    return np.array(texts), np.array(videos)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_captions_in_any_order_with_ties(dtype):
    rng = np.random.default_rng(0)
    sims = rng.integers(0, 9, (53, 11)).astype(dtype) / 7  # many ties
    video = rng.permutation(np.concatenate([np.arange(10), rng.integers(0, 10, 43)]))  # the last has no caption
    ours = retrieval_ranks(sims.__getitem__, video, 11)
    for found, expected in zip(ours, sorted_ranks(sims, video), strict=True):
        assert np.array_equal(found, expected, equal_nan=True)
    figures = retrieval(sims, video)["v2t"]
    assert figures["MnR"] == pytest.approx(np.nanmean(ours[1]) + 1) and figures["R@50"] <= 100


def test_texts_that_take_no_part_are_as_if_they_were_not_there():
    rng = np.random.default_rng(1)
    sims, video = rng.random((12, 4)), np.repeat(np.arange(4), 3)
    video[[2, 7]] = -1
    kept = video >= 0
    assert retrieval(sims, video) == retrieval(sims[kept], video[kept])


def test_what_was_not_predicted_is_never_a_hit():
    sims = np.eye(5)
    sims[1] = np.nan  # a text without features
    sims[:, 3] = np.nan  # a video without features
    texts, videos = retrieval_ranks(sims.__getitem__, np.arange(5), 5)
    assert texts.tolist() == [0, 5, 0, 5, 0] and videos.tolist() == [0, 5, 0, 5, 0]
    figures = retrieval(sims, np.arange(5))
    assert figures["t2v"]["R@1"] == figures["t2v"]["R@5"] == figures["v2t"]["R@50"] == 60  # though 50 are not there
    assert figures["t2v"]["MnR"] == (3 * 1 + 2 * 6) / 5


def test_blocks_are_asked_for_twice_and_never_wider_than_the_bound(monkeypatch):
    monkeypatch.setattr("heads.retrieval_metrics._BLOCK_BYTES", 8 * 30 * 7)
    rng = np.random.default_rng(2)
    sims, video = rng.random((100, 30)).astype(np.float32), rng.integers(0, 30, 100)
    asked = []

    def rows_of(part):
        asked.append((part.start, part.stop))
        return sims[part]

    by_blocks = retrieval_by_blocks(rows_of, video, 30)
    assert sorted(asked[:15]) == sorted(asked[15:]) and max(b - a for a, b in asked) == 7 and asked[14] == (98, 100)
    monkeypatch.undo()
    assert by_blocks == retrieval(sims, video)


def test_a_memory_map_is_ranked_without_being_read_as_a_whole(tmp_path):
    rng = np.random.default_rng(3)
    sims = rng.random((40, 20)).astype(np.float32)
    np.save(tmp_path / "sims.npy", sims)
    video = np.repeat(np.arange(20), 2)
    assert retrieval(np.load(tmp_path / "sims.npy", mmap_mode="r"), video) == retrieval(sims, video)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="a row for each of 3 texts"):
        retrieval(np.eye(4), [0, 1, 2])
    with pytest.raises(ValueError, match=r"in \[-1, 4\)"):
        retrieval(np.eye(4), [0, 1, 2, 4])
    with pytest.raises(ValueError, match="must be 4 wide"):
        retrieval_by_blocks(lambda part: np.eye(3)[part], [0, 1, 2], 4)


def test_nothing_to_rank():
    figures = retrieval(np.zeros((2, 3)), [-1, -1])
    assert all(np.isnan(value) for way in figures.values() for value in way.values())
