"""`${NAME}` and `${NAME:-default}` in the text of a value; `$${` is a plain `${`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?:(:-)([^{}]*))?\})?")
_FORM = "write ${NAME} or ${NAME:-default}; $${ is a plain ${"


class VariableError(ValueError):
    """message, hint: what is wrong with a reference, and what to do; offset: of its first character in the text."""

    def __init__(self, message: str, hint: str, offset: int) -> None:
        super().__init__(message, hint, offset)
        self.message, self.hint, self.offset = message, hint, offset


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """`text` with what its references stand for; a default where a variable is not set, or empty. VariableError at the first wrong one."""

    def value(found: re.Match[str]) -> str:
        name, has_default, default = found.groups()
        if found[0] == "$${":
            return "${"
        if name is None:
            raise VariableError(f"`{text[found.start() :][:30]}` names no variable", _FORM, found.start())
        if has_default:
            return variables.get(name) or default
        if name not in variables:
            raise VariableError(
                f"the environment has no variable `{name}`", f"set it, or write ${{{name}:-default}}", found.start()
            )
        return variables[name]

    return _REFERENCE.sub(value, text) if "${" in text else text


def escape(text: str) -> str:
    """The text from which `substitute` gives `text` back."""
    return text.replace("${", "$${")
