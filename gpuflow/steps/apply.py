"""A user's own function on each chunk: `(xp, block, **parameters)`, or `(torch, block, **parameters)` on tensors.

With `device: cuda` the block is a CuPy array, or a tensor, on the worker's CUDA device, and the pipeline runs on workers that have one.

It sees one stored chunk at a time, whole, and gives back an array of the same shape. What it is made of is part of the recipe, so that
chunks are made again when it is edited. See `user_code` for how it gets to the workers."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError, ValidationInfo, model_validator

from gpuflow.backends.devices import Library, why_no_cuda
from gpuflow.backends.select import device_for_arrays
from gpuflow.errors import ConfigError, Problem
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError
from gpuflow.steps.cast import DTYPES, DTypeName
from gpuflow.steps.parameters import describe, suggestion
from gpuflow.steps.spans import Spans
from gpuflow.steps.user_code import Source, find_source, load_function

_ADDRESS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_OWN = ("function", "returns", "device", "params", "texts", "digest", "only")
_FORM = "write it as (xp, block, **parameters), or (torch, block, **parameters) for tensors"
_PROBE = 4
"""Elements along each axis of the block of ones that a function is tried on."""


class Apply(Step, frozen=True):
    """`function`: `module:name`. All other keys are its parameters. `returns`: the dtype that comes out; when it is left out, the function
    is asked: it is called once, on a small block of ones, while the pipeline is planned."""

    kind: ClassVar[str] = "apply"
    about: ClassVar[str] = "A function of your own on each chunk: (xp, block, **parameters). Other keys are its parameters."
    shorthand: ClassVar[tuple[str, ...]] = ("function",)
    chunkwise: ClassVar[bool] = True
    takes_more: ClassVar[bool] = True
    examples: ClassVar[tuple[Any, ...]] = ({"function": "math_on_chunks:smooth", "sigma": 2}, "math_on_chunks:log_of_it")

    function: Annotated[str, Field(description="module:name; the module is module.py beside this file, or installed.")]
    returns: Annotated[DTypeName | None, Field(description="The dtype that comes out, where the function cannot be asked.")] = (
        None
    )
    device: Annotated[
        Literal["auto", "cuda"],
        Field(description="cuda: the block is an array on a CUDA device, without which the pipeline does not run."),
    ] = "auto"
    params: Annotated[str, Field(json_schema_extra={"internal": True})] = "{}"
    """As JSON, by name in order: so they are hashable and the same on every worker."""
    texts: Annotated[tuple[tuple[str, str], ...], Field(json_schema_extra={"internal": True})] = ()
    digest: Annotated[str, Field(json_schema_extra={"internal": True})] = ""
    """With `texts`: the function's `Source`."""

    @model_validator(mode="before")
    @classmethod
    def _found_and_checked(cls, data: Any, info: ValidationInfo) -> Any:
        """Its source looked up, where it is not given, and what is given for its parameters compared with its signature."""
        if not isinstance(data, Mapping) or "function" not in data:
            return data
        address = data["function"]
        if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
            hint = "write it as module:name, such as math_on_chunks:smooth"
            raise _problem(f"must be the address of a function, not {describe(address)}", "function", hint)
        try:
            source = _given_source(data) or find_source(address.partition(":")[0], (info.context or {}).get("folder"))
            signature = Signature.of(address, source)
        except StepError as error:
            raise _problem(error.message, "function", error.hint) from None
        own = {name: data[name] for name in ("function", "returns", "device", "only") if name in data}
        given = {name: value for name, value in data.items() if name not in _OWN} | json.loads(data.get("params", "{}"))
        return {**own, "params": signature.checked(given), "texts": source.texts, "digest": source.digest}

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind not in "biufc":
            raise StepError(f"apply does not work on {array.dtype} values")
        if self.returns is not None:
            return replace(array, dtype=np.dtype(self.returns))
        if self.on_cuda is not None and why_no_cuda(self.on_cuda):
            remedy = "say what comes out, as in `returns: float32`"
            raise StepError(f"`{self.function}` is for a CUDA device and cannot be tried here, where there is none", remedy)
        dtype = _probe(self, tuple(min(size, _PROBE) for size in array.shape), array.dtype)
        return replace(array, dtype=dtype)

    def pull(self, array: ArraySpec, region: Region) -> Region:
        return region

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        return spans

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        return chunks

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        out = self._call(block)
        wanted = self.check(array).dtype
        if out.dtype != wanted:
            remedy = f"return block.astype({wanted.name!r}), or say `returns: {out.dtype}`"
            raise StepError(f"apply: `{self.function}` returned {out.dtype} and not {wanted}", remedy)
        return out

    def to_yaml_value(self) -> dict[str, Any]:
        value = {"function": self.function, **json.loads(self.params)}
        device = None if self.device == "auto" else self.device
        given = {"returns": self.returns, "device": device, "only": None if self.only is None else list(self.only)}
        return value | {name: one for name, one in given.items() if one is not None}

    def to_record_value(self) -> dict[str, Any]:
        return {**self.to_yaml_value(), "texts": [list(pair) for pair in self.texts], "digest": self.digest}

    @property
    def on_cuda(self) -> Library | None:
        return None if self.device == "auto" else "torch" if _bound(self)[1] else "cupy"

    @property
    def title(self) -> str:
        return f"apply: {self.function}"

    @property
    def source(self) -> Source:
        """What the function is made of."""
        return Source(self.texts, self.digest)

    def _call(self, block: Array) -> Array:
        """What the function gives for `block`, checked but for its dtype."""
        call, on_tensors = _bound(self)
        device = "cpu" if self.on_cuda is None else device_for_arrays(self.on_cuda, self.title)
        if on_tensors:
            return _array(_on_tensor(call, block, self.function, device), block.shape, self.function)
        if self.on_cuda is not None:
            return _array(_on_cupy(call, block, self.function), block.shape, self.function)
        seen = block.view()
        seen.flags.writeable = False
        out = _array(call(np, seen), block.shape, self.function)
        if np.may_share_memory(out, block):
            raise StepError(f"apply: `{self.function}` returned a view of its input", "return a new array, or block.copy()")
        return out


