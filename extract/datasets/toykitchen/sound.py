"""The sound of an action: each verb has its own, over the hum of the kitchen."""

import numpy as np

__all__ = ["RATE", "action_sound", "hum"]

RATE = 16_000  # samples a second, mono


def hum(rng: np.random.Generator, n: int) -> np.ndarray:
    """Background of n samples, float32: mains hum of the kitchen's own pitch and faint noise."""
    t = np.arange(n, dtype=np.float32) / RATE
    pitch = 90 + 60 * rng.random()
    return (0.02 * np.sin(2 * np.pi * pitch * t) + 0.01 * (2 * rng.random(n) - 1)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Noise averaged over `width` samples, scaled back to about +-1: the wider, the duller."""
    total = np.cumsum(2 * rng.random(n + width) - 1)
    return (total[width:] - total[:-width]) / np.sqrt(width)


def action_sound(verb: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """n samples, float32 in about [-0.5, 0.5], of one action.

    take: a rising tone; put: a thud near the end; shake: a rattle at about 4 Hz; turn: a creak that wavers;
    slide: a steady scrape; lift: a whoosh that swells.
    """
    t = np.arange(n) / RATE
    u = t / max(t[-1], 1e-9)
    base = 0.85 + 0.3 * rng.random()
    if verb == "take":
        sound = 0.3 * np.sin(2 * np.pi * base * (300 * t + 350 * t * u)) * np.sin(np.pi * u)
    elif verb == "put":
        after = np.maximum(t - 0.7 * t[-1], 0)
        thud = np.sin(2 * np.pi * 80 * base * after) + 0.5 * smooth_noise(rng, n, 12)
        sound = 0.5 * thud * np.exp(-14 * after) * (after > 0)
    elif verb == "shake":
        sound = 0.3 * smooth_noise(rng, n, 2) * np.maximum(0, np.sin(2 * np.pi * 4 * base * t)) ** 3
    elif verb == "turn":
        sound = 0.2 * np.sign(np.sin(2 * np.pi * base * (170 * t + 6 * np.sin(2 * np.pi * 3 * t))))
    elif verb == "slide":
        sound = 0.18 * smooth_noise(rng, n, 4) * np.minimum(1, 8 * np.minimum(u, 1 - u))
    elif verb == "lift":
        sound = 0.3 * smooth_noise(rng, n, 25) * np.sin(np.pi * u) ** 2
    else:
        raise ValueError(f"no sound for verb {verb!r}")
    return sound.astype(np.float32)
