"""Registration of the configs and models with the Auto classes of transformers, when these are first imported."""

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from wrapt import register_post_import_hook

# Modules of the Auto classes → those of this package whose classes they must know.
MODULES_TO_REGISTER = {
    "transformers.models.auto.configuration_auto": ("configuration_feedback", "configuration_fnn"),
    "transformers.models.auto.modeling_auto": ("modeling_feedback", "modeling_fnn"),
}
# What our modules import of transformers, which must be complete; some of these import Auto classes on their way.
NEEDED_MODULES = tuple(
    f"transformers.{name}"
    for name in (
        "activations cache_utils configuration_utils dynamic_module_utils generation image_processing_utils "
        "initialization modeling_outputs modeling_utils pipelines processing_utils tokenization_utils_base "
        "models.auto.auto_factory models.auto.feature_extraction_auto models.auto.image_processing_auto "
        "models.auto.processing_auto models.auto.tokenization_auto models.encoder_decoder.configuration_encoder_decoder"
    ).split()
)
PACKAGE_MODULES = tuple(f"{__package__}.{module.name}" for module in iter_modules([str(Path(__file__).parent)]))
WATCHED_MODULES = (*PACKAGE_MODULES, *NEEDED_MODULES, *MODULES_TO_REGISTER)

_imported: set[str] = set()


def register_when_imported() -> None:
    """Registers all classes before an Auto class can be asked for them, whichever module is imported first."""
    for name in WATCHED_MODULES:
        register_post_import_hook(_after_import, name)


def _after_import(module: ModuleType) -> None:
    """Registers what the Auto classes that are imported must know, unless it is being imported itself: its modules, and
    those that they need, come back here when they are complete."""
    _imported.add(module.__name__)
    if any(name in sys.modules and name not in _imported for name in WATCHED_MODULES):
        return
    for auto_module, names in MODULES_TO_REGISTER.items():
        if auto_module in _imported:
            for name in names:
                _register(name)


@cache
def _register(name: str) -> None:
    """Registers the classes of one module with the Auto classes that the `AUTO_MAP` of their config names."""
    import transformers  # takes a second, which the help of the commands does not have

    module = import_module(f".{name}", __package__)
    auto_map: dict[str, str] = import_module(f".configuration_{name.partition('_')[2]}", __package__).AUTO_MAP
    for auto_name, path in auto_map.items():
        if path.startswith(f"{name}."):
            package_class, auto_class = getattr(module, path.partition(".")[2]), getattr(transformers, auto_name)
            key = package_class.model_type if auto_name == "AutoConfig" else package_class.config_class
            auto_class.register(key, package_class, exist_ok=True)
            package_class.register_for_auto_class(auto_name)
