"""Predictors of classes for texts, words, choices, images and recordings, and of values for texts."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, PreTrainedModel
from transformers.audio_utils import load_audio
from transformers.image_utils import load_image

from .label_options import predicts_values
from .predictor import Answer, Predictor, TokenPredictor, check_examples, is_pair, is_text
from .validation import Keywords
from .words import FILLER, labelled_pieces, space_before_words, space_between_texts, split_words


def probabilities_of(logits: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Probabilities of classes by name, to six digits."""
    return {name: round(p, 6) for name, p in zip(names, logits.softmax(-1).tolist(), strict=True)}


def label_names(model: PreTrainedModel) -> list[str]:
    """The names of a model's labels in the order of their numbers."""
    by_number = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    return [by_number[number] for number in sorted(by_number)]


def classify(logits: torch.Tensor, names: Sequence[str], problem_type: str | None) -> Answer:
    """Converts the logits of a text, image or recording to a prediction.

    Args:
        logits: `(C,)`.
        names: names of the labels.
        problem_type: as in transformers; one label is a value to predict by default.

    Returns:
        Its `value`, its `label` with `score` and `probabilities`, or its `labels` with `probabilities`.

    Example:

    ```python
    >>> classify(torch.zeros(2), ["late", "lost"], None)
    {'label': 'late', 'score': 0.5, 'probabilities': {'late': 0.5, 'lost': 0.5}}

    ```
    """
    if predicts_values(problem_type, len(names)):
        return {"value": float(logits[0])} if len(logits) == 1 else {"values": logits.tolist()}
    if problem_type == "multi_label_classification":
        probabilities = {name: round(p, 6) for name, p in zip(names, logits.sigmoid().tolist(), strict=True)}
        chosen = [name for name, logit in zip(names, logits.tolist(), strict=True) if logit > 0]
        return {"labels": chosen, "probabilities": probabilities}
    probabilities = probabilities_of(logits, names)
    label = names[int(logits.argmax())]
    return {"label": label, "score": probabilities[label], "probabilities": probabilities}


class TextPredictor(TokenPredictor):
    """Reads texts, or pairs of texts; answers with `label`, `score` and `probabilities`, with `labels` and
    `probabilities`, or with a `value`."""

    def check(self, examples: Sequence[Any]) -> None:
        pairs = len(examples) > 0 and is_pair(examples[0])
        what = "a pair of texts, as the first one is" if pairs else "a text"
        check_examples(examples, is_pair if pairs else is_text, what)

    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        texts: list[Sequence[str]] = [examples] if is_text(examples[0]) else list(zip(*examples, strict=True))
        return [[row] for row in self.encode_texts(*texts)]

    def decode(self, example: Any, rows: list[Keywords], outputs: list[torch.Tensor]) -> Answer:
        return classify(outputs[0], label_names(self.model), self.model.config.problem_type)


class TagPredictor(TokenPredictor):
    """Reads lists of words, or texts that it splits at spaces and punctuation; answers with `words`, their `tags` and
    `scores`: `None` for words beyond `max_length`, and for those without a token, such as spaces."""

    def words_of(self, example: Any) -> list[str]:
        """The words of an example."""
        return [example[a:b] for a, b in split_words(example)] if isinstance(example, str) else list(example)

    def check(self, examples: Sequence[Any]) -> None:
        def is_right(example: Any) -> bool:
            return is_text(example) or (isinstance(example, list | tuple) and all(map(is_text, example)))

        check_examples(examples, is_right, "a text or a list of words")

    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        space = space_before_words(self.tokenizer)
        words = [[space + word for word in self.words_of(example)] or [FILLER] for example in examples]
        encoding = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.max_length)
        self.count_cut(encoding)
        names = list(encoding)
        return [
            [{**{name: encoding[name][i] for name in names}, "word_ids": encoding.word_ids(i)}]
            for i in range(len(examples))
        ]

    def decode(self, example: Any, rows: list[Keywords], outputs: list[torch.Tensor]) -> Answer:
        words, (row,), names = self.words_of(example), rows, label_names(self.model)
        probabilities = self.without_padding(row, outputs[0]).softmax(-1)
        tags: list[str | None] = [None] * len(words)
        scores: list[float | None] = [None] * len(words)
        labelled = labelled_pieces(row["word_ids"], self.model.config.label_piece)
        for word, has_label, of_piece in zip(row["word_ids"], labelled, probabilities, strict=True):
            if has_label and word < len(words):
                tags[word], scores[word] = names[int(of_piece.argmax())], round(float(of_piece.max()), 6)
        return {"words": words, "tags": tags, "scores": scores}


