"""Coded pictures that no other picture is predicted from: a decoder that is not given them decodes all others alike.

What says so is each picture's own NAL unit headers, never a flag of the container: nal_ref_idc = 0 in H.264 (ITU-T
H.264, 7.4.1); in H.265 a sub-layer non-reference picture of the highest temporal sub-layer (ITU-T H.265, 3.147 and
table 7-1; those of lower sub-layers may be references of higher ones). Of other codecs nothing is disposable here: a
VP9 frame that is no reference may still leave its probabilities and motion vectors to the next.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["Coded", "reader_of"]

_START = b"\0\0\1"
_SEI_AUD_FILLER = {"h264": {6, 9, 12}, "hevc": {35, 38, 39, 40}}  # units that change nothing for other pictures


class Coded(NamedTuple):
    """What a packet's NAL units say of its picture."""

    sublayer: int  # temporal, 0 in H.264
    reference: bool  # other pictures of this sub-layer may be predicted from it, or need what comes with it


def reader_of(codec: str, extradata: bytes | None) -> Callable[[bytes], Coded] | None:
    """What reads a stream's packets; None for codecs of which nothing is disposable.

    Args:
        codec: FFmpeg's name of it.
        extradata: of the stream: it says whether units begin with their lengths or with start codes.
    """
    if codec not in _SEI_AUD_FILLER:
        return None
    at = {"h264": 4, "hevc": 21}[codec]  # of the byte whose last two bits are the width of a length, less one
    boxed = extradata is not None and len(extradata) > at and extradata[0] == 1
    width = (extradata[at] & 3) + 1 if boxed else 0
    judge = _h264 if codec == "h264" else _hevc

    def read(packet: bytes) -> Coded:
        return judge(_behind_lengths(packet, width) if width else _behind_start_codes(packet))

    return read


def _h264(units: Iterator[bytes]) -> Coded:
    slices = 0
    for head in units:
        kind = head[0] & 31 if head else 0
        if kind == 1 and not head[0] & 96:
            slices += 1
        elif kind not in _SEI_AUD_FILLER["h264"]:
            return Coded(0, True)  # a reference, parameter sets, or something unknown or broken
    return Coded(0, slices == 0)


def _hevc(units: Iterator[bytes]) -> Coded:
    sublayer, slices, reference = 0, 0, False
    for head in units:
        kind = head[0] >> 1 & 63 if len(head) == 2 else 63
        if kind < 16:
            sublayer = max(sublayer, (head[1] & 7) - 1)
        if kind < 16 and kind % 2 == 0 and not head[0] & 1 and head[1] < 8:  # of the base layer
            slices += 1
        elif kind not in _SEI_AUD_FILLER["hevc"]:
            reference = True
    return Coded(sublayer, reference or slices == 0)


def _behind_lengths(packet: bytes, width: int) -> Iterator[bytes]:
    """The first two bytes of every unit; b"" where the lengths do not add up."""
    at, end = 0, len(packet)
    while at < end:
        start = at + width
        at = start + int.from_bytes(packet[at:start])
        if at > end:
            yield b""
        else:
            yield packet[start : min(start + 2, at)]


def _behind_start_codes(packet: bytes) -> Iterator[bytes]:
    at = packet.find(_START)
    if packet[: max(at, 0)].strip(b"\0") or at < 0:
        yield b""  # something that is no unit comes first
    while at >= 0:
        yield packet[at + 3 : at + 5]
        at = packet.find(_START, at + 3)
