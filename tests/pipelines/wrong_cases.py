"""Wrong pipeline files, and what has to be said about each: all lines, in order, with their places."""

# ruff: noqa: E501 - a case reads best on one line

from __future__ import annotations

GOOD = """\
source: photos
steps:
  - standardize: {per: channel}
  - clip: {min: -3, max: 3}
  - cast: float16
output: photos-train
"""

STRUCTURE: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["p.yaml: the file is empty; write source, steps and output"]),
    "blank": ("\n  \n# nothing\n", ["p.yaml: the file is empty"]),
    "null": ("~\n", ["p.yaml: the file is empty"]),
    "list": ("- source: a\n", ["p.yaml:1:1: a pipeline is a mapping, not a list"]),
    "text": ("photos\n", ["p.yaml:1:1: a pipeline is a mapping, not the text 'photos'"]),
    "number": ("3\n", ["p.yaml:1:1: a pipeline is a mapping, not the number 3"]),
    "empty mapping": ("{}\n", ["p.yaml:1:1: `source` is missing", "p.yaml:1:1: `output` is missing"]),
    "two documents": ("---\nsource: a\n---\nsource: b\n", ["p.yaml:3:1: there is more than one document"]),
    "tab": ("source: a\nsteps:\n\t- cast: int8\n", ["p.yaml:3:1: not valid YAML: a tab cannot begin anything here; indent with spaces"]),
    "open bracket": ("source: a\nsteps: [cast: int8\noutput: b\n", ["p.yaml:3:7: not valid YAML"]),
    "open quote": ("source: 'a\n", ["not valid YAML: the file ends inside quotes; close the quotes"]),
    "colon": ("source: a: b\n", ["p.yaml:1:10: not valid YAML: a `:` is not expected here"]),
    "indentation": ("source: a\n  steps: []\n", ["p.yaml:2:8: not valid YAML: a `:` is not expected here; check the indentation"]),
    "dedent": ("source:\n    dataset: a\n  arrays: b\n", ["p.yaml:3:3: not valid YAML: this line does not fit the lines above it"]),
    "percent": ("source: %a\n", ["p.yaml:1:9: not valid YAML: a character such as % @ ` cannot begin a value"]),
    "star": ("source: {dataset: a, arrays: [t*, *t]}\n", ["p.yaml:1:35: the alias *t has no anchor &t above it"]),
    "recursive alias": ("source: &a [*a]\n", ["p.yaml:1:13: the alias *a stands inside its own anchor"]),
    "python tag": ("source: !!python/object/apply:os.system ['true']\noutput: b\n", [
        "p.yaml:1:9: source: the tag `tag:yaml.org,2002:python/object/apply:os.system` is not allowed",
        "p.yaml:1:9: source: must be the name of a dataset or a mapping, not a list",
    ]),
    "own tag": ("source: a\noutput: !secret b\n", ["p.yaml:2:9: output: the tag `!secret` is not allowed; write plain values, without !"]),
    "tagged key": ("source: a\n!!str output: b\n", ["p.yaml:2:1: output: the tag"]),
    "number key": ("source: a\noutput: b\n1: c\n", ["p.yaml:3:1: a key has to be text, not `1`; put it in quotes"]),
    "null key": ("source: a\noutput: b\n~: c\n", ["p.yaml:3:1: a key has to be text, not `null`"]),
    "list key": ("source: a\noutput: b\n? [c]\n: d\n", ["p.yaml:3:3: a key has to be text, not a list or mapping"]),
    "merge key": ("source: &s {dataset: a}\noutput:\n  <<: *s\n", [
        "p.yaml:3:3: output.<<: unknown key `<<`",
    ]),
    "duplicate section": ("source: a\noutput: b\nsource: c\n", ["p.yaml:3:1: source: the key `source` is there twice; the first is on line 1"]),
    "duplicate parameter": ("source: a\nsteps:\n  - clip: {min: 1, min: 2}\noutput: b\n", [
        "p.yaml:3:20: steps[0].clip.min: the key `min` is there twice; the first is on line 3; keep one",
    ]),
    "NUL": ("source: a\noutput: \x00\n", ["p.yaml:2:9: the character U+0000 is not text"]),
    "escape": ('source: "\\UFFFFFFFF"\n', ["p.yaml: not valid YAML; check quotes"]),
    "nested": ("[" * 60, ["p.yaml:1:51: it is nested more than 50 deep"]),
    "deeply nested": ("[" * 200_000, ["p.yaml:1:51: it is nested more than 50 deep"]),
    "nested mappings": ("{a: " * 60, ["it is nested more than 50 deep"]),
    "nested by aliases": (
        "a0: &a0 []\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60)), ["p.yaml:50:12: it is nested more than 50 deep"]
    ),
    "alias bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
        ["p.yaml:5:"],
    ),
    "many values": ("a: [" + "1, " * 10_001 + "]", ["the file has more than 10000 values, aliases expanded"]),
}  # fmt: skip

