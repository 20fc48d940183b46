"""Top-down feedback for pretrained transformers.

Nothing is imported before it is used: `__init__.pyi` lists the public names and the modules they come from.
"""

from importlib import import_module
from typing import Any

from lazy_loader import attach_stub

from .registration import register_when_imported
from .version import HF_FEEDBACK_VERSION as __version__

_import_name, __dir__, __all__ = attach_stub(__name__, __file__)
__all__ += ["__version__"]

register_when_imported()


def __getattr__(name: str) -> Any:
    if name in __all__:  # in all threads in one order, so that none finds an Auto class without ours
        import_module("transformers.models.auto.modeling_auto")
    return _import_name(name)
