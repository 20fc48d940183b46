"""Top-down feedback for pretrained transformers.

Nothing is imported before it is used: `__init__.pyi` lists the public names and the modules they come from.

The modules beside this one define the models. They stand in one folder because `save_pretrained` copies those that a
model needs into that of the weights, as the code that `trust_remote_code=True` loads. Those that use the models never
travel: `attaching`, `registration`, `cli`, `training/`, `prediction/`, `evaluation/` and `command_help/`. Where to find
what:

- configuration: `configuration_base`, `configuration_feedback`, checked by `option_checks` and `validation`; edges in
  `topology`, sets in `recipes`, labels in `label_options`; what a config file may hold in `stored_config`, what a built
  model keeps of it in `built_options`; `version`
- building and loading: `building`, `attaching`, `loading`, `feedback_checkpoint`, `backbone_fingerprint`, `gguf_files`,
  `operator_code`, `adapter_checks`, `whole_files`; the Auto classes in `registration`
- the backbone: `backbone_layout`, tried out by `backbone_probe` and `cache_probe` with `probe_inputs` and
  `evaluation_mode`; calls of its layers in `layer_recorder`, `loop_record`, `batch_rows`, `collected_states`
- the loop: `forward_context` (one call), `loop_runner`, `feedback_loop`, `iteration_trace`, `one_pass`, `switches`;
  fixed points in `solvers`, `gradients`, `stability`, with `precision` and `random_numbers`
- messages: `model_connections`, `feedback_connection` and the operators in `connections` and `segment_connections`,
  made of `stacked_linear` and `activations`
- halting: `halting`, `example_halting`, `token_halting`
- long texts: `cutting`, `segments`, `max_length`
- heads and losses: `modeling_base`, `modeling_feedback`, `modeling_outputs`, `task_traits`, `pooling`,
  `masked_lm_head`, `next_tokens`, `iteration_losses`, `extra_losses`, `unlabelled_passes`, `model_checks`,
  `summary`
- predictions: `predictor`, `class_predictors`, `passage_predictors`, `words`, `windows`,
  `token_classification_pipeline`
- generation: `generation`, `iteration_cache`
- networks from scratch, whose folders have code of their own: `configuration_fnn`, `modeling_fnn`, `fnn_layers`
- the commands: `cli`
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
