"""Predictors of words: an answer in a text, the words at its masks, or its continuation."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from .max_length import num_learned_positions
from .predictor import Answer, TokenPredictor, check_examples, is_pair, is_text
from .validation import Keywords, check_integer
from .windows import best_span, encode_windows, span_scores


class SpanPredictor(TokenPredictor):
    """Reads a question and a text, as a pair or by `question` and `context`; answers with the `answer`, its `start` and
    `end` in the text and its `score`, the probability among all spans. Long texts are read in windows.

    Args:
        model, processor, batch_size: as in `Predictor`.
        max_length: tokens of a window, the question included; by default 384, or as many as the model reads.
        stride: tokens that windows share; by default a third of a window.
        max_answer_length: maximum number of tokens of an answer.
        may_be_empty: whether a question may have no answer, which is then an empty text; by default whether one of
            training had none, if that is known.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any = None,
        batch_size: int = 32,
        max_length: int | None = None,
        stride: int | None = None,
        max_answer_length: int = 30,
        may_be_empty: bool | None = None,
    ) -> None:
        super().__init__(model, processor, batch_size, max_length)
        if max_length is None and not getattr(model, "cutting", None):
            self.max_length = min(384, self.max_length)
        check_integer("max_answer_length", max_answer_length, 1, "tokens of an answer")
        self.stride = self.max_length // 3 if stride is None else stride
        check_integer("stride", self.stride, 0, "tokens that windows share")
        if may_be_empty is None:
            trained = getattr(model.config, "data_options", None)
            may_be_empty = isinstance(trained, dict) and trained.get("may_be_empty") is True
        self.max_answer_length, self.may_be_empty = max_answer_length, may_be_empty

    @property
    def padding_side(self) -> str:
        return "right"  # as in training

    def question_of(self, example: Any) -> tuple[str, str]:
        """The question and the text of an example."""
        return (example["question"], example["context"]) if isinstance(example, Mapping) else tuple(example)

    def check(self, examples: Sequence[Any]) -> None:
        def is_right(example: Any) -> bool:
            if isinstance(example, Mapping):
                return all(isinstance(example.get(name), str) for name in ("question", "context"))
            return is_pair(example)

        check_examples(examples, is_right, "a question and its text, as a pair or by `question` and `context`")

    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        sizes = self.max_length, self.stride
        questions = map(self.question_of, examples)
        return [encode_windows(self.tokenizer, *pair, *sizes, f"`examples`: {pair[0]!r:.60}") for pair in questions]

    def run(self, batch: Keywords) -> Sequence[torch.Tensor]:
        output = self.model(**batch)
        return list(torch.stack((output.start_logits, output.end_logits), -1).float().cpu())

    def decode(self, example: Any, rows: list[Keywords], outputs: list[torch.Tensor]) -> Answer:
        _, context = self.question_of(example)
        best, totals, null = (-np.inf, 0, 0), [], np.inf
        for row, output in zip(rows, outputs, strict=True):
            logits = self.without_padding(row, output).numpy()
            scores = span_scores(logits[:, 0], logits[:, 1], row["offsets"], self.max_answer_length)
            totals.append(log_total(torch.as_tensor(scores).flatten()))
            score, first, last = best_span(scores)
            if score > best[0]:
                best = (score, row["offsets"][first][0], row["offsets"][last][1])
            cls = self.tokenizer.cls_token_id
            null = min(null, logits[row["input_ids"].index(cls) if cls in row["input_ids"] else 0].sum())
        score, start, end = best
        if self.may_be_empty:
            totals.append(null)
            if null > score:
                score, start, end = null, 0, 0
        answer = context[start:end].strip()  # tokens may begin with a space
        start = context.index(answer, start)
        probability = float(np.exp(score - log_total(torch.tensor(totals)))) if np.isfinite(score) else 0.0
        return {"answer": answer, "score": round(probability, 6), "start": start, "end": start + len(answer)}


