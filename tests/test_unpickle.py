"""Pickled checkpoints: what numpy writes is read back exactly; what could run code or fill the memory is refused."""

import builtins
import os
import pickle
import pickletools
import struct
import subprocess
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from errors import UserError
from extract.unpickle import read_pickle
from extract.weights import read_state

ARRAYS = {
    "float32": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "float16": np.linspace(-1, 1, 5).astype(np.float16),
    "float64": np.array(0.25),
    "int64": np.arange(6).reshape(1, 2, 3),
    "uint8": np.arange(256, dtype=np.uint8),
    "bool": np.array([True, False]),
    "big endian": np.arange(4, dtype=">f4"),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "sliced": np.arange(20, dtype=np.float32)[::2],
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.float32(1.5),
}


def write(path, value, protocol=2):
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_containers(tmp_path, protocol):
    value = {
        "model": OrderedDict(ARRAYS),
        "__author__": "someone",
        "more": [1, -2.5, None, True, "ä", b"\x00\xff", (), (1,), (1, 2, 3, 4), 10**30, [], {}, ["again", "again"]],
        7: ARRAYS["float32"],
    }
    found = read_pickle(write(tmp_path / "a.pkl", value, protocol))
    assert found["__author__"] == "someone" and found["more"] == value["more"] and list(found) == list(value)
    for name, array in ARRAYS.items():
        ours = found["model"][name]
        assert ours.dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and ours.shape == array.shape
        assert np.array_equal(ours, array), name
    assert found[7] is found["model"]["float32"]  # one object, as it was written


def test_python_2_strings_are_latin_1(tmp_path):
    """A file of Python 2 and numpy 1 holds the array's bytes as a str."""
    data = np.array([1.0, -2.0], "<f4").tobytes()
    body = (
        b"\x80\x02}U\x01w"  # {"w":
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(data)]) + data + b"tbs."
    )
    # the bytes above and no others: what Python itself reads in them
    assert pickle.loads(body, encoding="latin1")["w"].tolist() == [1.0, -2.0]
    assert read_pickle(write(tmp_path / "a.pkl", body))["w"].tolist() == [1.0, -2.0]


