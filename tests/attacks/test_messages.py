"""Wrong files become one message with their name; a bug of ours keeps its traceback."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from configs.files import check_output, check_output_folder, reading, writing
from configs.reading import MAX_YAML_BYTES, parse_yaml
from search.cli.messages import message_of
from search.record import Address, DatabaseLostError, Record, RefusedError
from search.run_folder.targets import load_target
from tests.postgres import Server, new_place
from tests.search.cli.test_app import search


def laughs(levels: int) -> str:
    """Write a text of a few hundred bytes that stands for 2 ** levels values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines)


BROKEN_JSON = {
    "list": b"[1, 2]",
    "number": b"17",
    "null": b"null",
    "text": b'"swin_t"',
    "cut": b'{"stages": [',
    "latin": '{"name": "größe"}'.encode("latin-1"),
    "deep": b"[" * 100_000,
    "empty": b"",
    "keys": b"{}",
    "stages-number": b'{"stages": 3}',
    "stages-text": b'{"stages": "ab"}',
    "stages-null": b'{"stages": null}',
    "stage-number": b'{"stages": [1]}',
    "mixers-text": b'{"stages": [{"mixers": ["dw"]}]}',
    "mixers-list": b'{"stages": [{"mixers": [[1]]}]}',
    "inner-list": b'{"architecture": [1]}',
    "long-number": b'{"stages": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("kind", BROKEN_JSON)
def test_a_file_that_is_no_architecture_is_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.json"
    path.write_bytes(BROKEN_JSON[kind])

    assert search("show", str(path)) == 2
    error = capsys.readouterr().err

    assert error.startswith(f"Error: {path} cannot be read as an architecture: ")
    assert "search show TARGET --json" in error
    assert "Traceback" not in error


def broken_checkpoints(folder: Path) -> dict[str, Path]:
    files = {
        "empty.pth": b"",
        "text.pth": b"hello",
        "zip.pth": b"PK\x03\x04 and nothing",
        "code.pth": pickle.dumps(os.getpid),
        "cut.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{",
        "large.safetensors": b"\xff" * 8 + b"{}",
        "empty.safetensors": b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}


@pytest.mark.parametrize(
    "name",
    [
        "empty.pth",
        "text.pth",
        "zip.pth",
        "code.pth",
        "cut.safetensors",
        "large.safetensors",
        "empty.safetensors",
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken_checkpoints(tmp_path)[name]

    assert search("import", str(path), "--arch", "swin_t", "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err

    assert error.startswith(f"Error: {path} cannot be read as a checkpoint: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(40), "aliases"),
        ("a: " + "[" * 5000, "nested"),
        ("a: " + "{b: " * 5000, "nested"),
        ("- " * 5000 + "a", "nested"),
        ("a: &a [*a]", "nested"),
        ("a: *nothing", "undefined alias"),
    ],
)
def test_yaml_that_grows_is_refused_before_it_does(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_a_large_file_of_settings_is_not_read_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:  # 20 GB, of which the disk holds nothing
        file.write(b"# ")
        file.truncate(20 * 1000**3)

    assert search("run", "--budget", "1cpu-minute", "--space", str(path)) == 2
    error = capsys.readouterr().err

    assert f"{MAX_YAML_BYTES:,}" in error
    assert str(path) in error


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), EOFError(), OverflowError("x")])
def test_what_a_reader_raises_names_the_file(error: Exception) -> None:
    with (
        pytest.raises(ValueError, match=r"^here\.txt cannot be read as a list: .+\. Mend it\.$"),
        reading(Path("here.txt"), "a list", remedy="Mend it."),
    ):
        raise error


def test_a_bug_inside_a_reader_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), reading(Path("x"), "a list", remedy="Mend it."):
        _ = 1 / 0


@pytest.mark.parametrize("name", ["nowhere/out.csv", "folder", "x" * 300, "file/out.csv"])
def test_an_output_that_cannot_be_written_is_refused_first(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")

    with pytest.raises(ValueError, match="cannot be written"):
        check_output(tmp_path / name)


@pytest.mark.parametrize("name", ["file", "file/out", "x" * 300])
def test_an_output_folder_likewise(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(ValueError, match="cannot be written"):
        check_output_folder(tmp_path / name)
    check_output_folder(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_refuses_is_a_message() -> None:
    with (
        pytest.raises(ValueError, match=r"front\.csv cannot be written: No space left"),
        writing(Path("front.csv")),
    ):
        raise OSError(28, "No space left on device", "front.csv")


def raised(code: str) -> BaseException:
    """Run a line of a product module's kind and return what it raises."""
    try:
        exec(compile(code, load_target.__code__.co_filename, "exec"), {"json": json})
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "code",
    [
        "int('x')",
        "json.loads('{')",
        "[].remove(1)",
        "b'\\xff'.decode()",
        "{}['a']",
        "1 / 0",
        "None.name",
        "open('nothing/here')",
        "raise RuntimeError('a bug')",
        "class Mine(ValueError): pass\nraise Mine('of another kind')",
    ],
)
def test_a_bug_of_ours_keeps_its_traceback(code: str) -> None:
    assert message_of(raised(code)) is None


def test_what_we_raise_as_a_sentence_is_a_message() -> None:
    assert message_of(raised("raise ValueError('Say what to do.')")) == "Say what to do."


def test_a_database_that_is_lost_is_a_message() -> None:
    assert message_of(DatabaseLostError("It broke off. Go on.")) == "It broke off. Go on."


def test_a_library_s_own_words_are_no_message_of_ours() -> None:
    with pytest.raises(ValueError, match="x") as caught:
        exec(compile("raise ValueError('x')", "/usr/lib/somewhere.py", "exec"))

    assert message_of(caught.value) is None


def test_a_bug_ends_the_command_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        int("x")

    monkeypatch.setattr("search.terminal.presets_table", broken)
    monkeypatch.setattr(sys, "argv", ["search", "presets"])
    with pytest.raises(ValueError, match="invalid literal"):
        search("presets")


@pytest.mark.parametrize("cause", ["locked", "read-only"])
def test_a_record_that_the_machine_refuses_is_a_message(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("search.record.schema.BUSY_SECONDS", 0.01)
    path = tmp_path / "record.db"
    Record.create(path).close()

    def refused(*_: object, **__: object) -> None:
        with (
            Record.open(path) as other,
            Record.open(path, read_only=cause != "locked") as record,
            other.together(),
        ):
            record.set_meta("phase", "done")

    monkeypatch.setattr("search.run_folder.open_run", refused)

    assert search("status", str(tmp_path)) == 2
    error = capsys.readouterr().err

    assert error.startswith("Error: The record of the run: ")
    assert cause.replace("-", "") in error
    assert "run the command again" in error


def test_a_statement_of_ours_that_is_wrong_keeps_its_traceback(place: Address) -> None:
    Record.create(place).close()
    with Record.open(place) as record, pytest.raises(RefusedError) as wrong:
        record._execute("SELEC 1")
    assert message_of(wrong.value) is None


def test_a_schema_without_rights_is_a_message(postgres: Server) -> None:
    address = new_place(postgres.url)
    Record.create(address).close()
    with Record.open(address) as record:
        record._execute("CREATE ROLE stranger LOGIN")
        schema = record._database.schema  # type: ignore[attr-defined]
        record._execute(f"GRANT USAGE ON SCHEMA {schema} TO stranger")
        record._execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO stranger")
    strangers = str(address).replace("user=postgres", "user=stranger")
    assert strangers != address
    with Record.open(strangers) as record, pytest.raises(RefusedError) as refused:
        record.check_writable()
    assert "permission denied" in str(message_of(refused.value))
