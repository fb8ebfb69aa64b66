"""numba without SciPy: import this before the first kernel is compiled or loaded.

As numba's functions for arrays are imported (numba 0.68, np/arraymath.py) they look whether SciPy brings a BLAS, which takes a quarter of a
second; no kernel here calls one. Whoever does call one still has it looked up then."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_linalg: Any = import_module("numba.np.linalg")
_ensure_blas = _linalg.ensure_blas
_linalg.ensure_blas = lambda: None
try:
    import_module("numba.np.arraymath")
finally:
    _linalg.ensure_blas = _ensure_blas

njit: Any = import_module("numba").njit