@dataclass(frozen=True)
class Signature:
    """A function's parameters after the first two, and what each may be."""

    address: str
    on_tensors: bool
    parameters: Mapping[str, inspect.Parameter]
    hints: Mapping[str, Any]

    @classmethod
    def of(cls, address: str, source: Source) -> Signature:
        """StepError when it cannot be called on a block."""
        function = load_function(address, source)
        try:
            found = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            raise StepError(f"the parameters of `{address}` cannot be known", _FORM) from None
        positional = [one for one in found[:2] if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        if len(positional) < 2 or positional[0].name not in ("xp", "np", "torch"):
            shown = ", ".join(str(one) for one in found[:4])
            raise StepError(f"`{address}` cannot be called on a chunk: its parameters are ({shown})", _FORM)
        parameters = {one.name: one for one in found[2:] if one.kind is not one.VAR_POSITIONAL}
        if taken := [name for name in parameters if name in _OWN]:
            raise StepError(f"`{address}` has a parameter `{taken[0]}`, which is a key of `apply` itself", "give it another name")
        try:
            hints = typing.get_type_hints(function)
        except Exception as error:  # noqa: BLE001 - annotations are code
            raise StepError(
                f"the annotations of `{address}` cannot be read: {type(error).__name__}: {error}", "mend them"
            ) from None
        return cls(address, positional[0].name == "torch", parameters, hints)

    def checked(self, given: Mapping[str, Any]) -> str:
        """`given` as JSON. ConfigError for what is unknown, missing or of another type."""
        named = [name for name, one in self.parameters.items() if one.kind is not one.VAR_KEYWORD]
        needed = [name for name in named if self.parameters[name].default is inspect.Parameter.empty and name not in given]
        hint = "`{0}` needs it: write `{1}: ...`"
        problems = [Problem(f"`{name}` is missing", hint=hint.format(self.address, name)) for name in needed]
        values = {}
        for name, value in given.items():
            if name not in named and len(named) == len(self.parameters):
                hint = suggestion(name, named) if named else "it has none"
                problems.append(Problem(f"`{self.address}` has no parameter `{name}`", str(name), hint=hint))
                continue
            try:
                values[str(name)] = json.loads(json.dumps(value, default=_plain))
                self.value(name, values[str(name)])
            except (TypeError, ValueError) as error:
                problems.append(Problem(_words(error, value), str(name)))
        if problems:
            raise ConfigError(problems)
        return json.dumps(values, sort_keys=True)

    def value(self, name: str, value: Any) -> Any:
        """What the function gets. ValueError, or pydantic's, when it is not of the type that the signature says."""
        hint = self.hints.get(name, Any)
        if name not in self.parameters or hint is Any:
            return value
        try:
            return _adapter(hint).validate_json(json.dumps(value), strict=True)
        except PydanticUserError:
            raise ValueError(f"is annotated as {getattr(hint, '__name__', hint)}, which a pipeline's file cannot give") from None


@lru_cache(maxsize=256)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


@lru_cache(maxsize=128)
def _bound(step: Apply) -> tuple[Callable[..., Any], bool]:
    """The function with its parameters, and whether it is for tensors."""
    signature = Signature.of(step.function, step.source)
    values = {name: signature.value(name, value) for name, value in json.loads(step.params).items()}
    return partial(load_function(step.function, step.source), **values), signature.on_tensors


@lru_cache(maxsize=256)
def _probe(step: Apply, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that comes out for a small block of ones."""
    try:
        with np.errstate(all="ignore"):
            out = step._call(np.ones(shape, dtype))
    except StepError:
        raise
    except Exception as error:
        reason = f"`{step.function}` raised on a block of ones of shape {list(shape)}: {type(error).__name__}: {error}"
        raise StepError(reason, "mend it, or say what comes out, as in `returns: float32`") from error
    if out.dtype.name not in DTYPES:
        raise StepError(f"`{step.function}` gives {out.dtype}, which cannot be stored", f"return one of {', '.join(DTYPES)}")
    found: np.dtype[Any] = np.dtype(out.dtype.name)
    return found


def _on_tensor(call: Callable[..., Any], block: Array, address: str, device: str) -> Any:
    """The function's result for a tensor of its own on `device`, as an array."""
    from gpuflow.backends.torch_operations import torch

    tensor = torch.from_numpy(np.array(block)).to(device)
    out = call(torch, tensor)
    if not isinstance(out, torch.Tensor):
        raise StepError(f"apply: `{address}` returned a {type(out).__name__} and not a tensor", "return a torch.Tensor")
    if out.device.type not in ("cpu", device):
        raise StepError(f"apply: `{address}` returned a tensor on {out.device}", "return it with .cpu()")
    if out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() and out.numel():
        raise StepError(f"apply: `{address}` returned a view of its input", "return a new tensor, or block.clone()")
    try:
        return out.detach().cpu().contiguous().numpy()
    except TypeError:
        raise StepError(f"apply: `{address}` returned {out.dtype}, which cannot be stored", "return it with .float()") from None


def _on_cupy(call: Callable[..., Any], block: Array, address: str) -> Any:
    """The function's result for a CuPy array of its own, as one of NumPy's."""
    from gpuflow.backends.cuda import cupy, own_queue

    queue = own_queue()
    with queue():
        array = queue.upload(block)
        out = call(cupy, array)
        if not isinstance(out, cupy.ndarray):
            raise StepError(f"apply: `{address}` returned a {type(out).__name__} and not a CuPy array", "return a cupy.ndarray")
        return queue.download(out, np.empty(out.shape, out.dtype))


def _array(out: Any, shape: tuple[int, ...], address: str) -> Array:
    """`out` if it is an array of NumPy's of that shape. StepError says what it is instead."""
    if isinstance(out, np.generic):
        out = np.asarray(out)
    if type(out) is not np.ndarray:
        what, remedy = f"a {type(out).__module__}.{type(out).__qualname__}", "return a plain numpy array"
        if hasattr(out, "__cuda_array_interface__") or getattr(getattr(out, "device", None), "type", "cpu") != "cpu":
            what, remedy = f"an array on another device ({what})", "return it on the CPU: the block is there"
        elif what.startswith("a torch"):
            remedy = "name the first parameter torch, and the block is a tensor"
        elif out is None:
            what, remedy = "nothing", "end it with `return ...`"
        raise StepError(f"apply: `{address}` returned {what}", remedy)
    if out.shape != shape:
        remedy = "a step keeps the shape of its chunk"
        raise StepError(f"apply: `{address}` returned shape {list(out.shape)} for a block of shape {list(shape)}", remedy)
    return out


def _given_source(data: Mapping[str, Any]) -> Source | None:
    """As a record keeps it, or another instance has it."""
    if not data.get("digest"):
        return None
    return Source(tuple((str(name), str(text)) for name, text in data.get("texts", ())), str(data["digest"]))


def _problem(message: str, path: str, hint: str) -> ConfigError:
    return ConfigError([Problem(message, path, hint=hint)])


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"must be plain data, not {describe(value)}")


def _words(error: Exception, value: Any) -> str:
    """Why a value is refused."""
    if not isinstance(error, ValidationError):
        return str(error)
    detail = error.errors(include_url=False)[0]
    where = "".join(f"[{part!r}]" for part in detail["loc"])
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    wanted = message if message == detail["msg"] else f"must be {message}, not {describe(detail['input'] if where else value)}"
    return f"{where} {wanted}".strip()
