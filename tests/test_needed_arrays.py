"""What is said of an array that a store lacks, and that the commands which are told make it."""

import shlex
from dataclasses import replace

import pytest
from click.testing import CliRunner
from frame_samples import colour_dataset, colour_frames, frames_request
from synthetic_stores import CLIP_ARRAYS, clip_store

from cli import main
from errors import UserError
from pipelines import extract
from pipelines.needed_arrays import array_of
from stores import open_store

pytestmark = [
    pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning"),
    pytest.mark.usefixtures("one_thread"),
]

NET = "shufflenet_v2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, frames, and a light network's store of `vector`."""
    folder = tmp_path_factory.mktemp("needed")
    colour_dataset(folder)
    colour_frames(folder)
    small = 'resize={"mode":"squash","size":32}'
    options = {"backbone": NET, "weights": ("random:0",), "option": (small,), "hop": 0.2, "only": True}
    extract(replace(frames_request(folder), keep=("vector",), **options))
    return folder


def path_of(folder, name):
    return folder / "features" / "colours" / f"{name}.zarr"


def lacks(store, name) -> str:
    with pytest.raises(UserError, match=rf"has no array '{name}' \(it has .*\); ") as caught:
        array_of(open_store(store), name)
    return str(caught.value)


def run(command: str) -> None:
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output


def test_logits_come_from_a_training_by_the_commands_that_are_told(folder, tmp_path, monkeypatch):
    said = lacks(path_of(folder, NET), "logits")
    train, _, rest = said.partition("cli.py train-recogniser")[2].partition(", and then ")
    assert rest.startswith("cli.py extract") and "--keep" not in said
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLIPBANK_FEATURES", str(folder / "features"))
    train = f"cli.py train-recogniser{train}".replace("LABEL", "noun").replace("RUN", str(tmp_path / "run"))
    quick = " --weights random:0 --epochs 1 --set batch_size=6 --set test_segments=3 --set workers=1 --device cpu"
    run(train + quick)
    rest = rest.replace("RUN", str(tmp_path / "run")).replace("NAME", "named").replace("DIR", "videos")
    run(f"{rest} --hop 0.4")
    assert array_of(open_store(path_of(folder, "named")), "logits").row_shape == (3,)


def test_an_array_that_the_network_gives_is_added_by_the_same_extract(folder):
    said = lacks(path_of(folder, NET), "spatial")
    assert said.endswith("the extract that made it adds it, run again with --keep spatial")
    small = '\'resize={"mode":"squash","size":32}\''
    run(
        f"cli.py extract --dataset {folder}/colours.csv --videos {folder}/videos --features {folder}/features --hop 0.2"
        f" --backbone {NET} --weights random:0 --option {small} --only --keep spatial"
    )
    assert {"spatial", "vector"} <= set(open_store(path_of(folder, NET)).manifest.arrays)


def test_a_network_that_gives_no_such_array_is_not_run_again(folder):
    said = lacks(path_of(folder, "frames"), "vector")
    assert said.endswith("frames gives jpeg: extract a network that gives it") and "--keep" not in said
    assert "--backbone tsn_resnet50 --weights RUN" in lacks(path_of(folder, "frames"), "logits")


def test_features_made_elsewhere_cannot_be_added_to(tmp_path):
    store = clip_store(tmp_path, arrays={"vector": CLIP_ARRAYS["vector"]})
    assert lacks(store.path, "spatial").endswith("nothing here can add it: extract a network that gives it")
