"""Small changes of meaning in one module: a place in its text, and what stands there instead.

Only expressions and statements that a run goes through are changed: no imports, annotations,
docstrings, messages of errors, assertions or log lines.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
# Words that stand for a choice, and another choice: splits, ends of an attempt, phases, costs.
WORDS = {
    "train": "search",
    "search": "train",
    "val": "train",
    "test": "search",
    "done": "failed",
    "failed": "done",
    "lost": "interrupted",
    "interrupted": "lost",
    "waiting": "running",
    "running": "waiting",
    "supernet": "trust",
    "trust": "search",
    "promote": "finish",
    "finish": "promote",
    "macs": "params",
    "params": "macs",
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
METHODS = {"min": "max", "max": "min", "append": "appendleft", "popleft": "pop", "mean": "sum"}
# What is not run by a search, or only talks about it.
SILENT = ("logger", "warnings")


@dataclass(frozen=True, slots=True)
class Change:
    """One change: the text from ``start`` to ``end`` becomes ``text``.

    Attributes:
        kind: What sort of change.
        line: Where it begins, from 1.
        start: Its first byte in the module's text, UTF-8.
        end: The byte behind it.
        old: What stands there.
        text: What comes instead.
    """

    kind: str
    line: int
    start: int
    end: int
    old: str
    text: str

    def apply(self, source: str) -> str:
        """Return the module's text with this change."""
        raw = source.encode()
        return (raw[: self.start] + self.text.encode() + raw[self.end :]).decode()


def changes_of(source: str) -> list[Change]:
    """Return all changes of a module, in the order of its text; see `is_python`."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for kind, node, new in _walk(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        old = source.encode()[start:end].decode()
        text = ast.unparse(new)
        text = f"({text})" if isinstance(new, ast.expr) and not _stands_alone(new) else text
        found.append(Change(kind, node.lineno, start, end, old, text))
    return sorted(found, key=lambda change: (change.start, change.end, change.text))


def is_python(source: str) -> bool:
    """Tell whether a text is still a module: where parts of a string changed, it may be none."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _stands_alone(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant | ast.Name | ast.Attribute | ast.Call)


_Found = tuple[str, "ast.expr | ast.stmt", ast.AST]
# What says something about code, and is not run for its value.
_TYPES = ("annotation", "returns", "decorator_list", "type_comment")


def _walk(node: ast.AST) -> Iterator[_Found]:
    """Yield all changes below a node."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if name not in _TYPES and isinstance(child, ast.AST) and not _is_left_alone(child):
                yield from _changes_here(child)
                yield from _walk(child)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert | ast.JoinedStr):
        return True
    if isinstance(node, ast.Expr):
        value = node.value
        if isinstance(value, ast.Constant):
            return True
        called = value.func if isinstance(value, ast.Call) else None
        owner = called.value if isinstance(called, ast.Attribute) else None
        return isinstance(owner, ast.Name) and owner.id in SILENT
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "logger")


def _changes_here(node: ast.AST) -> Iterator[_Found]:
    yield from _of_comparison(node)
    yield from _of_arithmetic(node)
    yield from _of_constant(node)
    yield from _of_logic(node)
    yield from _of_call(node)
    yield from _of_statement(node)


def _of_comparison(node: ast.AST) -> Iterator[_Found]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for operator in COMPARISONS[type(node.ops[0])]:
            yield "comparison", node, ast.Compare(node.left, [operator()], node.comparators)


def _of_arithmetic(node: ast.AST) -> Iterator[_Found]:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "operator", node, ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        if isinstance(node.op, ast.Sub | ast.Div | ast.FloorDiv | ast.MatMult):
            yield "swapped operands", node, ast.BinOp(node.right, node.op, node.left)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", node, node.operand
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield "operator", node, ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)


def _of_constant(node: ast.AST) -> Iterator[_Found]:
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield "boolean", node, ast.Constant(not value)
    elif isinstance(value, int):
        yield "number + 1", node, ast.Constant(value + 1)
        if value > 0:
            yield "number - 1", node, ast.Constant(value - 1)
    elif isinstance(value, float):
        yield "number", node, ast.Constant(2 * value if value else 1.0)
    elif isinstance(value, str) and value in WORDS:
        yield "word", node, ast.Constant(WORDS[value])


def _of_logic(node: ast.AST) -> Iterator[_Found]:
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and, or", node, ast.BoolOp(other, node.values)
        for index in range(len(node.values)):
            rest = [value for place, value in enumerate(node.values) if place != index]
            yield (
                "dropped condition",
                node,
                rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest),
            )
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "negation", node, node.operand
    if isinstance(node, ast.IfExp):
        yield "one branch", node, node.body
        yield "one branch", node, node.orelse
    if isinstance(node, ast.If | ast.While) and not isinstance(
        node.test, ast.Compare | ast.UnaryOp
    ):
        yield "negation", node.test, ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.comprehension):
        for condition in node.ifs:
            yield "dropped condition", condition, ast.Constant(True)


def _of_call(node: ast.AST) -> Iterator[_Found]:
    if not isinstance(node, ast.Call):
        return
    if len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
        first, second, *rest = node.args
        swapped = ast.Call(node.func, [second, first, *rest], node.keywords)
        # Where the order is nothing to the function, there is no other meaning.
        if ast.dump(first) != ast.dump(second) and not _is_symmetric(node.func):
            yield "swapped arguments", node, swapped
    for keyword in node.keywords:
        if keyword.arg is not None:
            kept = [other for other in node.keywords if other is not keyword]
            yield "dropped argument", node, ast.Call(node.func, node.args, kept)
    if isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        other = ast.Name(FUNCTIONS[node.func.id])
        kept = [] if other.id == "list" else node.keywords
        yield "function", node, ast.Call(other, node.args, kept)
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        named = ast.Attribute(node.func.value, METHODS[node.func.attr])
        yield "function", node, ast.Call(named, node.args, node.keywords)


def _is_symmetric(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("min", "max", "minimum", "maximum", "add", "mul", "gcd", "equal")


def _of_statement(node: ast.AST) -> Iterator[_Found]:
    if isinstance(node, ast.Expr | ast.AugAssign):
        yield "removed statement", node, ast.Pass()
    if isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple):
        yield "removed statement", node, ast.Pass()
    if isinstance(node, ast.Break):
        yield "loop", node, ast.Continue()
    if isinstance(node, ast.Continue):
        yield "loop", node, ast.Break()
    if isinstance(node, ast.If) and all(isinstance(line, ast.Raise) for line in node.body):
        yield "removed check", node.test, ast.Constant(False)
    if isinstance(node, ast.Return) and node.value is not None:
        emptied = copy.copy(node)
        emptied.value = ast.Constant(None)
        if not isinstance(node.value, ast.Constant):
            yield "returns nothing", node, emptied
