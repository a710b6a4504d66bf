"""The reader of pickled .npy files: what NumPy 1 and 2 write comes back, everything hostile or damaged is refused unexecuted."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.brain.pickles import MAX_PLAIN_BYTES, load_pickled_npy
from sbm_jax.errors import UserError

MAPPING = {0: "Unknown", 1: "V1v", 2: "V1d", 7: "hV4"}
HEADER = {"descr": "|O", "fortran_order": False, "shape": ()}
# the reduction that np.save pickles for a 0-d object array whose content is the last object on the stack before "]"
START = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01)cnumpy\ndtype\n(X\x02\x00\x00\x00O8"
START += b"\x89\x88tR(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]"
END = b"atb."


def save(path, body: bytes, shape=()):
    """A .npy of dtype object whose pickle is `body`."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {**HEADER, "shape": shape})
    path.write_bytes(buffer.getvalue() + body)
    return path


def as_saved(content: bytes) -> bytes:
    """The pickle of np.array(content, object), the content given in instructions."""
    return b"\x80\x03" + START + content + END


def refused(path, words, **options):
    with pytest.raises(UserError) as error:
        load_pickled_npy(path, **options)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_what_numpy_saves_is_read(tmp_path):
    file = tmp_path / "mapping.npy"
    np.save(file, MAPPING, allow_pickle=True)
    assert load_pickled_npy(file) == np.load(file, allow_pickle=True).item() == MAPPING


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_1_and_2_and_every_protocol_read_alike(tmp_path, protocol, core):
    body = pickle.dumps(np.array(MAPPING, dtype=object), protocol=protocol)
    assert b"numpy._core.multiarray" in body
    if protocol < 4:
        body = body.replace(b"numpy._core.multiarray", core)
    else:  # a text with its length before it, inside a frame with its length
        old, new = b"\x8c\x16numpy._core.multiarray", b"\x8c" + bytes([len(core)]) + core
        frame = struct.unpack("<Q", body[3:11])[0] + len(new) - len(old)
        body = body[:3] + struct.pack("<Q", frame) + body[11:].replace(old, new)
    assert pickle.loads(body).item() == MAPPING  # the file is a good one
    assert load_pickled_npy(save(tmp_path / "m.npy", body)) == MAPPING


def test_the_hand_made_pickle_of_these_tests_is_a_good_one(tmp_path):
    body = as_saved(b"}K\x01X\x02\x00\x00\x00V1s")
    assert pickle.loads(body).item() == {1: "V1"}
    assert load_pickled_npy(save(tmp_path / "m.npy", body)) == {1: "V1"}


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1, max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(content=plain, protocol=st.sampled_from([2, 3, 4]))
def test_plain_content_comes_back_as_it_was(tmp_path_factory, content, protocol):
    array = np.empty((), dtype=object)
    array[()] = content
    file = save(tmp_path_factory.mktemp("p") / "x.npy", pickle.dumps(array, protocol=protocol))
    assert load_pickled_npy(file) == content


def test_scalars_of_numpy_and_shared_objects(tmp_path):
    name = "shared"
    content = {np.int64(3): np.str_("V1v"), "f": np.float32(0.25), "b": np.bool_(True), "twice": [name, name, [name]]}
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    found = load_pickled_npy(tmp_path / "x.npy")
    assert found == content and found["twice"][0] is found["twice"][1]
    assert [type(v) for v in found.values()][:3] == [np.str_, np.float32, np.bool_]


def test_object_arrays_keep_their_shape(tmp_path):
    array = np.array([[1, "a", None], [{"k": 2}, (3,), 2.5]], dtype=object)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    found = load_pickled_npy(tmp_path / "x.npy")
    assert found.shape == (2, 3) and found.tolist() == array.tolist()