class ChoicePredictor(TokenPredictor):
    """Reads a text and its possible continuations, by `context` and `choices`; returns the number of the best `choice`,
    its `text`, its `score` and the `probabilities` of all."""

    def check(self, examples: Sequence[Any]) -> None:
        def is_right(example: Any) -> bool:
            choices = example.get("choices") if isinstance(example, Mapping) and "context" in example else None
            if not isinstance(choices, list | tuple) or len(choices) < 2:
                return False
            return all(isinstance(text, str) for text in (example["context"], *choices))

        check_examples(examples, is_right, "a `context` with at least two `choices`")

    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        space = space_between_texts(self.tokenizer)

        def encode_choices(context: str, choices: Sequence[str]) -> list[Keywords]:
            return self.encode_texts([context] * len(choices), [space + text for text in choices])

        return [[{"choices": encode_choices(example["context"], example["choices"])}] for example in examples]

    def group_of(self, row: Keywords) -> int:
        return len(row["choices"])

    def length_of(self, row: Keywords) -> int:
        return max(len(choice["input_ids"]) for choice in row["choices"])

    def collate(self, rows: list[Keywords]) -> Keywords:
        flat = super().collate([choice for row in rows for choice in row["choices"]])
        return {name: tensor.unflatten(0, (len(rows), -1)) for name, tensor in flat.items()}

    def decode(self, example: Any, rows: list[Keywords], outputs: list[torch.Tensor]) -> Answer:
        best = int(outputs[0].argmax())
        probabilities = [round(p, 6) for p in outputs[0].softmax(-1).tolist()]
        text = example["choices"][best]
        return {"choice": best, "text": text, "score": probabilities[best], "probabilities": probabilities}


class ImagePredictor(Predictor):
    """Reads images, or names of their files; answers as `TextPredictor` does."""

    auto_class: ClassVar[Any] = AutoImageProcessor

    def check(self, examples: Sequence[Any]) -> None:
        check_examples(examples, lambda example: True, "an image or recording, or the name of its file")

    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        images = [load_image(example).convert("RGB") for example in examples]
        return [[{"pixel_values": self.processor(image, return_tensors="pt")["pixel_values"][0]}] for image in images]

    def collate(self, rows: list[Keywords]) -> Keywords:
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}

    def decode(self, example: Any, rows: list[Keywords], outputs: list[torch.Tensor]) -> Answer:
        return classify(outputs[0], label_names(self.model), self.model.config.problem_type)


class AudioPredictor(ImagePredictor):
    """Reads recordings: waves `(samples,)` at the sampling rate of the feature extractor, or names of files; answers
    as `TextPredictor` does."""

    auto_class: ClassVar[Any] = AutoFeatureExtractor

    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        rate = self.processor.sampling_rate
        waves = [load_audio(example, rate) if isinstance(example, str) else np.asarray(example) for example in examples]
        features = [self.processor(wave, sampling_rate=rate) for wave in waves]
        return [[{name: values[0] for name, values in feature.items()}] for feature in features]

    def length_of(self, row: Keywords) -> int:
        return len(next(iter(row.values())))

    def collate(self, rows: list[Keywords]) -> Keywords:
        return dict(self.processor.pad(rows, padding=True, return_tensors="pt"))