VARIABLES: dict[str, tuple[str, list[str]]] = {
    "not set": ("source: ${GPUFLOW_NOT_SET}\noutput: b\n", [
        "p.yaml:1:9: source: the environment has no variable `GPUFLOW_NOT_SET`; set it, or write ${GPUFLOW_NOT_SET:-default}",
    ]),
    "not set, in text": ("source: a\noutput: run-${GPUFLOW_NOT_SET}\n", ["p.yaml:2:9: output: the environment has no variable"]),
    "not set, in a step": (GOOD.replace("-3", "${GPUFLOW_NOT_SET}"), ["p.yaml:4:18: not valid YAML: a bracket is not closed, or a comma is missing; inside [ ] and { }, put \"${...}\" in quotes"]),
    "not set, in a list": ("source: a\nsteps:\n  - clip: [0, '${GPUFLOW_NOT_SET}']\noutput: b\n", ["p.yaml:3:15: steps[0].clip[1]: the environment has no"]),
    "no name": ("source: ${}\noutput: b\n", ["p.yaml:1:9: source: `${}` names no variable; write ${NAME} or ${NAME:-default}; $${ is a plain ${"]),
    "no end": ("source: ${A\noutput: b\n", ["p.yaml:1:9: source: `${A` names no variable"]),
    "another operator": ("source: ${A-b}\noutput: b\n", ["p.yaml:1:9: source: `${A-b}` names no variable"]),
    "a wrong default": ("source: ${GPUFLOW_NOT_SET:-a b}\noutput: b\n", ["p.yaml:1:9: source.dataset: 'a b' cannot be the name of a dataset"]),
    "in brackets": ("source: {dataset: ${A}}\noutput: b\n", ['p.yaml:1:20: not valid YAML: a bracket is not closed, or a comma is missing; inside [ ] and { }, put "${...}"']),
}  # fmt: skip

