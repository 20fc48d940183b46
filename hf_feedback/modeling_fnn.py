"""The two feedback neural networks that are trained from scratch: over time, and over layers."""

import math
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import TransformersKwargs, can_return_tuple

from .activations import ACTIVATIONS
from .class_predictors import TextPredictor
from .configuration_fnn import AUTO_MAP, FNNConfig
from .fnn_layers import LayeredLayer, RecurrentLinear, TemporalLayer, sweep_upwards
from .gradients import GRADIENTS
from .modeling_outputs import FeedbackModelOutput, FeedbackTaskOutput, select_states
from .pooling import pool
from .predictor import PredictsMixin
from .solvers import Map, Solution, relative_residual
from .validation import MAX_ITERATIONS, Keywords, check_integer


class FNNPreTrainedModel(PredictsMixin, PreTrainedModel):
    """Base of both models: initialization, K, saving with the code."""

    config_class = FNNConfig
    config: FNNConfig
    base_model_prefix = "fnn"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RecurrentLinear):
            start = torch.empty_like(module.weight, dtype=torch.float32)  # there is no QR in half precision
            init.copy_(module.weight, nn.init.orthogonal_(start, module.gain).to(module.weight.dtype))
        elif isinstance(module, nn.Linear):  # keeps the variance of its input
            init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, tuple(ACTIVATIONS.values())):
            cast(Any, module).init_feedback_weights()
        else:
            super()._init_weights(module)

    def set_num_iterations(self, num_iterations: int) -> None:
        """Sets K for all further calls; it is saved with the model.

        Raises:
            ValueError: K is not an integer of at least 1.
        """
        self.config.set_checked(num_iterations=num_iterations)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder also carries the code, for `trust_remote_code=True`."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; misspelt options are refused."""
        for key in kwargs:
            if key not in FNNConfig.option_names():
                FNNConfig.refuse_misspelt(key)
        return super().from_pretrained(*args, **kwargs)

    def part_of(self, name: str) -> str:
        """The part that a parameter belongs to: `"embeddings"`, `"layer 0"`, …, `"feedback"` or `"head"`.

        Feedback is what reads the sweep before: V of the temporal network, U of the layered one.
        """
        if "embeddings." in name:
            return "embeddings"
        if "layers." not in name:
            return "head"
        feedback = ".V." if self.config.fnn_type == "temporal" else ".U."
        return "feedback" if feedback in name else f"layer {name.split('layers.')[1].split('.')[0]}"

    def feedback_summary(self) -> str:
        """The network in words: its equation, K and what its parts weigh."""
        counts: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            counts[self.part_of(name)] = counts.get(self.part_of(name), 0) + parameter.numel()
        until = "" if self.config.tolerance is None else f" or a residual of {self.config.tolerance:g}"
        lines = [f"{self.config.fnn_type} feedback network, {self.config.num_iterations} iterations{until}"]
        width = max(map(len, counts))
        return "\n".join([*lines, *(f"{part.ljust(width)}  {count:>12,}" for part, count in counts.items())])


