"""Top-down feedback for pretrained transformers.

Nothing is imported before it is used: `__init__.pyi` lists the public names and the modules they come from.

The modules beside this one define the models. They stand in one folder because `save_pretrained` copies those that a
model needs into that of the weights, as the code that `trust_remote_code=True` loads. Those that use the models never
travel: `attaching`, `registration`, `cli`, `training/`, `prediction/`, `evaluation/` and `command_help/`. Where to find
what:

- configuration: `configuration_*`, checked by `option_checks` and `validation`; edges in `topology`, sets in `recipes`
- building and loading: `building`, `attaching`, `loading`, `feedback_checkpoint`, `stored_config`, `adapter_checks`
- the backbone: `backbone_layout`, `backbone_probe`, `layer_recorder`, `loop_record`
- the loop: `loop_runner`, `feedback_loop`, `one_pass`; fixed points in `solvers`, `gradients`, `stability`
- messages: `model_connections`, `feedback_connection` and the operators in `connections` and `segment_connections`
- halting: `halting`, `example_halting`, `token_halting`
- long texts: `cutting`, `segments`
- heads, losses and predictions: `modeling_base`, `modeling_feedback`, `task_traits`, `iteration_losses`, `predictor`
- generation: `generation`, `iteration_cache`
- networks from scratch, whose folders have code of their own: `modeling_fnn`, `fnn_layers`
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
