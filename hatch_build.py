"""Compile the kernels when a wheel is made, or an editable installation. Without a compiler both go on without them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

KERNELS = Path("src", "fewfire", "kernels")


class KernelsHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library and say that the wheel holds it, and for which platform."""
        if os.environ.get("FEWFIRE_NO_NATIVE", "0") not in {"", "0"}:
            return
        kernels = Path(self.root, KERNELS)
        lacking = _building(kernels).build(kernels / "csrc", kernels / "_native.so")
        if lacking:
            self.app.display_warning(f"fewfire will use plain torch: {lacking}")
            return
        build_data["artifacts"].append(f"/{(KERNELS / '_native.so').as_posix()}")  # git ignores it, the wheel must not
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"  # ctypes loads the library: any Python 3 will do


def _building(kernels: Path) -> Any:
    """``building.py``, without importing fewfire, which needs torch."""
    spec = importlib.util.spec_from_file_location("fewfire_building", kernels / "building.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _platform() -> str:
    """What was compiled here runs here; that it runs on all of manylinux nobody has checked."""
    return next(
        tag.platform for tag in sys_tags() if "manylinux" not in tag.platform and "musllinux" not in tag.platform
    )
