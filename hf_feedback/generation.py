"""Text generation with K iterations: the cache of a call, and the methods that `generate` calls."""

import copy
from typing import Any, NoReturn, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin, GenerationMode
from transformers.masking_utils import find_packed_sequence_indices
from transformers.utils import logging

from .cache_probe import probe_cache
from .configuration_feedback import FeedbackConfig
from .forward_context import COMMON_ARGUMENTS, ForwardContext, tokens_of
from .gradients import GRADIENTS
from .iteration_cache import IterationCache, check_cache_type, check_size, num_tokens
from .loop_runner import LoopResult
from .max_length import max_positions, num_learned_positions
from .modeling_base import FeedbackPreTrainedModel
from .validation import Keywords

logger = logging.get_logger(__name__)


class FeedbackGenerativeModel(FeedbackPreTrainedModel, GenerationMixin):
    """A feedback model over a causal language model, whose family says how the inputs of `generate` are prepared."""

    def __init__(self, config: FeedbackConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self.generation_config = cast(GenerationConfig, self.backbone.generation_config)
        self._is_stateful = self._language_model._is_stateful

    @property
    def _language_model(self) -> Any:
        """The backbone, typed as a model that generates, for which transformers has no type."""
        return self.backbone

    def probe_backbone(self) -> None:
        super().probe_backbone()
        if self.layout.is_probed:
            self.layout = probe_cache(self.backbone, self.layout)

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, with K iterations for every token; all but custom decoding methods and drafts of the
        first layers (`assistant_early_exit`) work.

        With `use_cache=True`, the default, iterations have keys and values of their own, and the result is that of the
        whole text without a cache; with `feedback_shift=1` it is that of one pass a token, which a call without a cache
        does not take. `num_iterations` may be given for one call.

        Args:
            inputs: `(B, T)` token ids of the prompts, padded on the left.
            generation_config: as in transformers; the model's own by default.
            *args, **kwargs: as in transformers.

        Raises:
            ValueError: the prompt is empty, or padded without a mask that shows it; the cache does not fit; an option
                is for plain models.
        """
        config = generation_config or self.generation_config
        self._check_num_iterations_of_generate(config, kwargs)
        if kwargs.get("output_iterations"):
            raise ValueError("`output_iterations=True` is for `forward`; call the model on the generated text for it.")
        early_exit = kwargs.get("assistant_early_exit", getattr(config, "assistant_early_exit", None))
        if early_exit is not None:
            raise ValueError(
                f"`assistant_early_exit`={early_exit!r} drafts tokens with the first layers alone, which feedback from "
                "higher ones goes into; leave it out, or draft with `assistant_model` or `prompt_lookup_num_tokens`."
            )
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        if isinstance(prompt, torch.Tensor) and kwargs.get("inputs_embeds") is None:
            self._check_prompt(prompt, config, kwargs)
        return cast(Any, super()).generate(inputs, generation_config, *args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused; `generate_batch` of transformers and its other ways to batch continuously begin with it.

        Raises:
            ValueError: always: texts share one cache there, which has no keys and values of further iterations.
        """
        raise ValueError(
            "`generate_batch`: continuous batching has one cache for all texts, without the keys and values of further "
            f"iterations, and a {type(self).__name__} cannot use it; call `generate` with a padded batch."
        )

    def _check_num_iterations_of_generate(self, config: GenerationConfig, kwargs: Keywords) -> None:
        """Raises `ValueError` where K is given for one call that runs more than this model on the prompt."""
        num_iterations = kwargs.get("num_iterations")
        if num_iterations is None:
            return
        guidance = kwargs.get("guidance_scale", config.guidance_scale)
        causes = {
            "would go to the assistant too": kwargs.get("assistant_model") is not None,
            f"would not go to the calls without a prompt (`guidance_scale`={guidance!r})": guidance not in (None, 1),
        }
        for cause in (cause for cause, holds in causes.items() if holds):
            raise ValueError(
                f"`num_iterations`={num_iterations!r} {cause}; leave it out, and call `model.set_num_iterations(…)` "
                "before."
            )

    def _check_prompt(self, prompt: torch.Tensor, config: GenerationConfig, kwargs: Keywords) -> None:
        if prompt.shape[-1] == 0:
            raise ValueError(
                "`inputs`: the prompt is empty; give at least one token, such as the tokenizer's `bos_token_id`, or no "
                "`inputs` at all to start from that."
            )
        pad, eos = kwargs.get("pad_token_id", config.pad_token_id), kwargs.get("eos_token_id", config.eos_token_id)
        is_end = pad is not None and pad in (eos if isinstance(eos, list) else [eos])
        starts = (prompt[:, 0] == pad) if is_end and kwargs.get("attention_mask") is None else prompt.new_zeros(1)
        if starts.any() and not starts.all():  # where all do, it is the start of a text, as in GPT-2
            raise ValueError(
                f"`attention_mask` is missing: a prompt starts with token {pad}, which is both padding and the end of "
                "a text, so that padding cannot be told apart; pass the tokenizer's `attention_mask`."
            )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        num_iterations: int | None = None,
        **kwargs: Any,
    ) -> Keywords:
        """The inputs of the next call, as the backbone's family prepares them."""
        name = self.layout.cache_argument or "past_key_values"
        cache = kwargs.get(name)
        if cache is not None and not self.config.feedback_shift:
            kwargs[name] = copy.copy(cache)  # whose class and slots tell the family which mask to make
            kwargs[name].layers = cache.layers[: self.layout.num_layers]
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        prepared = self._language_model.prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, **kwargs
        )
        # some families pass on all that they were given
        inputs = {key: prepared[key] for key in prepared if key in self.layout.arguments or key in COMMON_ARGUMENTS}
        inputs.pop(name, None)
        reads_padding = self.feedback.mixes_tokens or self.config.feedback_shift or self.config.halting != "none"
        if cache is not None and reads_padding and inputs.get("attention_mask") is not attention_mask:
            text = tokens_of(inputs)
            size = (len(text), num_tokens(cache) + text.shape[1])
            all_real = torch.ones(size, dtype=torch.long, device=text.device)
            inputs["padding_mask"] = all_real if attention_mask is None else attention_mask
        return {**inputs, "past_key_values": cache, "num_iterations": num_iterations}

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: GenerationConfig,
        model_kwargs: Keywords,
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """The cache that the backbone's family uses, with the slots of further iterations."""
        if generation_config.use_cache and not self._supports_default_dynamic_cache():
            logger.warning_once(
                f"{type(self.backbone).__name__} has a cache of its own kind, of which iterations cannot have one "
                "each: the whole text is read for every token."
            )
            model_kwargs["use_cache"] = generation_config.use_cache = False
        self._language_model._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        cache = model_kwargs.get(self.layout.cache_argument or "past_key_values")
        num_iterations = self._choose_num_iterations(model_kwargs.get("num_iterations"))
        if self.config.feedback_shift and num_iterations > 1 and not isinstance(cache, Cache):
            logger.warning_once(
                f"`feedback_shift`=1 without a cache: the whole text is read {num_iterations} times for every token, "
                "which is another result than that of one pass a token, with a cache."
            )
        if isinstance(cache, Cache):
            beams = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            check_cache_type(cache)
            self._check_can_cache(
                cache, num_iterations, "`use_cache=False`, which reads the whole text for every token"
            )
            check_size(cache, max_cache_length, batch_size * beams)
            self._add_iterations(cache, num_iterations)

    def _supports_default_dynamic_cache(self) -> bool:  # type: ignore[override]
        """Whether the backbone's cache is made of slots for its layers, of which iterations can have their own."""
        return self.layout.cache_argument is not None

    def _take_cache(self, inputs: Keywords, num_iterations: int, halts: bool) -> tuple[Keywords, IterationCache | None]:
        """The inputs without a key–value cache, and that of the call, if there is one.

        Raises:
            ValueError: the backbone or the operator keeps nothing of earlier tokens, K is not that of the cache, or an
                option of training excludes it.
        """
        inputs = dict(inputs)
        cache, use_cache = inputs.pop("past_key_values", None), inputs.pop("use_cache", False)
        if "logits_to_keep" not in self.layout.arguments:  # `forward` keeps them
            inputs.pop("logits_to_keep", None)
        check_cache_type(cache)
        check_length(self.backbone, inputs, cache)
        _cut_masks(inputs, cache)
        # without a cache, tokens that stop keep their keys and values in one that is dropped after the call
        holds = halts and self.config.halting != "none" and not self.training and num_iterations > 1
        is_kept = cache is not None or use_cache
        if not is_kept and not holds:
            return inputs, None
        instead = "`use_cache=False`, which reads the whole text for every token" if is_kept else "`halting='none'`"
        self._check_can_cache(cache, num_iterations, instead)
        if not is_kept and self._packs_texts(inputs):
            raise ValueError(
                f"`halting`={self.config.halting!r} does not keep apart the texts that `position_ids` put into one "
                "row; give each text a row of its own, or set `model.config.halting = 'none'`."
            )
        self._check_mask(inputs.get("attention_mask"), inputs, cache)
        if cache is None:
            cache = DynamicCache(config=self.backbone.config.get_text_config(decoder=True))
        slots = self._add_iterations(cache, num_iterations, is_kept)
        if holds:
            slots.hold_stopped_tokens()
        return inputs, slots

    def _packs_texts(self, inputs: Keywords) -> bool:
        """Whether rows hold several texts, as transformers tells by positions that do not go on by one."""
        positions = inputs.get("position_ids")
        if positions is None or inputs.get("attention_mask") is not None or torch.compiler.is_compiling():
            return False
        positions = positions if positions.dim() == 2 else positions[0]
        return find_packed_sequence_indices(positions) is not None

    def _add_iterations(self, cache: Cache, num_iterations: int, is_kept: bool = True) -> IterationCache:
        """The slots of a cache for K iterations, or, with `feedback_shift`, for one pass and the states before."""
        one_pass = self.config.feedback_shift == 1 and num_iterations > 1
        return IterationCache(
            cache,
            self.layout.num_layers,
            self.layout.looped_range,
            num_iterations=1 if one_pass else num_iterations,
            num_message_slots=self.feedback.num_message_slots,
            num_state_slots=len(self.feedback.source_layers) if one_pass else 0,
            is_kept=is_kept,
        )

    def _check_can_cache(self, cache: object, num_iterations: int, instead: str) -> None:
        if not self._supports_default_dynamic_cache():
            raise ValueError(
                f"`use_cache=True`: {type(self.backbone).__name__} has a cache of its own kind, of which iterations "
                f"cannot have one each; use {instead}."
            )
        if num_iterations == 1:
            return
        if not self.feedback.can_generate:
            raise ValueError(
                f"`use_cache=True`: `feedback_type`={self.config.feedback_type!r} reads other tokens and keeps nothing "
                f"of them (`remembers_tokens`); use {instead}."
            )
        if getattr(cache, "offloading", False):
            raise ValueError(
                "`cache_implementation='offloaded'` loads one layer ahead, and not those of the next iteration; use "
                "'dynamic' or 'static'."
            )
        self._check_can_cache_in_training()

    def _check_can_cache_in_training(self) -> None:
        if not self.training:
            return
        gradient, penalty = self.config.gradient, self.config.jacobian_penalty
        causes = {
            f"`gradient`={gradient!r}": GRADIENTS[gradient].finds_fixed_point,
            f"`jacobian_penalty`={penalty!r}": penalty > 0,
            "activation checkpointing": self.is_activation_checkpointing,
        }
        if cause := next((name for name, holds in causes.items() if holds), None):
            raise ValueError(
                f"`use_cache=True` in training: {cause} runs iterations again, which would fill the cache again; use "
                "`use_cache=False`, or `model.eval()`."
            )

    def _check_mask(self, mask: object, inputs: Keywords, cache: Cache | None) -> None:
        """Raises `ValueError` where messages would read a mask that shows the tokens of this call alone."""
        if cache is None or not (self.feedback.mixes_tokens or self.config.feedback_shift):
            return
        if torch.compiler.is_compiling() or not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            return
        length = _length_with_past(inputs, cache)
        if mask.shape[1] < length:
            raise ValueError(
                f"`attention_mask` must show the tokens in the cache too, (batch, {length}), got {tuple(mask.shape)}."
            )

    def _collected(self, context: ForwardContext, result: LoopResult) -> Keywords:
        fields = super()._collected(context, result)
        if context.cache is not None and context.cache.is_kept:
            fields["past_key_values"] = context.cache.cache
        return fields