class MaskPredictor(TokenPredictor):
    """Reads texts with masks, written as the mask token of the tokenizer; answers with the most probable `tokens`,
    their `scores` and the `filled` text."""

    def check(self, examples: Sequence[Any]) -> None:
        check_examples(examples, is_text, "a text")

    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        rows, mask = self.encode_texts(examples), self.tokenizer.mask_token_id
        missing = next((i for i, row in enumerate(rows) if mask not in row["input_ids"]), None)
        if missing is not None:
            raise ValueError(
                f"`examples`: {examples[missing]!r:.60} has no mask among its first {self.max_length} tokens; write "
                f"{self.tokenizer.mask_token} where a word is to be filled in."
            )
        return [[row] for row in rows]

    def run(self, batch: Keywords) -> Sequence[torch.Tensor]:
        """Returns the score and the number of the best token at each mask of a row."""
        masked = batch["input_ids"] == self.tokenizer.mask_token_id
        scores, tokens = self.model(**batch).logits[masked].float().softmax(-1).max(-1)
        best = torch.stack((scores.cpu().double(), tokens.cpu().double()), -1)
        return best.split(masked.sum(-1).tolist())

    def decode(self, example: Any, rows: list[Keywords], outputs: list[torch.Tensor]) -> Answer:
        ids = torch.tensor(rows[0]["input_ids"])
        scores, tokens = outputs[0][:, 0], outputs[0][:, 1].long()
        ids[ids == self.tokenizer.mask_token_id] = tokens
        return {
            "tokens": [str(self.tokenizer.decode([token])).strip() for token in tokens.tolist()],
            "scores": [round(score, 6) for score in scores.tolist()],
            "filled": self.tokenizer.decode(ids, skip_special_tokens=True),
        }


class ContinuationPredictor(TokenPredictor):
    """Reads texts; answers with the greedy `continuation` of each, the most probable next token each time, up to an end
    token of the model's generation config or the tokenizer.

    Args:
        model, processor, batch_size: as in `Predictor`.
        max_length: tokens to which texts are truncated, of which the last ones are kept; by default as in training, or
            as many as learned positions leave to the continuation.
        max_new_tokens: maximum number of tokens of a continuation.

    Raises:
        ValueError: the model has not learned positions for so many tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any = None,
        batch_size: int = 32,
        max_length: int | None = None,
        max_new_tokens: int = 40,
    ) -> None:
        super().__init__(model, processor, batch_size, max_length)
        check_integer("max_new_tokens", max_new_tokens, 1, "tokens of a continuation")
        learned = num_learned_positions(cast(Any, model).backbone)
        if learned is not None:
            longest = learned - max_new_tokens + 1  # the last token is not read
            shortest = self.tokenizer.num_special_tokens_to_add() + 1
            if longest < max(shortest, max_length or 0):
                raise ValueError(
                    f"`max_new_tokens`={max_new_tokens} leaves {max(longest, 0)} of the {learned} positions that the "
                    f"model has learned for a prompt, which takes {max(shortest, max_length or 0)}; lower it"
                    f"{'' if max_length is None else ', or `max_length`'}."
                )
            self.max_length = min(self.max_length, longest)
        self.max_new_tokens = max_new_tokens
        if self.tokenizer.truncation_side != "left":
            self.tokenizer = copy.deepcopy(self.tokenizer)
            self.tokenizer.truncation_side = "left"

    @property
    def padding_side(self) -> str:
        return "left"  # a continuation stands at the right

    @property
    def end_tokens(self) -> list[int] | None:
        """The tokens that end a text: those of the model's generation config and that of the tokenizer, by which
        training ends one."""
        of_model = cast(Any, self.model).generation_config.eos_token_id
        tokens = [*(of_model if isinstance(of_model, list) else [of_model]), self.tokenizer.eos_token_id]
        return sorted({token for token in tokens if token is not None}) or None

    def check(self, examples: Sequence[Any]) -> None:
        check_examples(examples, lambda example: is_text(example) and bool(example.strip()), "a text that has words")

    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        return [[row] for row in self.encode_texts(examples, return_token_type_ids=False)]

    def run(self, batch: Keywords) -> Sequence[torch.Tensor]:
        tokens = cast(Any, self.model).generate(
            **batch,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            return_dict_in_generate=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.end_tokens,
        )
        return list(tokens[:, batch["input_ids"].shape[1] :].cpu())

    def decode(self, example: Any, rows: list[Keywords], outputs: list[torch.Tensor]) -> Answer:
        return {"continuation": self.tokenizer.decode(outputs[0], skip_special_tokens=True)}


def log_total(scores: torch.Tensor) -> float:
    """The logarithm of the sum of the exponentials of scores, −∞ of none."""
    return float(scores.logsumexp(0)) if len(scores) else -math.inf