class Calls:
    """Pickles as a call of anything with any arguments."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def hostile():
    touch = "touch hacked"
    yield "os.system", Calls(os.system, touch)
    yield "eval", Calls(builtins.eval, "open('hacked', 'w')")
    yield "exec", Calls(builtins.exec, "open('hacked', 'w')")
    yield "getattr", Calls(builtins.getattr, UserError, "mro")
    yield "subprocess", Calls(subprocess.Popen, ["touch", "hacked"])
    yield "numpy's loader", Calls(np.load, "other.npy")
    yield "a class", Calls(UserError, "x")
    yield "an array of objects", np.array([Calls(os.system, touch), None], dtype=object)
    yield "an array of None", np.array([None])
    yield "records", np.zeros(2, [("a", "f4"), ("b", "O")])
    yield "text", np.array(["abc"])
    yield "a codec", Calls(__import__("_codecs").encode, "x", "rot13")
    yield "a set", {1, 2}
    yield "defaultdict", defaultdict(list)
    yield "a torch tensor", torch.zeros(3)
    yield "a dict with a state", Calls(OrderedDict, state={"__class__": 1})
    yield "a tuple as a key", {(1, 2): 3}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name, value", list(hostile()), ids=[name for name, _ in hostile()])
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, name, value, protocol):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "evil.pkl", {"model": {"w": ARRAYS["float32"], "x": value}}, protocol)
    with pytest.raises(UserError, match="evil.pkl"):
        read_state(path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\n(S'touch hacked'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch hacked\x85R.",
        b"(S'touch hacked'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch hacked'\no.",  # OBJ
        b"\x80\x02cos\nsystem\nU\x0ctouch hacked\x85\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # an extension's code
        b"Psomething\n.",  # a persistent id
        b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.",  # a state set on a class
        b"\x80\x02]K\x01K\x02s.",  # items set on a list
        b"\x80\x02}K\x01a.",  # items appended to a dict
        b"\x80\x02K\x01K\x02\x85R.",  # a call of a number
    ],
)
def test_hand_written_pickles_are_refused(tmp_path, monkeypatch, body):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="refuses"):
        read_pickle(write(tmp_path / "evil.pkl", body))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "name, body",
    [
        ("cut short", pickle.dumps(ARRAYS, 4)[:-20]),
        ("no end", b"\x80\x02}"),
        ("empty stack", b"\x80\x02R."),
        ("no mark", b"\x80\x02t."),
        ("not a pickle", b"PK\x03\x04 and so on"),
        ("unknown memo", b"\x80\x02h\x05."),
        ("text", b"hello"),
        ("empty", b""),
        ("a name for a number", b"\x80\x02M."),
        ("a length beyond the file", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc."),
        ("a negative length", b"\x80\x02T\xff\xff\xff\xffabc."),
    ],
)
def test_damaged_files_are_named(tmp_path, name, body):
    with pytest.raises(UserError, match="damaged.pkl"):
        read_pickle(write(tmp_path / "damaged.pkl", body))


def test_arrays_must_have_the_bytes_that_their_shape_says(tmp_path):
    class Huge:
        def __reduce__(self):
            _, arguments, state = np.zeros(4, np.float32).__reduce__()
            return np.zeros(0).__reduce__()[0], arguments, (state[0], (1 << 40,), *state[2:])

    with pytest.raises(UserError, match="shape.*16 bytes"):
        read_pickle(write(tmp_path / "huge.pkl", Huge()))


def test_one_piece_of_data_cannot_fill_many_arrays(tmp_path):
    """A memory bomb: a megabyte stored once and copied into a thousand arrays by references to it."""
    data, (rebuild, arguments, state) = bytes(1 << 20), np.zeros(1 << 20, np.uint8).__reduce__()

    class Copy:
        def __reduce__(self):
            return rebuild, arguments, (*state[:4], data)

    path = write(tmp_path / "bomb.pkl", [Copy() for _ in range(1000)], 4)
    assert path.stat().st_size < 1.3e6
    with pytest.raises(UserError, match="memory bomb"):
        read_pickle(path)


def test_nested_references_stay_small(tmp_path):
    """A billion laughs of lists is a hundred references; nothing walks it."""
    value = ["ha"]
    for _ in range(100):
        value = [value, value]
    found = read_pickle(write(tmp_path / "laughs.pkl", value))
    assert found[0] is found[1]
    with pytest.raises(UserError, match="expected a state_dict"):
        read_state(tmp_path / "laughs.pkl")


def test_every_instruction_is_known_or_refused(tmp_path):
    """No instruction of any protocol ends in another error than ours."""
    for opcode in pickletools.opcodes:
        for rest in (b".", b"\x01\x00\x00\x00\x00\x00\x00\x00a.", b"1\n1\n."):
            path = write(tmp_path / "one.pkl", b"\x80\x02" + opcode.code.encode("latin-1") + rest)
            try:
                read_pickle(path)
            except UserError:
                continue


def test_read_state_of_a_pickle(tmp_path):
    """The model zoo's layout becomes tensors in this machine's byte order."""
    model = {k: ARRAYS[k] for k in ("float32", "int64", "big endian", "fortran", "scalar")}
    path = write(tmp_path / "zoo.pkl", {"model": model, "__author__": "Detectron2 Model Zoo"})
    state, metadata = read_state(path)
    assert metadata == {} and list(state) == list(model)
    for key, value in model.items():
        assert isinstance(state[key], torch.Tensor) and np.array_equal(state[key].numpy(), value)
    with pytest.raises(UserError, match="expected a state_dict"):
        read_state(write(tmp_path / "other.pkl", {"model": {"w": "text"}}))
