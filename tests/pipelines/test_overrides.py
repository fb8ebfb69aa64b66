"""Settings beside the file: they take the place of what it says, or say what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.errors import ConfigError
from gpuflow.pipelines.load import load_text
from gpuflow.pipelines.overrides import override
from gpuflow.pipelines.yaml_text import parse_yaml

TEXT = """source: photos
steps:
  - standardize
  - clip: {min: -3, max: 3}
  - clip: [0, 1]
output: train
"""


@pytest.mark.parametrize(
    ("settings", "path", "expected"),
    [
        (["steps[1].clip.max=5"], ("steps", 1, "clip"), {"min": -3, "max": 5}),
        (["steps.1.clip.max = 5"], ("steps", 1, "clip"), {"min": -3, "max": 5}),
        (["steps[2].clip=[-2, 2]"], ("steps", 2, "clip"), [-2, 2]),
        (["steps[2].clip[0]=-0.5"], ("steps", 2, "clip"), [-0.5, 1]),
        (["steps[0].standardize.per=channel"], ("steps", 0), {"standardize": {"per": "channel"}}),
        (["output.compressor=lz4"], ("output",), {"dataset": "train", "compressor": "lz4"}),
        (["output=other", "output.chunks=whole"], ("output",), {"dataset": "other", "chunks": "whole"}),
        (["run.workers=2", "run.device=cpu"], ("run",), {"workers": 2, "device": "cpu"}),
        (["source.arrays=['a=b', c]"], ("source",), {"dataset": "photos", "arrays": ["a=b", "c"]}),
        (["run="], ("run",), None),
    ],
)
def test_a_setting(settings: list[str], path: tuple[Any, ...], expected: Any) -> None:
    document = parse_yaml(TEXT)
    data = override(document, settings).data
    for part in path:
        data = data[part]
    assert data == expected
    assert document.data == parse_yaml(TEXT).data


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "--set steps: this is not a path and a value; write section.key=value"),
        ("=3", "--set =3: this is not a path and a value"),
        ("a..b=3", "this is not a path and a value"),
        ("output.dataset=[1", "--set output.dataset=[1: not valid YAML"),
        ("steps[7].clip.max=5", "`steps` is a list and has 3 entries, numbered from 0; set it whole: steps=[...]"),
        (
            "steps[2].clip.max=5",
            "`steps[2].clip` is a list and has 2 entries, numbered from 0; set it whole: steps[2].clip=[...]",
        ),
        ("steps[1].clip.max.x=5", "`steps[1].clip.max` is the number 3, which has nothing below it"),
    ],
)
def test_a_wrong_setting(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(TEXT, "p.yaml", [setting])
    assert message in str(caught.value)


def test_what_a_setting_says_is_checked_as_the_file_is() -> None:
    assert load_text(TEXT, "p.yaml", ["steps[1].clip.max=5"]).to_dict()["steps"][1] == {"clip": {"min": -3, "max": 5}}
    with pytest.raises(ConfigError, match=r"p\.yaml:1:1: runn: unknown key `runn`; did you mean `run`\?"):
        load_text(TEXT, "p.yaml", ["runn.workers=2"])
    with pytest.raises(ConfigError, match=r"p\.yaml:4:11: steps\[1\]\.clip: `min` -3 is greater than `max` -5"):
        load_text(TEXT, "p.yaml", ["steps[1].clip.max=-5"])


@given(st.text(max_size=40))
def test_any_text_is_a_setting_or_an_error(text: str) -> None:
    for setting in (text, f"steps[1].{text}", f"output.dataset={text}"):
        assert _set(setting) is None or "--set" in str(_set(setting))


def _set(setting: str) -> ConfigError | None:
    try:
        override(parse_yaml(TEXT), [setting])
    except ConfigError as error:
        return error
    return None