SECTIONS: dict[str, tuple[str, list[str]]] = {
    "unknown section": (GOOD + "stepz: 3\n", ["p.yaml:7:1: stepz: unknown key `stepz`; did you mean `steps`? known: source, steps, output, statistics, run"]),
    "no output": ("source: a\n", ["p.yaml:1:1: `output` is missing; write `output: <name of a dataset>`"]),
    "empty source": ("source:\noutput: b\n", ["p.yaml:1:1: source: `source` is empty"]),
    "source is a number": ("source: 3\noutput: b\n", ["p.yaml:1:9: source: must be the name of a dataset or a mapping, not the number 3"]),
    "source without dataset": ("source: {arrays: [a]}\noutput: b\n", ["p.yaml:1:9: source: `dataset` is missing; write `dataset: ...`"]),
    "bad source name": ("source: my photos\noutput: b\n", [
        "p.yaml:1:9: source.dataset: 'my photos' cannot be the name of a dataset; use at most 100 letters, digits, `.`, `_` and `-`",
    ]),
    "path as a name": ("source: {dataset: ../up}\noutput: /tmp/x\n", [
        "p.yaml:1:19: source.dataset: '../up' cannot be", "p.yaml:2:9: output.dataset: '/tmp/x' cannot be",
    ]),
    "long name": (f"source: {'a' * 101}\noutput: b\n", ["cannot be the name of a dataset"]),
    "number as dataset": ("source: {dataset: 2024}\noutput: b\n", [
        'p.yaml:1:19: source.dataset: must be text, not the number 2024; put it in quotes: "..."',
    ]),
    "dataset in a list": ("source: {dataset: [a]}\noutput: b\n", ["source.dataset: must be text, not a list"]),
    "no arrays": ("source: {dataset: a, arrays: []}\noutput: b\n", ["p.yaml:1:30: source.arrays: names no array; leave `arrays` out"]),
    "arrays twice": ("source: {dataset: a, arrays: [x, x]}\noutput: b\n", ["source.arrays: names 'x' twice"]),
    "arrays of numbers": ("source: {dataset: a, arrays: [x, 3]}\noutput: b\n", ["p.yaml:1:34: source.arrays[1]: must be text, not the number 3"]),
    "arrays mapping": ("source: {dataset: a, arrays: {x: 1}}\noutput: b\n", ["p.yaml:1:30: source.arrays: must be a list, not a mapping"]),
    "near key": ("source: {dataset: a, array: [x]}\noutput: b\n", [
        "p.yaml:1:22: source.array: unknown key `array`; did you mean `arrays`? known: dataset, arrays",
    ]),
    "output is the source": ("source: a\noutput: a\n", [
        "p.yaml:2:9: output.dataset: the output 'a' is the source; name another dataset, or write `output: {in_place: true}`",
    ]),
    "both outputs": ("source: a\noutput: {dataset: b, in_place: true}\n", ["p.yaml:2:9: output: has both `dataset` and `in_place`; give exactly one"]),
    "no outputs": ("source: a\noutput: {compressor: zstd}\n", ["p.yaml:2:9: output: has neither `dataset` nor `in_place: true`"]),
    "in place, not": ("source: a\noutput: {in_place: false}\n", ["output: has neither"]),
    "in place, yes": ("source: a\noutput: {in_place: yes}\n", ["p.yaml:2:20: output.in_place: must be true or false, not the text 'yes'"]),
    "in place, compressed": ("source: a\nsteps: [cast: int8]\noutput: {in_place: true, compressor: zstd}\n", [
        "p.yaml:3:38: output.compressor: in place, arrays keep the codecs they have; leave `compressor` out",
    ]),
    "snapshot of what is not changed": ("source: a\noutput: {dataset: b, snapshot: before}\n", [
        "p.yaml:2:32: output.snapshot: only what is changed in place needs a snapshot: the source stays as it is; leave `snapshot` out",
    ]),
    "no tag": ("source: a\nsteps: [cast: int8]\noutput: {in_place: true, snapshot: ../x}\n", [
        "p.yaml:3:36: output.snapshot: '../x' cannot be the tag of a snapshot; use at most 100 letters",
    ]),
    "no tag, a number": ("source: a\nsteps: [cast: int8]\noutput: {in_place: true, snapshot: 7}\n", [
        "p.yaml:3:36: output.snapshot: must be text, not the number 7",
    ]),
    "in place without steps": ("source: a\noutput: {in_place: true}\n", ["steps: there is nothing to do: no steps, and the output is in place"]),
    "compressor": ("source: a\noutput: {dataset: b, compressor: zst}\n", [
        "p.yaml:2:34: output.compressor: must not be the text 'zst'; did you mean `zstd`? known: auto, none, zstd, gzip, blosc, lz4",
    ]),
    "compressor number": ("source: a\noutput: {dataset: b, compressor: 3}\n", ["output.compressor: must not be the number 3; known: auto, none"]),
    "chunks": ("source: a\noutput: {dataset: b, chunks: all}\n", [
        "p.yaml:2:30: output.chunks: must be auto, whole or a list of whole numbers, not the text 'all'; write auto, as in [1, 256, 256], or by dimension as in {time: 1}",
    ]),
    "chunks of nothing": ("source: a\noutput: {dataset: b, chunks: []}\n", ["output.chunks: must be auto, whole or a list of whole numbers"]),
    "chunks of halves": ("source: a\noutput: {dataset: b, chunks: [1, 2.5]}\n", ["output.chunks: must be auto, whole or a list"]),
    "chunks true": ("source: a\noutput: {dataset: b, chunks: [true]}\n", ["output.chunks: must be auto, whole or a list of whole numbers"]),
    "chunks of zero": ("source: a\noutput: {dataset: b, chunks: [4, 0]}\n", [
        "p.yaml:2:30: output.chunks: 0 is not the size of a chunk; give 1 or more for each dimension",
    ]),
    "in place, cut": ("source: a\nsteps: [cast: int8]\noutput: {in_place: true, compressor: zstd, chunks: whole}\n", [
        "output.compressor: in place, arrays keep the codecs they have; leave `compressor` out",
        "output.chunks: in place, arrays keep the codecs they have; leave `chunks` out",
    ]),
    "no replicas": ("source: a\noutput: {dataset: b, replicas: {max: 0}}\n", ["p.yaml:2:38: output.replicas.max: must be at least 1, not 0"]),
    "replicas": ("source: a\noutput: {dataset: b, replicas: {mx: 3}}\n", [
        "output.replicas.mx: unknown key `mx`; did you mean `max`? known: min, max",
    ]),
    "in place, a part": ("source: {dataset: a, isel: {y: [0, 5]}}\nsteps: [cast: int8]\noutput: {in_place: true}\n", [
        "output.in_place: a part of the source cannot be changed in place; write to a new dataset, or use a `where` step",
    ]),
    "isel": ("source: {dataset: a, isel: {y: 5}}\noutput: b\n", ["p.yaml:1:28: source.isel: must be [start, stop], not the number 5; as in isel: {time: [0, 365]}"]),
    "isel of what": ("source: {dataset: a, isel: 5}\noutput: b\n", ["source.isel: must name dimensions, not the number 5"]),
    "sel": ("source: {dataset: a, sel: {y: [1, [2]]}}\noutput: b\n", ["source.sel: must be numbers or dates, not a list"]),
    "isel and sel": ("source: {dataset: a, sel: {y: [1, 2]}, isel: {y: [1, 2]}}\noutput: b\n", ["source: `y` stands under `isel` and `sel`; give each dimension once"]),
    "in place, spread": ("source: a\nsteps: [cast: int8]\noutput: {in_place: true, replicas: {max: 2}}\n", [
        "output.replicas: in place, a dataset keeps its replicas as they are; leave `replicas` out",
    ]),
    "device": (GOOD + "run: {device: gpu}\n", ["p.yaml:7:15: run.device: there is no device 'gpu'; write auto, cpu, cuda or cuda:0"]),
    "device number": (GOOD + "run: {device: 'cuda:x'}\n", ["run.device: there is no device 'cuda:x'"]),
    "workers": (GOOD + "run:\n  workers: 0\n", ["p.yaml:8:12: run.workers: must be at least 1, not 0"]),
    "workers float": (GOOD + "run: {workers: 1.5}\n", ["run.workers: must be a whole number, not the number 1.5"]),
    "workers true": (GOOD + "run: {workers: true}\n", ["run.workers: must be a whole number, not true"]),
    "memory": (GOOD + "run: {memory: lots}\n", ["p.yaml:7:15: run.memory: must be a number of bytes such as 2GiB, at least 1MiB, not the text 'lots'"]),
    "memory none": (GOOD + "run: {memory: 0}\n", ["run.memory: must be a number of bytes such as 2GiB, at least 1MiB, not the number 0"]),
    "cache": (GOOD + "run: {cache: lots}\n", ["p.yaml:7:14: run.cache: must be auto, off, or a number of bytes such as 2GiB, at least 1MiB, not the text 'lots'"]),
    "cache none": (GOOD + "run: {cache: }\n", ["run.cache: must be auto, off, or a number of bytes such as 2GiB, at least 1MiB, not "]),
    "on_error": (GOOD + "run: {on_error: halt}\n", ["run.on_error: must not be the text 'halt'; known: continue, stop"]),
    "run": (GOOD + "run: cuda\n", ["p.yaml:7:6: run: must be a mapping, not the text 'cuda'; its keys are device, workers"]),
}  # fmt: skip


