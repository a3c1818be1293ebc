"""Our networks under their names in timm, without importing timm before somebody else does.

timm and torch take seconds to import, and much of this package (images, recipes) needs neither.
What is registered are functions that import the rest when they are called.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from searchspace.presets import PRESETS, preset

if TYPE_CHECKING:
    from torch import nn

ANY = "mixer_search"  # the name that builds any architecture


def register_with_timm() -> None:
    """Make timm know ``mixer_search`` and the presets: now if it is imported, else when it is."""
    if "timm" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm(MetaPathFinder):
    """Registers our networks as soon as timm has been imported, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find timm as it would be found without us, and wait for its end."""
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _followed_by(  # type: ignore[method-assign, assignment]
                spec.loader.exec_module, _register
            )
        return spec


def _followed_by(
    first: Callable[[ModuleType], None], second: Callable[[], None]
) -> Callable[[ModuleType], None]:
    def both(module: ModuleType) -> None:
        first(module)
        second()

    return both


def _register() -> None:
    """Register the names; those that timm has stay timm's."""
    import timm
    from timm.models import generate_default_cfgs, register_model

    from supernet.exchange.timm_config import default_config

    # timm looks for configurations in the module of the functions that it registers.
    globals()["default_cfgs"] = generate_default_cfgs(
        {name: default_config(preset(name)) for name in PRESETS}
    )
    for name in (ANY, *PRESETS):
        if not timm.is_model(name):
            register_model(_entry_point(name))
    # timm appends the names here; they are not attributes of this module.
    sys.modules[__name__].__dict__.pop("__all__", None)


def _entry_point(name: str) -> Callable[..., nn.Module]:
    """Make the function that timm calls for a name."""

    def build(pretrained: bool = False, **settings: Any) -> nn.Module:
        from supernet.exchange.timm_models import create_for_timm

        return create_for_timm(name, pretrained, **settings)

    build.__name__ = build.__qualname__ = name
    build.__module__ = __name__
    return build