class FNNModel(FNNPreTrainedModel):
    """A feedback neural network without a head: `(B, T)` token ids → hidden states after K sweeps.

    The layered network's equations know one vector an example and layer. Its `h^(0)` is the mean of the embeddings of
    the real tokens, which makes K = 1 a deep averaging network (Iyyer et al. 2015); with a network for every token and
    the mean taken at the end, words would never meet before the classifier. Its states are `(B, 1, d)`.

    Args:
        config: the options.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback import FNNConfig, FNNModel
    >>> model = FNNModel(FNNConfig(vocab_size=99, hidden_size=16, num_iterations=3))
    >>> model(torch.tensor([[5, 6, 7]])).last_hidden_state.shape
    torch.Size([1, 3, 16])

    ```
    """

    def __init__(self, config: FNNConfig) -> None:
        super().__init__(config)
        size, below = config.hidden_size, config.embedding_size or config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, below, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.embedding_dropout)
        if config.fnn_type == "temporal":
            layers: list[nn.Module] = [TemporalLayer(below, size, config.activation)]
        else:
            top = (config.num_layers or 1) - 1
            layers = [
                LayeredLayer(size if i else below, size, config.activation, is_top=i == top) for i in range(top + 1)
            ]
        self.layers = nn.ModuleList(layers)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        num_iterations: int | None = None,
        output_iterations: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> FeedbackModelOutput:
        """Sweeps K times, or until convergence.

        Args:
            input_ids, attention_mask: `(B, T)`; inputs_embeds: `(B, T, e)` instead of `input_ids`.
            num_iterations: K for this call; the config's by default.
            output_iterations: also return `residuals` and `iterations`.
            output_hidden_states: also return x and h, or `h^(0) … h^(L)`.
            **kwargs: what tokenizers and transformers pass besides; anything else is refused.
        """
        check_arguments(self, kwargs)
        x, real = self._embed(input_ids, attention_mask, inputs_embeds)
        solution, entry = self.solve(x, real, num_iterations, measure=output_iterations)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        fields: Keywords = statistics(solution) if output_iterations else {}
        if wants_states:
            fields["hidden_states"] = select_states((entry, *states_of(solution.state)), output_hidden_states)
        return FeedbackModelOutput(last_hidden_state=top_of(solution.state), **fields)

    def _embed(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x `(B, T, e)`, 0 at padding, and where it is real, `(B, T, 1)`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`, not both and not neither.")
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if x.dim() != 3 or x.shape[-1] != self.embeddings.embedding_dim:
            raise ValueError(
                f"`inputs_embeds` must have shape (batch, tokens, {self.embeddings.embedding_dim}), with the config's "
                f"`embedding_size`, and `input_ids` (batch, tokens); got embeddings of shape {tuple(x.shape)}."
            )
        if attention_mask is None:
            attention_mask = x.new_ones(x.shape[:2])
        if attention_mask.shape != x.shape[:2]:
            raise ValueError(
                f"`attention_mask` must have shape (batch, tokens), here {tuple(x.shape[:2])}, got "
                f"{tuple(attention_mask.shape)}."
            )
        real = (attention_mask != 0).unsqueeze(-1)
        return self.dropout(x).where(real, 0.0), real

    def solve(
        self,
        x: torch.Tensor,
        real: torch.Tensor,
        num_iterations: int | None = None,
        measure: bool = False,
        keep_states: bool = False,
    ) -> tuple[Solution, torch.Tensor]:
        """The sweeps, with the gradient that the config asks for, and the entry of the network: x or `h^(0)`.

        Args:
            x: `(B, T, e)`.
            real: `(B, T, 1)`, false at padding.
            num_iterations: K; the config's by default.
            measure: whether residuals are wanted where nothing stops by them.
            keep_states: whether the states after every sweep are wanted.
        """
        if not torch.compiler.is_compiling():
            self.config.check_options()  # options may have been set since the model was built
        config, steps = self.config, self.config.num_iterations if num_iterations is None else num_iterations
        check_integer("num_iterations", steps, 1, "in the first sweep nothing is fed back yet", MAX_ITERATIONS)
        f, start, entry = self.sweep_map(x, real)
        options: Keywords = dict(tolerance=config.tolerance, keep_states=keep_states)
        options["residual"] = relative_residual if measure or config.tolerance is not None else None
        gradient = GRADIENTS[config.gradient](config.gradient_iterations, config.tolerance, config.solver)
        return gradient.solve(f, start, steps, **options), entry

    def sweep_map(self, x: torch.Tensor, real: torch.Tensor) -> tuple[Map, Any, torch.Tensor]:
        """The map of one sweep, the state before the first (0), and the entry of the network."""
        if self.config.fnn_type == "temporal":
            layer: Any = self.layers[0]
            f = layer.parallel(x, real) if self.config.sweep == "parallel" else layer.sequential(x, real)
            return f, x.new_zeros((*x.shape[:2], layer.size)), x
        h_0 = pool(x, real.squeeze(-1), "mean").unsqueeze(1)
        zero = h_0.new_zeros((len(h_0), 1, self.config.hidden_size))
        return sweep_upwards(list(self.layers), h_0), (zero,) * len(self.layers), h_0

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = cast(nn.Embedding, value)


class FNNForSequenceClassification(FNNPreTrainedModel):
    """A feedback neural network with a classifier (or, with one label, a regressor) over the whole text.

    Shapes:
        labels: `(B,)` class numbers, `(B,)` or `(B, num_labels)` targets for regression, `(B, num_labels)` zeros and
            ones for several labels at once; logits: `(B, num_labels)`.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback import FNNConfig, FNNForSequenceClassification
    >>> config = FNNConfig(vocab_size=99, hidden_size=16, num_labels=3, num_iterations=50, tolerance=1e-4)
    >>> model = FNNForSequenceClassification(config)
    >>> output = model(torch.tensor([[5, 6, 7]]), output_iterations=True)
    >>> output.logits.shape, len(output.iteration_logits) == output.iterations.item()
    (torch.Size([1, 3]), True)

    ```
    """

    predictor = TextPredictor

    def __init__(self, config: FNNConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.fnn = FNNModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or {}))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_iterations: int | None = None,
        output_iterations: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> FeedbackTaskOutput:
        """Sweeps K times, or until convergence, and answers.

        Args:
            labels: targets, shape as in the class docstring.
            output_iterations: also return `iteration_logits`, `residuals` and `iterations`. Of the truncated and the
                implicit gradient, only the last answer has all of it.
            input_ids, attention_mask, inputs_embeds, num_iterations, output_hidden_states: as in `FNNModel.forward`.
        """
        check_arguments(self, kwargs)
        x, real = self.fnn._embed(input_ids, attention_mask, inputs_embeds)
        solution, entry = self.fnn.solve(x, real, num_iterations, output_iterations, keep_states=output_iterations)
        logits = self._head(solution.state, real)
        fields: Keywords = {}
        if output_iterations:
            earlier = [self._head(state, real) for state in solution.states[:-1]]
            fields = {**statistics(solution), "iteration_logits": (*earlier, logits)}
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            fields["hidden_states"] = select_states((entry, *states_of(solution.state)), output_hidden_states)
        loss = None if labels is None else self._loss(logits, labels)
        return FeedbackTaskOutput(loss=loss, logits=logits, **fields)

    def _head(self, state: Any, real: torch.Tensor) -> torch.Tensor:
        top = top_of(state)
        mask = real.squeeze(-1) if self.config.fnn_type == "temporal" else None
        return self.classifier(self.dropout(pool(top, mask, self.config.pooling)))

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        several = self.config.problem_type == "multi_label_classification"
        if several or self.config.num_labels == 1 or labels.is_floating_point():
            dtype = torch.promote_types(logits.dtype, torch.float32)  # half precision would round the targets
            logits, labels = logits.to(dtype), labels.to(dtype)
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)


def states_of(state: Any) -> tuple[torch.Tensor, ...]:
    """The states of all layers, from the lowest to the highest."""
    return (state,) if isinstance(state, torch.Tensor) else state


def top_of(state: Any) -> torch.Tensor:
    """The state of the top layer."""
    return states_of(state)[-1]


def statistics(solution: Solution) -> dict[str, torch.Tensor]:
    """`residuals` `(B, K − 1)` (the first sweep has no other to be compared with) and `iterations` `(B,)`."""
    return {"residuals": solution.residuals[:, 1:], "iterations": solution.iterations}


# Arguments that tokenizers, the Trainer and transformers pass, and that these networks ignore.
IGNORED_INPUTS = frozenset(TransformersKwargs.__annotations__) | {"token_type_ids", "position_ids", "output_attentions"}

ARGUMENTS = (
    *("input_ids", "attention_mask", "inputs_embeds", "labels"),
    *("num_iterations", "output_iterations", "output_hidden_states"),
)


def check_arguments(model: nn.Module, arguments: Keywords) -> None:
    """Refuses unknown arguments of a forward pass."""
    for key in arguments:
        if key not in IGNORED_INPUTS:
            near = get_close_matches(key, ARGUMENTS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "leave it out."
            raise TypeError(f"{type(model).__name__}.forward got an unexpected argument `{key}`; {hint}")
