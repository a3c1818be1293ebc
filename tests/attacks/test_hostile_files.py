"""Files that are made to start programs, fill the memory, or never end."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from configs.reading import parse_json, parse_yaml, read_json, read_yaml
from searchspace.spec_file import load_space
from supernet.data import prepare_data
from supernet.data.catalog import open_source
from supernet.data.decoding import decode_image, only_listed_formats
from supernet.recipes.recipe import load_recipe
from tests.attacks.test_shards import samples, shards
from tests.supernet.data.test_sources import SIZE, write_folder

ROOT = Path(__file__).parents[2]
GIB = 2**30
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", train=5, val=2)


def prepare(path: Path, tmp_path: Path) -> None:
    prepare_data(str(path), img_size=SIZE, folder=tmp_path / "data")


def in_little_memory(code: str, *arguments: object) -> str:
    """Run code that must raise ValueError, with 1 GiB of memory and 20 s of a core; return it."""
    script = f"""
        import resource, sys
        from pathlib import Path
        import numpy
        from supernet.data import prepare_data
        from supernet.data.catalog import open_source
        from configs.reading import parse_yaml
        resource.setrlimit(resource.RLIMIT_DATA, ({GIB}, {GIB}))
        resource.setrlimit(resource.RLIMIT_CPU, (40, 40))
        try:
            {code}
        except ValueError as error:
            print(error)
        else:
            sys.exit("no message")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Formats.


@pytest.mark.parametrize("name", ["9.png", "9.jpg", "9", "9.tif"])
def test_postscript_starts_no_program(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: started.append(args))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    (folder / "train" / "ant" / name).write_bytes(POSTSCRIPT)
    if name != "9":
        with pytest.raises(ValueError, match=rf"Cannot decode the image .*ant/{name}.*none of"):
            prepare(folder, tmp_path)
    else:
        assert open_source(str(folder), img_size=SIZE).skipped["no images"][0] == 1
    source = shards(tmp_path / "s", samples([0, 1]) | {"9.png": POSTSCRIPT, "9.cls": b"0"})
    with pytest.raises(ValueError, match="none of the formats"):
        list(source.read(np.arange(3)))
    assert started == []


