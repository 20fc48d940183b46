"""The pipeline for token classification, which reads the label of a word at the same piece as training."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, TokenClassificationPipeline

from .words import FILLER, labelled_pieces, space_before_words, split_words


class FeedbackTokenClassificationPipeline(TokenClassificationPipeline):
    """`pipeline("token-classification", …)` for models whose labels stand at one piece of each word (`label_piece`).

    A text is split at spaces and punctuation; with `is_split_into_words=True` the words are those that are given.
    `aggregation_strategy="simple"` joins the words of an entity; without it, there is an answer for every word.

    Raises:
        ValueError: `aggregation_strategy` chooses pieces itself, or the tokenizer does not tell words apart.
    """

    tokenizer: PreTrainedTokenizerBase  # type: ignore[assignment]  # there always is one

    # as in transformers, whose own pipeline does not have the signatures of its base class

    def _sanitize_parameters(self, *args: Any, **kwargs: Any) -> tuple[dict, dict, dict]:
        strategy = getattr(kwargs.get("aggregation_strategy"), "value", kwargs.get("aggregation_strategy"))
        if strategy not in (None, "none", "simple"):
            raise ValueError(
                f"`aggregation_strategy` must be 'none' or 'simple', got {strategy!r}: which piece of a word has its "
                "label is an option of the model (`label_piece`); leave it out for words, or use 'simple' for entities."
            )
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"`tokenizer` must know the word of each token, got the slow {type(self.tokenizer).__name__}; use a "
                "fast one."
            )
        return super()._sanitize_parameters(*args, **kwargs)

    def preprocess(  # type: ignore[override]
        self, sentence: str | list[str], offset_mapping: Any = None, **params: Any
    ) -> Iterator[dict]:
        """As in transformers; the tokenizer is given a text word by word, as in training."""
        if isinstance(sentence, str):
            text, spans = sentence, split_words(sentence)
        else:
            text, spans = _join_words(sentence, params["delimiter"])
        params = {**params, "is_split_into_words": True, "delimiter": ""}
        space = space_before_words(self.tokenizer)
        words = [space + text[start:end] for start, end in spans] or [FILLER]
        for i, inputs in enumerate(super().preprocess(words, offset_mapping, **params)):
            word_ids = inputs["word_ids"] if spans else [None] * len(inputs["word_ids"])
            yield {**inputs, "sentence": None if i else text, "word_ids": word_ids, "word_to_chars_map": spans}

    def gather_pre_entities(  # type: ignore[override]
        self, sentence: str, input_ids: Any, scores: Any, *args: Any, word_ids: Any, word_to_chars_map: Any, **_: Any
    ) -> list[dict]:
        """As in transformers, with one entry for every word instead of one for every piece."""
        padding = [None] * (len(scores) - len(word_ids))  # of a batch
        words = [*padding, *word_ids] if self.tokenizer.padding_side == "left" else [*word_ids, *padding]
        labelled = labelled_pieces(words, self.model.config.label_piece)
        entries = []
        for index, (word, has_label) in enumerate(zip(words, labelled, strict=True)):
            if has_label:
                start, end = word_to_chars_map[word]
                text = sentence[start:end]
                entries.append({"word": text, "scores": scores[index], "start": start, "end": end, "index": index})
        return entries

    def postprocess(self, all_outputs: Any, *args: Any, **kwargs: Any) -> list[dict]:  # type: ignore[override]
        """As in transformers; the words of an entity are as they stand in the text."""
        text, entities = all_outputs[0]["sentence"], super().postprocess(all_outputs, *args, **kwargs)
        return [{**entity, "word": text[entity["start"] : entity["end"]]} for entity in entities]


def _join_words(words: Sequence[str], delimiter: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of words, and where each of them stands in it."""
    spans: list[tuple[int, int]] = []
    for word in words:
        start = spans[-1][1] + len(delimiter) if spans else 0
        spans.append((start, start + len(word)))
    return delimiter.join(words), spans