def measured(text: str) -> str:
    return f"source: a\nstatistics: {text}\n"


STATISTICS: dict[str, tuple[str, list[str]]] = {
    "statistics and output": (measured("{}") + "output: b\n", ["p.yaml:3:1: output: a pipeline has `output` or `statistics`, not both; write two files"]),
    "statistics of a name": (measured("t2m"), ["p.yaml:2:13: statistics: must be a mapping, not the text 't2m'; its keys are per, over, where, weights, quantiles, histogram"]),
    "statistics both ways": (measured("{per: y, over: x}"), ["p.yaml:2:13: statistics: has both `per` and `over`; give the dimensions that are kept, or those that are not"]),
    "statistics key": (measured("{quantile: 0.5}"), ["p.yaml:2:14: statistics.quantile: unknown key `quantile`; did you mean `quantiles`? known: per, over"]),
    "quantiles in percent": (measured("{quantiles: [1, 50]}"), ["p.yaml:2:25: statistics.quantiles: must be shares from 0 to 1, not 50; as in [0.01, 0.5, 0.99]"]),
    "quantiles of text": (measured("{quantiles: median}"), ["statistics.quantiles: must be a number, not the text 'median'"]),
    "quantiles twice": (measured("{quantiles: [0.5, 0.5]}"), ["statistics.quantiles: names a quantile twice"]),
    "histogram without bins": (measured("{histogram: {range: [0, 1]}}"), ["p.yaml:2:25: statistics.histogram: `bins` is missing; write `bins: ...`"]),
    "histogram key": (measured("{histogram: {bins: 3, rnage: [0, 1]}}"), ["statistics.histogram.rnage: unknown key `rnage`; did you mean `range`? known: bins, range"]),
    "histogram bins": (measured("{histogram: 0}"), ["p.yaml:2:25: statistics.histogram.bins: must be from 1 to 10000, not 0"]),
    "histogram range": (measured("{histogram: {bins: 3, range: [1, 0]}}"), ["statistics.histogram.range: must rise: 1 is not below 0"]),
    "statistics where": (measured("{where: x = 3}"), ["p.yaml:2:21: statistics.where: not a valid expression"]),
    "weights of text": (measured("{weights: 3}"), ["p.yaml:2:23: statistics.weights: must be an expression of coordinates such as cos(radians(lat)), not the number 3"]),
    "weights of a list": (measured("{weights: [1, 2]}"), ["statistics.weights: must be an expression of coordinates such as cos(radians(lat)), not a list"]),
    "weights of nothing": (measured("{weights: '2 * 3'}"), ["statistics.weights: the expression names no array"]),
    "weights function": (measured("{weights: cosd(lat)}"), ["p.yaml:2:23: statistics.weights: unknown function `cosd` (column 1); did you mean `cos`?"]),
    "weights of a module": (measured("{weights: np.cos(lat)}"), ["p.yaml:2:23: statistics.weights: a dot after a name is not allowed"]),
    "weights key": (measured("{weight: cos(lat)}"), ["p.yaml:2:14: statistics.weight: unknown key `weight`; did you mean `weights`?"]),
    "weighted quantiles": (measured("{weights: cos(lat), quantiles: 0.5}"), [
        "p.yaml:2:13: statistics: has both `weights` and `quantiles`, which take none; ask for the quantiles in a file of their own",
    ]),
    "statistics per": (measured("{per: [y, y]}"), ["statistics.per: names a dimension twice"]),
    "statistics over": (measured("{over: [1.5]}"), ["statistics.over: must be names or numbers of dimensions, not the number 1.5"]),
}  # fmt: skip