def test_foreign_readers_are_kept_to_the_listed_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: started.append(args))
    with only_listed_formats(), pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(POSTSCRIPT)).load()
    assert started == []
    assert "EPS" in Image.ID


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "JPEG2000", "SGI", "DDS", "XBM"])
def test_formats_that_are_not_listed_are_refused_whatever_they_are_called(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("1" if kind == "XBM" else "RGB", (16, 16)).save(buffer, format=kind)
    with pytest.raises(ValueError, match=r"9\.png \(it has none of the formats PNG, JPEG"):
        decode_image(buffer.getvalue(), name="9.png")


def bomb(side: int) -> bytes:
    """Return a PNG of a few bytes that announces a square of that side."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize("side", [10_000, 14_000, 60_000, 2**31 - 1])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(ValueError, match=r"9\.png.*(at most 89,478,485|exceeds limit)|9\.png"):
        decode_image(bomb(side), name="9.png")


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_give_an_image_or_a_message(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"][seed % 8]
    pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(buffer, format=kind, exif=exif)
    content = bytearray(buffer.getvalue())
    for place in rng.integers(0, min(len(content), 400), 8).tolist():
        content[place] = int(rng.integers(256))
    try:
        assert decode_image(bytes(content), name="x").mode == "RGB"
    except ValueError as error:
        assert " x" in str(error)  # noqa: PT017


@pytest.mark.parametrize("place", ["train/ant/9.png", "val/ant/9"])
def test_a_file_of_20_gib_is_refused_before_it_is_read(folder: Path, place: str) -> None:
    with (folder / place).open("wb") as file:
        file.write(bomb(9))
        file.truncate(20 * GIB)
    text = in_little_memory(
        "list((s := open_source(sys.argv[1], img_size=9)).read(numpy.arange(len(s.names))))", folder
    )
    assert "at most 536,870,912 bytes" in text
    assert place in text


# Tars.


def sparse_header(name: str, size: int) -> bytes:
    """Return an old GNU header of a file that is all hole."""
    header = bytearray(512)
    header[: len(name)] = name.encode()
    header[100:108] = b"0000644\0"
    header[124:136] = b"00000000000\0"
    header[136:148] = b"00000000000\0"
    header[156:157] = b"S"
    header[257:265] = b"ustar  \0"
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def tar_of(folder: Path, *extra: bytes) -> bytes:
    """Return a tar of the folder with raw blocks in front."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, arcname=".")
    return b"".join(extra) + buffer.getvalue()


def plain_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(format=tarfile.GNU_FORMAT)


def pax_sparse(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    info.size = 512
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(size),
    }
    return info.tobuf(format=tarfile.PAX_FORMAT) + b"0\n".ljust(512, b"\0")


@pytest.mark.parametrize("name", ["train/ant/9.png", "train/ant/9.cls"])
@pytest.mark.parametrize("make", [sparse_header, pax_sparse])
def test_a_sparse_member_of_20_gib_is_a_message(
    folder: Path, tmp_path: Path, make: Callable[[str, int], bytes], name: str
) -> None:
    blocks = make(name, 20 * GIB)
    path = tmp_path / "pets.tar"
    path.write_bytes(tar_of(folder, blocks))
    assert path.stat().st_size < 100_000
    if name.endswith("png"):
        text = in_little_memory(
            "prepare_data(sys.argv[1], img_size=9, folder=Path(sys.argv[2]))",
            path,
            tmp_path / "data",
        )
        assert "train/ant/9.png announces 21,474,836,480 bytes, with holes" in text
    root = tmp_path / "shards"
    shards(root, samples([0, 1]))
    shard = root / "pets-train-0.tar"
    shard.write_bytes(blocks + shard.read_bytes())
    text = in_little_memory("open_source(sys.argv[1], img_size=9)", f"wds/pets:{root}")
    assert "announces 21,474,836,480 bytes, with holes" in text


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("name", ["train/ant/9.png", "train/ant/zeros.bin", "zeros"])
def test_a_small_tar_of_many_zeros_is_a_message(
    folder: Path, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "pets.tar.gz"
    size = 3 * GIB
    path.write_bytes(pack(plain_header(name, size) + bytes(2**20)))
    text = in_little_memory("open_source(sys.argv[1], img_size=9)", path)
    assert "truncated or damaged" in text
    assert "3,221,225,472 bytes" in text


def test_many_members_of_zeros_are_a_message(tmp_path: Path) -> None:
    path = tmp_path / "pets.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(400):
            file.write(plain_header(f"train/ant/{number}.png", 2**20) + bytes(2**20))
    text = in_little_memory("open_source(sys.argv[1], img_size=9)", path)
    assert "announces" in text


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_is_a_message(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "pets.tar"
    with path.open("wb") as file:
        file.write(plain_header("x", 3 * GIB, kind))
        file.truncate(4 * GIB)
    assert "is none" in in_little_memory("open_source(sys.argv[1], img_size=9)", path)


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_in_a_tar_give_images_or_a_message(
    folder: Path, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(tar_of(folder))
    headers = np.arange(0, len(content) - 2048, 512)
    for place in (rng.choice(headers, 3) + rng.integers(0, 512, 3)).tolist():
        content[place] = int(rng.integers(256))
    path = tmp_path / "pets.tar"
    path.write_bytes(content)
    try:
        prepare(path, tmp_path)
    except ValueError as error:
        assert "pets" in str(error)  # noqa: PT017


def test_a_chain_of_extended_headers_is_a_message(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pets.tar"
    info = tarfile.TarInfo("x")
    header = info.create_pax_global_header({"comment": "x"})
    path.write_bytes(tar_of(folder, header * 3000))
    try:
        open_source(str(path), img_size=SIZE)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017


# YAML and JSON.

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
BOMBS = {
    "aliases": LAUGHS,
    "merges": "a: &a {x: 1}\n"
    + "".join(
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
        for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
    ),
    "itself": "a: &a [*a]\n",
    "in a mapping": "&a {a: *a}\n",
    "brackets": "a: " + "[" * 50_000,
    "closed brackets": "a: " + "[" * 200 + "]" * 200,
    "braces": "{a: " * 20_000,
    "dashes": "- " * 30_000,
    "questions": "? " * 30_000,
    "a chain": "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(2000)),
    "a long word": f"a: &a {'x' * 50_000}\nb: [{', '.join(['*a'] * 1000)}]\n",
    "long": "a: " + "x" * 10**6,
    "a number": "a: " + "9" * 20_000,
    "a date": "a: 2024-13-45\n",
    "a word for a number": "a: !!int x\n",
    "nothing for a number": 'a: !!int ""\n',
    "a bool": "a: !!bool maybe\n",
    "a time": "a: !!timestamp x\n",
    "an object": "a: !!python/object/apply:os.system [ls]\n",
    "a list for a key": "? [a]\n: b\n",
    "control characters": "a: \x01\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_without_end_is_a_message(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"[A-Z][a-z ]+\.$") as caught:
        parse_yaml(BOMBS[name])
    assert len(str(caught.value)) < 500
    path = tmp_path / "x.yaml"
    path.write_text(BOMBS[name])
    for load in (load_space, load_recipe):
        with pytest.raises(ValueError, match=r"x\.yaml"):
            load(str(path))


def test_yaml_without_end_takes_no_memory() -> None:
    assert "aliases" in in_little_memory("parse_yaml(sys.argv[1])", LAUGHS)


def test_aliases_and_merges_of_a_sensible_file_are_followed() -> None:
    assert parse_yaml("a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n") == {
        "a": {"x": 1, "y": [2]},
        "b": {"x": 3, "y": [2]},
        "c": [{"x": 1, "y": [2]}, {"x": 1, "y": [2]}],
    }


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "", "{'a': 1}"])
def test_json_without_end_is_a_message(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON.*(write it|Write it)"):
        parse_json(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: .*JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_settings_that_are_no_regular_file_or_too_long_are_refused(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(20 * GIB)
    (tmp_path / "latin").write_bytes(b"a: caf\xe9")
    for name, rule in (
        ("pipe", "no regular file"),
        ("long", "at most"),
        ("latin", "not UTF-8"),
        ("gone", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=rule) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