def _length_with_past(inputs: Keywords, cache: Cache | None) -> int:
    """The number of tokens that a call reads, those in the cache among them."""
    text = tokens_of(inputs)
    return (0 if cache is None else num_tokens(cache)) + cast(torch.Tensor, text).shape[1]


def _cut_masks(inputs: Keywords, cache: Cache | None) -> None:
    """Cuts masks that were made for tokens to come, too, to the tokens that there are."""
    for name in ("attention_mask", "padding_mask"):
        mask = inputs.get(name)
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not torch.compiler.is_compiling():
            inputs[name] = mask[:, : _length_with_past(inputs, cache)]


def check_length(backbone: PreTrainedModel, inputs: Keywords, past_key_values: Cache | None) -> None:
    """Checks that there are tokens, and no more than the backbone has positions for.

    Args:
        backbone: a causal language model.
        inputs: inputs of `forward`.
        past_key_values: its cache.

    Raises:
        ValueError: there are none, or more.
    """
    text = tokens_of(inputs)
    if torch.compiler.is_compiling() or text is None:
        return
    length = text.shape[1]
    if length == 0:
        raise ValueError("`input_ids`: there is no token to read; give at least one.")
    most = num_learned_positions(backbone)
    if most is None:
        return
    if inputs.get("position_ids") is None:  # some families count from the padding token on
        most = int(min(most, max_positions(backbone, backbone.config.get_text_config())))
    if (total := _length_with_past(inputs, past_key_values)) > most:
        raise ValueError(
            f"`input_ids`: {total} tokens, and {type(backbone).__name__} has learned {most} positions; shorten "
            "the prompt (the tokenizer's `truncation=True`), or lower `max_new_tokens`."
        )
