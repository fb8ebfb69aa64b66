"""The language of the map step: elementwise arithmetic on one variable `x`, or on several arrays by their names.

Text is parsed once by Python's own `ast`, checked against an allow-list and turned into a small tree of our own; nothing is
ever evaluated by Python. Numbers stay Python numbers, so that NumPy 2 lets the array decide the dtype: float32 x times 2.5 is
float32."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpuflow.backends.expression_tree import FUNCTIONS, OPERATORS, Call, Constant, Node, Number, Variable
from gpuflow.steps.base import Array, Namespace, StepError, quiet
from gpuflow.steps.parameters import nearest

MAX_LENGTH = 2000
MAX_NODES = 500
MAX_DEPTH = 100
"""Limits on one expression: far above what people write, far below what troubles the interpreter (recursion limit 1000)."""

_SPLIT = "split it into several map steps"

_INSTEAD = {
    0xD7: "write *",
    0xB7: "write *",
    0xF7: "write /",
    0x2212: "write -",
    0xB2: "write ** 2",
    0x2264: "write <=",
    0x2265: "write >=",
}
"""What to write for characters that people paste from documents: times, dot, obelus, minus, squared, at most, at least."""

CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e, "nan": math.nan, "inf": math.inf}

_ALSO = {"radians": "deg2rad", "degrees": "rad2deg"}
"""Functions for which NumPy has two names."""

_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.Eq: "==", ast.NotEq: "!=", ast.UAdd: "unary +", ast.USub: "unary -", ast.Invert: "~",
}  # fmt: skip

_MANY = "mean sum std var median prod sort argsort cumsum cumprod diff any all argmin argmax ptp percentile quantile unique"
_MANY += " average nanmean nanstd nansum nanmin nanmax histogram dot matmul reshape transpose roll flip gradient convolve fft"
_ONE_AT_A_TIME = "a map step sees one value at a time"
_NOT_ELEMENTWISE = dict.fromkeys(_MANY.split(), f"{_ONE_AT_A_TIME}; `standardize` is the step that uses the array's statistics")
_NOT_ELEMENTWISE |= {"min": "use minimum(a, b), or a clip step", "max": "use maximum(a, b), or a clip step"}

_REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.Attribute: ("a dot after a name is not allowed", "write functions without a module, as in sqrt(x)"),
    ast.Subscript: ("indexing with [ ] is not allowed", _ONE_AT_A_TIME),
    ast.Lambda: ("lambda is not allowed", "write the expression itself, as in x * 2"),
    ast.BoolOp: ("`and` and `or` do not work on arrays", "use & and | with parentheses: (x > 0) & (x < 1)"),
    ast.Not: ("`not` does not work on arrays", "use ~ with parentheses: ~(x > 0)"),
    ast.IfExp: ("`if ... else` does not work on arrays", "use where(condition, a, b)"),
    ast.NamedExpr: ("assignment is not allowed", "write one expression of x"),
    ast.JoinedStr: ("text is not allowed", "write numbers and x only"),
    ast.Starred: ("* before an argument is not allowed", "write the arguments one by one"),
    ast.MatMult: ("@ is not elementwise", "use * for the elementwise product"),
    ast.LShift: ("<< is not allowed", "multiply by a power of two"),
    ast.RShift: (">> is not allowed", "use // and a power of two"),
    ast.In: ("`in` is not allowed", "compare with ==, joined by |"),
    ast.NotIn: ("`not in` is not allowed", "compare with !=, joined by &"),
    ast.Is: ("`is` is not allowed", "use =="),
    ast.IsNot: ("`is not` is not allowed", "use !="),
}
_COLLECTIONS = (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression. text: as it was written; root: its tree; names: of its variables, in the order in which they are met."""

    text: str
    root: Node
    names: tuple[str, ...] = ("x",)

    def evaluate(self, xp: Namespace, x: Array) -> Array:
        """The value for `x`, an array of `xp` of any shape. Same shape; may be `x` itself; a 0-d result may be a scalar."""
        return _evaluate(self.root, xp, {"x": x})

    def evaluate_with(self, xp: Namespace, values: Mapping[str, Array]) -> Array:
        """The same for an array of each name, all of one shape."""
        return _evaluate(self.root, xp, values)

    def dtype_of(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype that comes out for `dtype`. StepError when the expression does not work on it."""
        return self.dtype_with(dict.fromkeys(self.names, dtype))

    def dtype_with(self, dtypes: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
        """The same for the dtype of each variable."""
        try:
            with quiet():
                values = {name: np.empty(0, dtype) for name, dtype in dtypes.items()}
                return np.dtype(np.asarray(_evaluate(self.root, np, values)).dtype)
        except StepError:
            raise
        except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
            given = sorted({str(dtype) for dtype in dtypes.values()})
            reason, hint = _why(str(error), next(iter(dtypes.values())))
            raise StepError(f"`{self.text}` does not work on {' and '.join(given)} values: {reason}", hint) from None


@lru_cache(maxsize=256)
def parse(text: str, of_arrays: bool = False) -> Expression:
    """The expression that `text` writes, of the variable x, or of arrays by their names. StepError, with column and remedy, for anything
    outside the language."""
    if len(text) > MAX_LENGTH:
        raise StepError(f"the expression is {len(text)} characters long; at most {MAX_LENGTH} are allowed", _SPLIT)
    tree = _python_tree(text)
    converter = _Converter(of_arrays)
    root = converter.convert(tree, 1)
    if isinstance(root, Constant) and of_arrays:
        raise StepError("the expression names no array", "as in sqrt(u10**2 + v10**2)")
    if isinstance(root, Constant):
        raise StepError("the expression does not use x", "x is the value of the array, as in x * 2")
    return Expression(" ".join(text.split()), root, tuple(converter.names))


def _python_tree(text: str) -> ast.expr:
    # One line, so that an expression folded over lines in YAML parses and columns count from its start.
    line = text.replace("\n", " ").replace("\r", " ").replace("\t", " ")
    indent = len(line) - len(line.lstrip(" "))
    if not line.strip():
        raise StepError("the expression is empty", "write one of x, as in x * 2")
    for column, character in enumerate(line, 1):
        if character == "#" or not 32 <= ord(character) < 127:
            hint = _INSTEAD.get(ord(character), "use plain ASCII, without comments")
            raise StepError(f"{character!r} is not allowed (column {column})", hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(line[indent:], mode="eval").body
    except SyntaxError as error:
        column = min((error.offset or 1) + indent, len(line) + 1)
        raise StepError(f"not a valid expression: {error.msg} (column {column})", "write it like (x - 1) / 2") from None
    except (RecursionError, MemoryError, ValueError):
        raise StepError("the expression is nested too deeply", _SPLIT) from None
    for node in ast.walk(tree):
        if hasattr(node, "col_offset"):
            node.col_offset += indent
    return tree


class _Converter:
    """Turns Python's tree into ours, node by node, counting."""

    def __init__(self, of_arrays: bool) -> None:
        self.count, self.names, self._of_arrays = 0, dict[str, None](), of_arrays

    def convert(self, node: ast.expr, depth: int) -> Node:
        self.count += 1
        if depth > MAX_DEPTH:
            raise StepError(f"the expression is nested more than {MAX_DEPTH} deep", _SPLIT)
        if self.count > MAX_NODES:
            raise StepError(f"the expression has more than {MAX_NODES} parts", _SPLIT)
        match node:
            case ast.Constant():
                return _literal(node)
            case ast.Name():
                return self._name(node)
            case ast.BinOp(left=left, op=op, right=right):
                return self._operator(node, op, (left, right), depth)
            case ast.UnaryOp(op=op, operand=operand):
                return self._operator(node, op, (operand,), depth)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                if len(ops) > 1:
                    hint = "write (0 < x) & (x < 1), each comparison in its own parentheses"
                    raise _refusal(node, "comparisons cannot be chained, and & and | bind tighter than < and >", hint)
                return self._operator(node, ops[0], (left, comparators[0]), depth)
            case ast.Call():
                return self._call(node, depth)
        raise _refused(node, node)

    def _name(self, node: ast.Name) -> Node:
        if node.id in CONSTANTS and not (self._of_arrays and node.id == "e"):
            return Constant(CONSTANTS[node.id])
        if node.id == "x" or (self._of_arrays and node.id not in FUNCTIONS):
            self.names[node.id] = None
            return Variable(node.id)
        raise _unknown_name(node)

    def _operator(self, node: ast.expr, op: ast.AST, operands: tuple[ast.expr, ...], depth: int) -> Node:
        if type(op) not in _SYMBOLS:
            raise _refused(node, op)
        return _make(node, _SYMBOLS[type(op)], tuple(self.convert(operand, depth + 1) for operand in operands))

    def _call(self, node: ast.Call, depth: int) -> Node:
        if not isinstance(node.func, ast.Name):
            raise _refused(node, node.func)
        name = _ALSO.get(node.func.id, node.func.id)
        if name not in FUNCTIONS:
            raise _unknown_function(node, name)
        if node.keywords:
            raise _refusal(node, f"{name} takes no named arguments", "give the arguments in order, as in clip(x, 0, 1)")
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            raise _refused(node, next(argument for argument in node.args if isinstance(argument, ast.Starred)))
        if len(node.args) != FUNCTIONS[name]:
            raise _refusal(node, f"{name} takes {FUNCTIONS[name]} argument{'s' * (FUNCTIONS[name] > 1)}, not {len(node.args)}")
        return _make(node, name, tuple(self.convert(argument, depth + 1) for argument in node.args))


def _make(node: ast.expr, name: str, arguments: tuple[Node, ...]) -> Node:
    """A call, or its value when no argument contains x."""
    constants = [argument.value for argument in arguments if isinstance(argument, Constant)]
    if len(constants) < len(arguments):
        return Call(name, arguments)
    try:
        value = _fold(name, constants)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise _refusal(node, f"this constant cannot be computed: {error.args[-1]}", "write its value as a number") from None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _refusal(node, "this constant is beyond 64-bit integers", "write a number with a decimal point")
    return Constant(value)


def _fold(name: str, values: list[Number]) -> Number:
    """Constant arithmetic as Python does it, on 64-bit integers and floats only: no step of it can become large."""
    name = {"power": "**", "mod": "%"}.get(name, name)
    if name == "square":
        name, values = "*", values * 2
    if name == "**" and isinstance(values[0], int) and isinstance(values[1], int) and abs(values[0]) > 1 and values[1] > 63:
        raise OverflowError("the power is beyond 64-bit integers")
    if name == "~" and isinstance(values[0], bool):
        return not values[0]
    if name in OPERATORS:
        value = OPERATORS[name](*values)
    else:
        with quiet():
            value = np.asarray(getattr(np, name)(*values)).item()
    if isinstance(value, complex):
        raise ValueError("it is not a real number")
    return value  # type: ignore[no-any-return]


def _evaluate(node: Node, xp: Namespace, x: Mapping[str, Array]) -> Any:
    match node:
        case Variable(name):
            return x[name]
        case Constant(value):
            return value
        case Call(name, arguments):
            values = [_evaluate(argument, xp, x) for argument in arguments]
            if name in ("**", "power") and isinstance(values[1], int) and values[1] < 0 and values[0].dtype.kind in "biu":
                # NumPy finds this out from the data only, so that an empty block would pass.
                raise StepError(f"an integer cannot be raised to the power {values[1]}", f"write {float(values[1])} for it")
            if name in OPERATORS:
                return OPERATORS[name](*values)
            return getattr(xp, name)(*values)  # `name` is one of FUNCTIONS
    raise TypeError(f"{type(node).__name__} is not part of the language")


def _literal(node: ast.Constant) -> Constant:
    value = node.value
    if isinstance(value, complex):
        raise _refusal(node, "complex numbers are not allowed", "write real numbers only")
    if not isinstance(value, int | float):
        what = "text is" if isinstance(value, str | bytes) else f"{value} is"
        raise _refusal(node, f"{what} not allowed", "write numbers and x only")
    if isinstance(value, int) and value >= 2**63:
        raise _refusal(node, "this number is beyond 64-bit integers", "write it with a decimal point or as 1e19")
    if value == math.inf:
        raise _refusal(node, "this number is too large for a float", "write inf if that is meant")
    return Constant(value)


def _unknown_name(node: ast.Name) -> StepError:
    if node.id in FUNCTIONS:
        return _refusal(node, f"`{node.id}` is a function", f"write {node.id}(...)")
    known = nearest(node.id, ["x", *CONSTANTS, *FUNCTIONS])
    hint = f"did you mean `{known}`?" if known else "the value of the array is called x"
    return _refusal(node, f"unknown name `{node.id[:40]}`", hint)


def _unknown_function(node: ast.Call, name: str) -> StepError:
    if name in _NOT_ELEMENTWISE:
        return _refusal(node, f"{name} is not elementwise", _NOT_ELEMENTWISE[name])
    if name == "x" or name in CONSTANTS:
        return _refusal(node, f"`{name}` is not a function", f"write {name} * (...) for a product")
    known = nearest(name, FUNCTIONS)
    hint = f"did you mean `{known}`?" if known else f"known: {', '.join(FUNCTIONS)}"
    return _refusal(node, f"unknown function `{name[:40]}`", hint)


def _refused(node: ast.expr, part: ast.AST) -> StepError:
    if isinstance(part, _COLLECTIONS):
        return _refusal(node, "lists, tuples, sets and comprehensions are not allowed", _ONE_AT_A_TIME)
    message, hint = _REFUSED.get(type(part), (f"{type(part).__name__} is not allowed", "write arithmetic on x, as in x * 2"))
    return _refusal(node, message, hint)


def _refusal(node: ast.expr, message: str, hint: str = "") -> StepError:
    return StepError(f"{message} (column {node.col_offset + 1})", hint)


def _why(error: str, dtype: np.dtype[Any]) -> tuple[str, str]:
    """NumPy's reason in shorter words, and a remedy."""
    if "out of bounds" in error:
        return error, "put a cast to a wider dtype before it, or write the number with a decimal point"
    for ufunc, symbol in (("bitwise_and", "&"), ("bitwise_or", "|"), ("bitwise_xor", "^"), ("invert", "~")):
        if f"'{ufunc}'" in error:
            return f"{symbol} needs integers or comparisons", "put comparisons in parentheses, as in (x > 0) & (x < 1)"
    if dtype.kind == "b":
        return error.split(",")[0], "put cast: uint8 before it"
    return error.split(", and the inputs")[0], "put a cast step before it"