def step(text: str) -> str:
    return f"source: a\nsteps:\n  - {text}\noutput: b\n"


STEPS: dict[str, tuple[str, list[str]]] = {
    "steps mapping": ("source: a\nsteps:\n  clip: [0, 1]\noutput: b\n", ["p.yaml:3:3: steps: must be a list of steps, not a mapping; begin each"]),
    "steps text": ("source: a\nsteps: clip\noutput: b\n", ["p.yaml:2:8: steps: must be a list of steps, not the text 'clip'"]),
    "step number": (step("3"), ["p.yaml:3:5: steps[0]: a step is its name with its parameters, not the number 3; known steps: apply, cast, clip"]),
    "step null": (step(""), ["steps[0]: a step is its name with its parameters, not empty"]),
    "step empty": (step("{}"), ["steps[0]: a step is its name with its parameters, not an empty mapping"]),
    "unknown step": (step("standardise: {per: x}"), ["p.yaml:3:5: steps[0].standardise: unknown step `standardise`; did you mean `standardize`?"]),
    "very unknown step": (step("qqq: 3"), ["p.yaml:3:5: steps[0].qqq: unknown step `qqq`; known: "]),
    "bare unknown step": (step("standardise"), ["steps[0].standardise: unknown step `standardise`; did you mean"]),
    "parameters not indented": (step("standardize:\n    per: x"), [
        "p.yaml:3:5: steps[0]: one entry of the list has several keys: standardize, per; indent the parameters further than `standardize`",
    ]),
    "two steps in one": (step("cast: int8\n    clip: [0, 1]"), [
        "p.yaml:3:5: steps[0]: one entry of the list has several keys: cast, clip; begin each step with its own dash",
    ]),
    "clip empty": (step("clip"), ["p.yaml:3:5: steps[0].clip: has neither `min` nor `max`"]),
    "clip scalar": (step("clip: 3"), ["p.yaml:3:11: steps[0].clip: must be [min, max] or a mapping, not the number 3; as in `clip: [0, 1]`"]),
    "clip list of 3": (step("clip: [1, 2, 3]"), ["steps[0].clip: must be [min, max] or a mapping, not a list of 3"]),
    "clip swapped": (step("clip: [3, 1]"), ["p.yaml:3:11: steps[0].clip: `min` 3 is greater than `max` 1; swap them"]),
    "clip text": (step("clip: {min: 0, max: abc}"), ["p.yaml:3:25: steps[0].clip.max: must be a number, not the text 'abc'"]),
    "clip nan": (step("clip: {min: .nan}"), ["p.yaml:3:17: steps[0].clip.min: must be a finite number, not nan"]),
    "clip inf": (step("clip: {min: -.inf}"), ["steps[0].clip.min: must be a finite number, not -inf"]),
    "clip too large": (step("clip: {min: 1e999}"), ["steps[0].clip.min: must be a finite number, not inf"]),
    "clip digits": (step(f"clip: {{min: {'9' * 5000}}}"), ["steps[0].clip.min: must be a finite number, not inf"]),
    "clip 64 bits": (step("clip: {min: 99999999999999999999}"), ["steps[0].clip.min: is beyond the range of 64-bit integers"]),
    "normalize range": (step("normalize: {range: [1, 0]}"), ["p.yaml:3:24: steps[0].normalize.range: must rise: 1.0 is not below 0.0"]),
    "normalize half": (step("normalize: {min: 0}"), ["p.yaml:3:16: steps[0].normalize: `min` is given without `max`; give both, or neither"]),
    "normalise": (step("normalise: channel"), ["p.yaml:3:5: steps[0].normalise: unknown step `normalise`; did you mean `normalize`?"]),
    "normalize quantiles": (step("normalize: {quantiles: [0.99, 0.01]}"), ["p.yaml:3:28: steps[0].normalize.quantiles: must be two shares from 0 to 1 that rise, not 0.99 and 0.01"]),
    "normalize percent": (step("normalize: {quantiles: [1, 99]}"), ["steps[0].normalize.quantiles: must be two shares from 0 to 1 that rise, not 1.0 and 99.0"]),
    "normalize three": (step("normalize: {quantiles: [0, 0.5, 1]}"), ["steps[0].normalize.quantiles: must be two numbers such as [0.01, 0.99], not a list"]),
    "normalize both": (step("normalize: {quantiles: [0, 1], min: 0, max: 1}"), ["steps[0].normalize: has both `quantiles` and `min` with `max`; give one or the other"]),
    "where empty": (step("where"), ["p.yaml:3:5: steps[0].where: `condition` is missing; write `condition: ...`"]),
    "where broken": (step("where: x >"), ["p.yaml:3:12: steps[0].where.condition: not a valid expression"]),
    "where without x": (step("where: 1 > 0"), ["steps[0].where.condition: the expression does not use x"]),
    "where other": (step("where: {condition: x > 0, other: none}"), ["p.yaml:3:38: steps[0].where.other: must be a number or nan, not the text 'none'"]),
    "mask infinite": (step("mask: {condition: x > 0, other: .inf}"), ["steps[0].mask.other: must be a finite number, not inf"]),
    "mask value": (step("mask: {condition: x > 0, value: 3}"), ["steps[0].mask.value: unknown key `value`; known: condition, other"]),
    "exec empty": (step("exec:"), ["p.yaml:3:5: steps[0].exec: `command` is missing; write `command: ...`"]),
    "exec a line": (step("exec: prog -x 3"), ["p.yaml:3:11: steps[0].exec.command: is one word for the program; write each argument on its own: [prog, -x, 3]"]),
    "exec numbers": (step("exec: [prog, 3]"), ["steps[0].exec.command: must be a list of a program and its arguments, all of them text, not a list"]),
    "exec nothing": (step("exec: []"), ["steps[0].exec.command: must be a list of a program and its arguments"]),
    "exec relative": (step("exec: ./prog"), ["steps[0].exec.command: `./prog` is a relative path; give an absolute one, or a name on the workers' PATH"]),
    "exec format": (step("exec: {command: prog, format: npz}"), ["p.yaml:3:35: steps[0].exec.format: must not be the text 'npz'; did you mean `npy`? known: npy, raw"]),
    "exec timeout": (step("exec: {command: prog, timeout_seconds: 0}"), ["steps[0].exec.timeout_seconds: must be more than 0, not 0"]),
    "exec timeout 2": (step("exec: {command: prog, timeout: 3}"), ["steps[0].exec.timeout: unknown key `timeout`; did you mean `timeout_seconds`?"]),
    "exec memory": (step("exec: {command: prog, memory: lots}"), ["steps[0].exec.memory: must be a number of bytes such as 2GiB, at least 1MiB, not the text 'lots'"]),
    "exec little memory": (step("exec: {command: prog, memory: 2}"), ["steps[0].exec.memory: must be a number of bytes such as 2GiB, at least 1MiB, not the number 2"]),
    "apply nothing": (step("apply"), ["p.yaml:3:5: steps[0].apply: `function` is missing"]),
    "apply a name": (step("apply: smooth"), ["p.yaml:3:12: steps[0].apply.function: must be the address of a function, not the text 'smooth'; write it as module:name"]),
    "apply from nowhere": (step("apply: no_such_module_here:f"), ["p.yaml:3:12: steps[0].apply.function: there is no module `no_such_module_here`; put"]),
    "apply a parameter": (step("apply: {function: 'tests.steps.functions:scale', factr: 3}"), ["p.yaml:3:61: steps[0].apply.factr: `tests.steps.functions:scale` has no parameter `factr`; did you mean `factor`?"]),
    "apply a type": (step("apply: {function: 'tests.steps.functions:scale', factor: abc}"), ["p.yaml:3:62: steps[0].apply.factor: must be a valid number, not the text 'abc'"]),
    "apply too little": (step("apply: {function: 'tests.steps.functions:needs', low: 3}"), ["p.yaml:3:12: steps[0].apply: `high` is missing; `tests.steps.functions:needs` needs it"]),
    "apply returns": (step("apply: {function: 'tests.steps.functions:scale', returns: floot}"), ["steps[0].apply.returns: unknown dtype `floot`; did you mean `float64`?"]),
    "fill_nan with nan": (step("fill_nan: .nan"), ["steps[0].fill_nan.value: must be a finite number, not nan"]),
    "unpack nothing": (step("unpack: {}"), ["steps[0].unpack: has neither `scale_factor` nor `add_offset` nor `missing`"]),
    "unpack factor": (step("unpack: {scale_factor: 0}"), ["p.yaml:3:28: steps[0].unpack.scale_factor: must not be 0"]),
    "clip unknown": (step("clip: {min: 0, maxi: 3}"), ["p.yaml:3:20: steps[0].clip.maxi: unknown key `maxi`; did you mean `max`? known: min, max"]),
    "clip bool": (step("clip: {min: true}"), ["steps[0].clip.min: must be a number, not true"]),
    "cast empty": (step("cast:"), ["steps[0].cast: `dtype` is missing; write `dtype: ...`"]),
    "cast near": (step("cast: floot16"), ["p.yaml:3:11: steps[0].cast.dtype: unknown dtype `floot16`; did you mean `float16`?"]),
    "cast number": (step("cast: {dtype: 16}"), ["p.yaml:3:19: steps[0].cast.dtype: must be the name of a dtype such as float32, not the number 16"]),
    "map broken": (step('map: "sqrt(x"'), ["p.yaml:3:10: steps[0].map.expression: not a valid expression: '(' was never closed (column 5)"]),
    "map number": (step("map: 3"), ["steps[0].map.expression: must be an expression of x such as x * 2, not the number 3"]),
    "map import": (step("map: __import__('os')"), ["steps[0].map.expression: unknown function `__import__`"]),
    "refit": (step("standardize: {refit: sometimes}"), [
        "p.yaml:3:26: steps[0].standardize.refit: must be never, always, or drift > a number, not the text 'sometimes'; as in `refit: drift > 0.05`",
    ]),
    "refit misspelt": (step("normalize: {refit: alway}"), ["p.yaml:3:24: steps[0].normalize.refit: must be never, always, or drift > a number, not the text 'alway'; did you mean `always`?"]),
    "refit of what is given": (step("standardize: {mean: 1, std: 2, refit: always}"), ["steps[0].standardize: `refit` says nothing where `mean` and `std` are given; leave it out"]),
    "standardize per": (step("standardize: 1.5"), ["p.yaml:3:18: steps[0].standardize.per: must be a dimension name, an axis number, or a list of those"]),
    "standardize mean": (step("standardize: {mean: 3}"), ["p.yaml:3:18: steps[0].standardize: `mean` is given without `std`; give both"]),
    "standardize std": (step("standardize: {mean: 3, std: [1, 0]}"), ["p.yaml:3:33: steps[0].standardize.std: must be greater than 0 everywhere"]),
    "standardize weights": (step("standardize: {weights: 3}"), ["p.yaml:3:28: steps[0].standardize.weights: must be an expression of coordinates such as cos(radians(lat)), not the number 3"]),
    "standardize weights broken": (step('standardize: {weights: "cos(lat"}'), ["p.yaml:3:28: steps[0].standardize.weights: not a valid expression: '(' was never closed (column 4)"]),
    "standardize weights of what is given": (step("standardize: {mean: 1, std: 2, weights: lat}"), ["steps[0].standardize: `weights` says nothing where `mean` and `std` are given; leave it out"]),
    "normalize weights": (step("normalize: {weights: lat}"), ["p.yaml:3:17: steps[0].normalize.weights: unknown key `weights`"]),
    "standardize nan": (step("standardize: {mean: [.nan], std: 1}"), ["steps[0].standardize.mean: must be a finite number, not nan"]),
}  # fmt: skip

MANY = """\
source: {dataset: "ph otos", arrays: []}
stepz: 3
steps:
  - standardise: {per: channel}
  - clip: {min: 3, max: abc, mim: 3}
  - cast: floot16
output: {dataset: photos-train, compressor: zst, in_place: yes}
output: b
run: {device: gpu, workers: 0}
"""
MANY_PLACES = [(1, 19), (1, 38), (2, 1), (4, 5), (5, 25), (5, 30), (6, 11), (7, 45), (7, 60), (8, 1), (9, 15), (9, 29)]
