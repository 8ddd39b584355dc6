"""A search's results as one HTML file: scores, thumbnails, times. Nothing in it is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

from errors import UserError
from pipelines.pictures import FrameAt
from stores import write_durable

__all__ = ["clock_time", "page", "times_told", "write_page"]

THUMBNAIL = 240  # pixels of a thumbnail's longer side
_QUALITY = 80

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1c1c; background: #fafafa; margin: 2rem auto; max-width: 62rem;
  padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.about, .times { color: #5a5a5a; font-size: .87rem; margin: .15rem 0; overflow-wrap: anywhere; }
.query { display: flex; gap: 1rem; align-items: flex-start; }
ol { list-style: none; padding: 0; margin: 1.4rem 0; }
li { display: flex; gap: 1rem; padding: .8rem 0; border-top: 1px solid #ddd; }
.rank { width: 1.8rem; text-align: right; color: #5a5a5a; font-variant-numeric: tabular-nums; flex: none; }
.frame { width: 240px; min-height: 90px; flex: none; }
.frame img { display: block; max-width: 100%; border-radius: 3px; }
.none { background: #ececec; color: #5a5a5a; font-size: .8rem; padding: .7rem; border-radius: 3px;
  overflow-wrap: anywhere; }
.said { min-width: 0; overflow-wrap: anywhere; }
.clip { font-weight: 600; }
.place { color: #5a5a5a; font-size: .87rem; }
.bar { display: inline-block; height: .55rem; background: #3f7cac; border-radius: 2px; margin-right: .5rem; }
.score { font-variant-numeric: tabular-nums; font-size: .87rem; }
.captions { margin: .3rem 0 0; padding-left: 1.1rem; font-size: .9rem; list-style: disc; }
.captions li { display: list-item; border: 0; padding: 0; }
"""
_SHOWN_CAPTIONS = 5


def write_page(path: str | Path, facts: Mapping, frame_at: FrameAt | None, why_not: str = "") -> Path:
    """Write the page of a search (what `Searcher.text` and `Searcher.video` return), whole or not at all.

    frame_at: (video name, seconds) -> uint8 (H, W, 3); None: no video can be shown, and why_not says why. Raises
    UserError: a file that cannot be written.
    """
    write_durable(path, page(facts, frame_at, why_not).encode())
    return Path(path)


def page(facts: Mapping, frame_at: FrameAt | None = None, why_not: str = "") -> str:
    """The page as HTML; every text of the dataset's, and the query, is escaped."""
    by_text = "own" not in facts
    title = f"“{facts['query']}”" if by_text else f"Captions for {facts['query']}"
    things = "clips" if by_text else "captions"
    head = [f"<h1>{escape(title)}</h1>"]
    head.append(f'<p class="about">{facts["indexed"]:,} {things} of {escape(facts["dataset"])}, ranked by'
                f" {escape(facts['run'])}</p>")  # fmt: skip
    if "weights" in facts:
        leans = sorted(facts["weights"].items(), key=lambda pair: -pair[1])
        said = ", ".join(f"{escape(name)} {100 * weight:.0f} %" for name, weight in leans)
        head.append(f'<p class="about">experts, as the query weighs them: {said}</p>')
    if by_text and any(hit["captions"] for hit in facts["hits"]):
        head.append('<p class="about">beside a clip, what the dataset says of it</p>')
    head.append(f'<p class="times">{escape(times_told(facts["seconds"]))}</p>')
    top = "".join(head)
    if not by_text:
        top = (
            f'<div class="query">{_frame(facts["own"], frame_at, why_not)}<div>{top}{_place(facts["own"])}</div></div>'
        )
    scores = [hit["score"] for hit in facts["hits"]]
    most = max(scores, default=0)
    own = None if by_text else facts["own"]["clip"]
    hits = "\n".join(_hit(i, hit, most, own, frame_at, why_not) for i, hit in enumerate(facts["hits"], 1))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{top}\n<ol>\n{hits}\n</ol>\n</body>\n</html>\n"
    )


def clock_time(start_s: float, stop_s: float | None) -> str:
    """Where a clip lies in its video, in words."""
    return f"{start_s:.1f} to {'the end' if stop_s is None else f'{stop_s:.1f} s'}"


def times_told(seconds: Mapping[str, float]) -> str:
    """How long each step took, in words."""
    return ", ".join(f"{name} {s:.1f} s" if s >= 1 else f"{name} {1000 * s:.1f} ms" for name, s in seconds.items())


def _hit(number: int, hit: Mapping, most: float, own: str | None, frame_at: FrameAt | None, why_not: str) -> str:
    """own: the clip that captions are looked for; None: clips are listed."""
    by_text = own is None
    bar = 200 * max(0.0, hit["score"]) / most if most > 0 else 0.0
    score = f'<div class="score"><span class="bar" style="width: {bar:.0f}px"></span>{hit["score"]:.4f}</div>'
    if by_text:
        said = f'<div class="clip">{escape(hit["clip"])}</div>{_place(hit, name=False)}{score}'
        if hit["captions"]:
            shown = "".join(f"<li>{escape(text)}</li>" for text in hit["captions"][:_SHOWN_CAPTIONS])
            more = len(hit["captions"]) - _SHOWN_CAPTIONS
            shown += f"<li>… and {more} more</li>" if more > 0 else ""
            said += f'<ul class="captions">{shown}</ul>'
    else:
        said = f'<div class="clip">{escape(hit["captions"][0])}</div>{score}<div class="place">said of'
        said += f" {'this clip' if hit['clip'] == own else escape(hit['clip'])}</div>"
    frame = _frame(hit, frame_at, why_not) if by_text else ""
    return f'<li><div class="rank">{number}</div>{frame}<div class="said">{said}</div></li>'


def _place(hit: Mapping, name: bool = True) -> str:
    clip = f"{escape(hit['clip'])}: " if name and hit["clip"] != hit["video"] else ""
    return (f'<div class="place">{clip}video {escape(hit["video"])},'
            f" {clock_time(hit['start_s'], hit['stop_s'])}</div>")  # fmt: skip


def _frame(hit: Mapping, frame_at: FrameAt | None, why_not: str) -> str:
    """The frame at the clip's middle, or why there is none."""
    start, stop = hit["start_s"], hit["stop_s"]
    why = why_not or "no videos were given"
    if frame_at is not None:
        try:
            picture = _jpeg(frame_at(hit["video"], start if stop is None else (start + stop) / 2))
            return f'<div class="frame"><img alt="{escape(hit["clip"])}" src="data:image/jpeg;base64,{picture}"></div>'
        except UserError as error:
            why = str(error)
    return f'<div class="frame"><div class="none">no picture: {escape(why)}</div></div>'


def _jpeg(frame) -> str:
    """A small JPEG in base64."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_QUALITY)
    return base64.b64encode(data.getvalue()).decode()
