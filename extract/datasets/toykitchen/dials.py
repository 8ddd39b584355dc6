"""The dials of toy kitchen: every number that changes what is drawn, and the hash that freezes a variant."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from errors import UserError

__all__ = ["GENERATOR", "Dials", "dials_from"]

# Raised whenever the same dials give other pixels, sounds or annotations: a folder made by an older generator
# is then left as it is and a new one is made beside it.
GENERATOR = 1


@dataclass(frozen=True)
class Dials:
    """What a variant of toy kitchen is made of; the defaults are the one called `toykitchen`."""

    seed: int = 0
    # how much
    train_clips: int = 800
    val_clips: int = 400
    clips_per_video: int = 25
    clock_clips: int = 10  # in each of the three clock videos, counted in train_clips; 0: no such videos
    untrimmed: int = 4  # long videos with event labels only, every fourth of them in the validation kitchens
    untrimmed_seconds: int = 40
    # how hard
    distractors: int = 3  # objects of other classes that nobody touches
    idle_hands: float = 0.5  # share of scenes in which a second hand rests beside a distractor
    camera: float = 1.0  # pan and jitter of the camera; 0: a tripod
    affinity: float = 3.0  # how much likelier the usual verb of a noun is than any other verb
    context: float = 0.25  # share of scenes whose table top goes with the noun; the rest have any
    box_noise: float = 1.5  # standard deviation of an object box's edges, pixels
    irrelevant: float = 0.6  # share of an untrimmed video in which nothing labelled happens
    entities: int = 3  # at most so many objects in a caption

    def __post_init__(self):
        """Refuse values that no scene can be drawn for."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, field.type)):
                raise UserError(f"toykitchen: dial {field.name} must be {field.type.__name__}, got {value!r}")
            object.__setattr__(self, field.name, field.type(value))
        limits = {
            "seed": (0, 2**31), "train_clips": (1, 100_000), "val_clips": (1, 100_000),
            "clips_per_video": (1, 400), "clock_clips": (0, 400), "untrimmed": (0, 1000),
            "untrimmed_seconds": (4, 900), "distractors": (0, 7), "idle_hands": (0, 1), "camera": (0, 3),
            "affinity": (0, 1000), "context": (0, 1), "box_noise": (0, 6), "irrelevant": (0, 1),
            "entities": (1, 3),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"toykitchen: dial {name}={getattr(self, name)} is outside {low}..{high}")
        if 3 * self.clock_clips > self.train_clips:
            raise UserError(
                f"toykitchen: three clock videos of clock_clips={self.clock_clips} need "
                f"train_clips >= {3 * self.clock_clips}, got {self.train_clips}"
            )

    @property
    def name(self) -> str:
        """`toykitchen`, with the dials that differ from their defaults: `toykitchen-distractors=4`."""
        return self.named("toykitchen", Dials())

    def named(self, base: str, usual: "Dials") -> str:
        """`base`, with the dials that differ from `usual`."""
        names = [field.name for field in dataclasses.fields(self)]
        changed = [name for name in names if getattr(self, name) != getattr(usual, name)]
        return "-".join([base, *(f"{name}={getattr(self, name):g}" for name in changed)])

    @property
    def hash(self) -> str:
        """Hex SHA-256 of all dials and the generator's version: equal hashes, equal files."""
        content = json.dumps({"generator": GENERATOR, **dataclasses.asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def dials_from(options: dict) -> Dials:
    """Dials from options by name (`{"distractors": 4}`); the others keep their defaults.

    Raises:
        UserError: an unknown dial, a value of the wrong type, or one outside its limits.
    """
    known = [field.name for field in dataclasses.fields(Dials)]
    for name in options:
        if name not in known:
            raise UserError(f"toykitchen has no dial {name!r}; dials: {', '.join(known)}")
    return Dials(**options)