@settings(deadline=None, max_examples=30)
@given(
    code=st.sampled_from(["<f4", ">f4", "<f8", "<f2", "<i2", ">i4", "|u1", "|b1", "<c8", "<u8"]),
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    fortran=st.booleans(),
)
def test_arrays_of_numbers_are_read_when_asked_for(tmp_path_factory, code, shape, fortran):
    values = np.arange(int(np.prod(shape))).astype(code).reshape(shape)
    content = {"betasmd": np.array(values, order="F" if fortran else "C"), "pcnum": 3, "more": [values[..., None]]}
    file = tmp_path_factory.mktemp("p") / "x.npy"
    np.save(file, content, allow_pickle=True)
    found = load_pickled_npy(file, arrays=True)
    np.testing.assert_array_equal(found["betasmd"], values)
    assert found["betasmd"].dtype == values.dtype and found["betasmd"].shape == shape and found["pcnum"] == 3
    np.testing.assert_array_equal(found["more"][0], values[..., None])
    refused(file, ["array"])


# Hostile files --------------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.reduction = (function, arguments)

    def __reduce__(self):
        return self.reduction


HOSTILE = {
    "system": (Calls(os.system, "touch owned"), "posix.system"),
    "eval": (Calls(eval, "open('owned', 'w')"), "builtins.eval"),
    "exec": (Calls(exec, "open('owned', 'w')"), "builtins.exec"),
    "open": (Calls(open, "owned", "w"), "open"),
    "getattr chain": (Calls(getattr, Calls(getattr, "", "__class__"), "__base__"), "builtins.getattr"),
    "import": (Calls(builtins.__import__, "os"), "builtins.__import__"),
    "nested": ({1: ["fine", ({2: Calls(os.system, "touch owned")},)]}, "posix.system"),
    "numpy code": (Calls(np.lib.format.open_memmap, "owned", "w+", "f4", (3,)), "numpy"),
    "class": (ValueError("x"), "builtins.ValueError"),
    "partial": (Calls(__import__("functools").partial, os.system, "touch owned"), "functools.partial"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("arrays", [False, True])
def test_other_names_are_refused_and_not_called(tmp_path, monkeypatch, name, protocol, arrays):
    monkeypatch.chdir(tmp_path)
    content, word = HOSTILE[name]
    array = np.empty((), dtype=object)
    array[()] = content
    word = word.replace("builtins", "__builtin__") if protocol == 2 else word
    word = "exceptions.ValueError" if (name, protocol) == ("class", 2) else word
    file = save(tmp_path / "bad.npy", pickle.dumps(array, protocol=protocol))
    refused(file, [word.replace("__builtin__.open", "open"), "nothing is executed"], arrays=arrays)
    assert not (tmp_path / "owned").exists()


INSTRUCTIONS = {
    "the first word of a hostile array": b"\x80\x03cos\nsystem\n(X\x0b\x00\x00\x00touch ownedtR.",
    "old-style instance": as_saved(b"(X\x0b\x00\x00\x00touch ownedios\nsystem\n"),
    "old-style object": as_saved(b"(cos\nsystem\nX\x0b\x00\x00\x00touch ownedo"),
    "persistent id": as_saved(b"Phello\n"),
    "binary persistent id": as_saved(b"K\x01Q"),
    "extension": as_saved(b"\x82\x01"),
    "new object": as_saved(b"cnumpy\nndarray\n)\x81"),
    "out-of-band buffer": as_saved(b"\x97"),
    "object array in an admitted name": as_saved(b"cnumpy\nndarray\n"),
    "call of a text": as_saved(b"X\x01\x00\x00\x00a)R"),
    "call of an array": as_saved(b"cnumpy\nndarray\n(K\x05tR"),
    "state of a name": as_saved(b"cnumpy.core.multiarray\nscalar\n}X\x01\x00\x00\x00aK\x01sb"),
    "state of a list": as_saved(b"](K\x01K\x02tb"),
    "object type by REDUCE as content": as_saved(b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R"),
    "structured type": as_saved(b"cnumpy\ndtype\nX\x02\x00\x00\x00V8\x85R"),
    "type from a tuple": as_saved(b"cnumpy\ndtype\n)\x85R"),
    "scalar of objects": as_saved(
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00O8\x85RC\x08AAAAAAAA\x86R"
    ),
    "scalar with bytes too few": as_saved(
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x85RC\x01A\x86R"
    ),
    "bytes by a strange codec": as_saved(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R"),
    "member of an admitted name": as_saved(b"cnumpy\nndarray.tofile\n"),
    "unfinished array in a tuple": as_saved(b"cnumpy.core.multiarray\n_reconstruct\n)R\x85"),
    "no object": b"\x80\x03.",
    "two objects": b"\x80\x03K\x01K\x02.",
    "plain object without array": b"\x80\x03}.",
    "memo that is not there": as_saved(b"h\x63"),
    "group without start": b"\x80\x03t.",
    "take from nothing": b"\x80\x03a.",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("arrays", [False, True])
def test_other_instructions_are_refused(tmp_path, monkeypatch, name, arrays):
    monkeypatch.chdir(tmp_path)
    refused(save(tmp_path / "bad.npy", INSTRUCTIONS[name]), [], arrays=arrays)
    assert not (tmp_path / "owned").exists()


def test_bombs_are_bounded(tmp_path):
    """Sizes announced and not held, keys that take 2^40 steps to hash, and endless instructions end at once."""
    huge = as_saved(b"\x8e" + struct.pack("<Q", 1 << 60) + b"abc")
    refused(save(tmp_path / "bytes.npy", huge), ["damaged"])
    memo = as_saved(b"K\x01r\xff\xff\xff\x7f")  # an unpickler with an array as its memo would take 32 GB
    assert load_pickled_npy(save(tmp_path / "memo.npy", memo)) == 1
    nested = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(40))
    refused(save(tmp_path / "key.npy", as_saved(b"}" + nested + b"K\x01s")), ["tuple as a key"])
    refused(save(tmp_path / "many.npy", as_saved(b"(" + b"K\x01" * 110_000 + b"t")), ["instructions"])
    shape = b"\x80\x03" + START.replace(b"(K\x01)", b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86") + b"K\x01" + END
    refused(save(tmp_path / "shape.npy", shape), ["object array of"])
    with (tmp_path / "large.npy").open("wb") as handle:
        handle.write(save(tmp_path / "m.npy", as_saved(b"N")).read_bytes())
        handle.truncate(MAX_PLAIN_BYTES + 1)
    refused(tmp_path / "large.npy", ["small table"])


@settings(deadline=None, max_examples=150)
@given(cut=st.integers(0, 400), place=st.integers(0, 400), byte=st.integers(0, 255), arrays=st.booleans())
def test_damaged_files_give_a_user_error_or_plain_content(tmp_path_factory, cut, place, byte, arrays):
    folder = tmp_path_factory.mktemp("p")
    np.save(folder / "x.npy", {1: "V1v", 2: np.float32(3), 3: [None, (1.5, b"z")]}, allow_pickle=True)
    good = bytearray((folder / "x.npy").read_bytes())
    broken = bytearray(good)
    broken[min(place, len(good) - 1)] = byte
    for name, content in (("cut.npy", good[: min(cut, len(good) - 1)]), ("flip.npy", broken)):
        (folder / name).write_bytes(content)
        try:
            found = load_pickled_npy(folder / name, arrays=arrays)
        except UserError as error:
            assert name in str(error)
        else:
            assert name == "flip.npy" and isinstance(found, dict | list | tuple | np.ndarray | str | int | float | None)


def test_other_files_are_refused(tmp_path):
    refused(tmp_path / "none.npy", ["not found"])
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    refused(tmp_path / "numbers.npy", ["dtype object", "<f8"])
    (tmp_path / "text.npy").write_text("hello")
    refused(tmp_path / "text.npy", ["not a readable .npy"])
    refused(save(tmp_path / "shape.npy", as_saved(b"N"), shape=(2,)), ["shape (2,)"])
