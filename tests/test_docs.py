"""What README and docs/ say is so: commands parse and run, links lead somewhere, pages are new."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import typer.main
from typer.testing import CliRunner

from search.cli.app import app
from searchspace.mixers import CONVS, MIXER_KINDS
from tests.tiny_graft import write_graft, write_table
from tests.tiny_run import write_run

ROOT = Path(__file__).parents[1]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
WITH_COMMANDS = (
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    *sorted((ROOT / "docs" / "measurements").glob("*.md")),
    ROOT / "docs" / "reference" / "installing.md",
)

# These run here, in a folder with a finished run under every name that the pages give one.
RUNS = {"status", "pareto", "select", "compare", "show", "presets", "spaces", "recipes"}
# Each of the others, and what it needs; where it is run instead.
NOT_RUN = {
    "run": "minutes, or GPUs or a cluster: tests/search/test_run.py, tests/search/cluster",
    "plan": "seconds of measuring, or GPUs: tests/search/plan/test_large_plans.py",
    "doctor": "starts Ray: tests/search/test_run.py",
    "latency": "minutes of measuring: tests/supernet/measuring",
    "retrain": "trains: tests/search/retraining",
    "eval": "a retrained network: tests/search/retraining/test_export.py",
    "export": "a retrained network, a hub: tests/search/retraining/test_export.py",
    "import": "published weights: tests/supernet/exchange/test_published.py",
    "transfer": "trains: tests/search/transferring",
    "predict": "a trained detector: tests/search/transferring",
    "ladder": "trains: tests/search/retraining/test_ladder.py",
    "bench": "minutes: tests/search/bench",
}
RUN_FOLDERS = ("RUN", "runs/digits", "runs/flowers")
# What the shell would put in the place of a variable.
VARIABLES = {
    '"$run"': "RUN",
    '"$head:6379"': "FIRST:6379",
    "$more": "--resume",
    "--seed $S": "--seed 0",
}
WITHIN_TEXT = re.compile(r"`(search (?:status|pareto|select|compare|show) [^`]*RUN[^`]*)`")
INNER = re.compile(r"\$\((search [^)]*)\)")


class Said(NamedTuple):
    """A command of a page, in words."""

    page: str
    words: tuple[str, ...]


def blocks(text: str, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in these languages; "" is a block without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


def commands_of(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands of `search` and of `make` on a page, without what is around them.

    Those are in its blocks; within sentences and tables only those about a run are whole.
    """
    for line in WITHIN_TEXT.findall(text):
        yield from _calls(line.replace("\n", " "))
    for block in blocks(text, "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (tuple(inner.split()) for inner in INNER.findall(line))
            for name, value in VARIABLES.items():
                line = line.replace(name, value)
            line = INNER.sub("--arch 1", line).strip()
            line = line.removeprefix("entrypoint: ").removeprefix("$ ")
            yield from _calls(line)


def _calls(line: str) -> Iterator[tuple[str, ...]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # no command: a line of a message or a script with an open quote
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word and word[0] in ";&|":
            if "--" in command and "search" in command:  # what another program shall run
                command = command[command.index("--") + 1 :]
            is_ours = command and command[0] in ("search", "mixer-search", "make")
            if is_ours and not re.match(r"[\d.]", "".join(command[1:2])):  # a phase: search 1.4 d
                yield tuple(command)
            command = []
        else:
            command.append(word)


def all_commands() -> list[Said]:
    """Return every command of the pages for users, each once."""
    found = (
        Said(page.name, words)
        for page in WITH_COMMANDS
        for words in commands_of(page.read_text(encoding="utf-8"))
    )
    return list(dict.fromkeys(found))


SAID = all_commands()
OF_SEARCH = [said for said in SAID if said.words[0] != "make"]


def named(said: Said) -> str:
    return f"{said.page}: {' '.join(said.words)}"


@functools.cache
def group() -> Any:
    return typer.main.get_command(app)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the files that the pages name, around a finished run."""
    folder = tmp_path_factory.mktemp("docs")
    for name in RUN_FOLDERS:
        (folder / name).parent.mkdir(exist_ok=True)
        write_run(folder / name)
        shutil.copy(ROOT / "configs/searches/digits.yaml", folder / name / "search.yaml")
    write_graft(folder / "runs" / "graft")
    write_table(folder / "table.json")
    shutil.copy(ROOT / "configs/searches/digits.yaml", folder / "my_search.yaml")
    return folder


def test_the_pages_have_commands() -> None:
    """The reader of the pages finds them: a change of their form must not empty the tests."""
    assert len(OF_SEARCH) > 40
    assert {said.page for said in OF_SEARCH} >= {"README.md", "quick-start.md", "clusters.md"}


@pytest.mark.parametrize("said", OF_SEARCH, ids=named)
def test_every_command_parses(said: Said, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    _, name, *words = said.words
    context = typer.Context(group(), info_name="search")
    group().commands[name].make_context(name, list(words), parent=context)
    assert name in RUNS or name in NOT_RUN


@pytest.mark.parametrize("said", [said for said in OF_SEARCH if said.words[1] in RUNS], ids=named)
def test_every_quick_command_runs(
    said: Said, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    # The run of the pages has more networks than that of the tests.
    words = [re.sub(r":\d{2,}$", ":7", word) for word in said.words[1:]]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout


def test_the_command_without_a_run_parses() -> None:
    text = (ROOT / "docs/guide/retraining.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"^torchrun .* -m search\.retraining\.train (.*)$", text, re.MULTILINE)
    from search.retraining.train import main

    alone = typer.Typer()
    alone.command()(main)
    typer.main.get_command(alone).make_context("train", words.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_within_sentences_exist(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "log.md"):
        return  # these are about other versions as well
    for text in re.findall(r"`((?:mixer-)?search [^`]+)`", page.read_text(encoding="utf-8")):
        words = text.replace("\n", " ").split()[1:]
        if not re.fullmatch(r"[a-z]+", words[0]):
            continue
        command = group().commands[words[0]]
        known = {name for option in command.params for name in (*option.opts, "--help")}
        used = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert used <= known, text


@pytest.mark.parametrize("said", [said for said in SAID if said.words[0] == "make"], ids=named)
def test_every_target_is_in_the_makefile(said: Said) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(said.words[1:]) <= set(targets)


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = (title.lower() for title in re.findall(r"^#+ (.*)", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page if not name else (page.parent / name)
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_script_is_there_and_knows_its_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, words in re.findall(r"python ((?:benchmarks|scripts)/\w+\.py)([^`#|>&\n]*)", text):
        source = (ROOT / name).read_text(encoding="utf-8")
        if name != "scripts/timm_tests.py":  # its options are pytest's
            assert {f'"{option}"' for option in re.findall(r"--[a-z][\w-]*", words)} <= set(
                re.findall(r'"--[a-z][\w-]*"', source)
            ), name


def test_every_page_is_in_the_navigation_and_in_the_index() -> None:
    """`make docs` ends with an error where one is missing, and where a link leaves docs/."""
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r"[\w/-]+\.md$", navigation, re.MULTILINE))
    linked = re.findall(r"\]\(([\w/-]+\.md)\)", (docs / "index.md").read_text("utf-8"))

    assert listed == pages
    assert {"index.md", *linked} == pages
    for path in docs.rglob("*.md"):
        for target in re.findall(r"\]\(([^)\s:#]+)[^)\s:]*\)", path.read_text("utf-8")):
            assert (path.parent / target).resolve().is_relative_to(docs), target


def test_every_mixer_is_explained_in_few_words() -> None:
    page = ROOT / "docs/reference/mixers.md"
    table = set(re.findall(r"^\| `\w+` \((\w+)\)", page.read_text("utf-8"), re.MULTILINE))
    words = section_of(page, "## In few words")

    assert {kind.short for kind in MIXER_KINDS.values()} == table | {"none"}
    assert {word for word in ("none", *CONVS) if f"`{word}`" not in words} == set()


def test_the_generated_pages_are_current() -> None:
    for name, text in script("generate_reference").pages().items():
        page = ROOT / "docs" / "reference" / name
        assert page.read_text(encoding="utf-8") == text, "run scripts/generate_reference.py"


def script(name: str) -> ModuleType:
    """Load one of the scripts as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "words",
    [
        "pareto run --near --json",
        "select run --json",
        "compare run:3 swin_t --json",
        "show run:7 --json",
    ],
)
def test_every_key_of_json_is_described(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words.split(), catch_exceptions=False)
    found = json.loads(done.stdout)
    first = found[0] if isinstance(found, list) else found
    parts = [value[0] for value in first.values() if isinstance(value, list) and value]
    keys = {key for part in (first, *parts) if isinstance(part, dict) for key in part}
    section = section_of(ROOT / "docs/reference/json.md", f"## `search {words.split()[0]}")
    assert keys <= set(re.findall(r"`(\w+)`", section))


def test_every_key_of_an_evaluation_is_described() -> None:
    from search.retraining.evaluate import Evaluation
    from supernet.training.evaluation import Accuracy

    found = Evaluation(
        accuracy=Accuracy(correct=1, correct_top5=2, total=3),
        real=None,
        images_per_second=1.0,
        batch_size=2,
        latency_ms=1.0,
        latency_interval_ms=(1.0, 2.0),
        device="cpu",
        threads=1,
    )
    section = section_of(ROOT / "docs/reference/json.md", "## `search eval")
    assert set(found.to_json()) <= set(re.findall(r"`(\w+)`", section))


def section_of(page: Path, heading: str) -> str:
    """Return a page's text from a heading to the next one of its depth."""
    _, found, rest = page.read_text(encoding="utf-8").partition(heading)
    assert found
    return rest.partition("\n## ")[0]


def test_every_variable_of_the_environment_is_described() -> None:
    used = set()
    for folder in ("search", "supernet", "searchspace", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= read_variables(ast.parse(path.read_text(encoding="utf-8")))
    assert {"CC", "MIXER_KERNELS", "MIXER_SEARCH_CACHE", "XDG_CACHE_HOME"} <= used
    page = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    assert used <= set(re.findall(r"`(\w+)`", page))


def read_variables(tree: ast.Module) -> set[str]:
    """Return the variables that a module reads from the environment."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=place, attr="get"), args=[name, *_]):
                pass
            case ast.Subscript(value=place, slice=name, ctx=ast.Load()):
                pass
            case _:
                continue
        if ast.unparse(place) == "os.environ":
            known = name.value if isinstance(name, ast.Constant) else None
            found.add(known or constants.get(ast.unparse(name)) or imported(ast.unparse(name)))
    return found


def imported(name: str) -> str:
    """Return the value of a name that comes from the one module that shares it."""
    from supernet.kernels import select

    return str(getattr(select, name))


def test_every_file_of_a_run_is_described() -> None:
    from search.run_folder.folder import ADDRESS, LOCK, OPTIONS, RECORD, SPACE
    from search.run_folder.settings import RECIPES
    from supernet.data import arrays, image_data, summary

    names = {ADDRESS, LOCK, RECORD, SPACE, OPTIONS, *(f"{name}.yaml" for name in RECIPES)}
    names |= {image_data.DATA_FILE, image_data.DIGESTS_FILE, image_data.LABELS_FILE}
    names |= {image_data.POSITIONS_FILE, summary.SUMMARY_FILE, arrays.LOCK_FILE}
    page = (ROOT / "docs/reference/run-folder.md").read_text(encoding="utf-8")
    assert names <= set(re.findall(r"`([\w.-]+)`", page))


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{page.name} {number}")
        for page in PAGES
        for number, code in enumerate(blocks(page.read_text(encoding="utf-8"), "python"))
    ],
)
def test_examples_in_python_run(code: str) -> None:
    compiled = compile(code, "example", "exec")
    # What needs files of others, or a hub, is only read.
    if not re.search(r"FOLDER|USER|runs/|architecture\.json", code):
        exec(compiled, {})
