"""Options of the commands that read examples for a trained model: columns and preprocessing."""

from dataclasses import dataclass

from ..validation import option


@dataclass(kw_only=True)
class ColumnArguments:
    """Columns and text length (each task reads some of these)."""

    text_column: str | None = option(
        None, "Column of the texts (default: as in training, else a usual name such as text)."
    )
    text_pair_column: str | None = option(None, "Column of the second texts, for pairs.")
    tokens_column: str | None = option(None, "Column of the words to tag (default: tokens).")
    image_column: str | None = option(None, "Column of the images (default: image).")
    audio_column: str | None = option(None, "Column of the recordings (default: audio).")
    max_length: int | None = option(None, "Tokens to which texts are truncated (default: as in training).")


@dataclass(kw_only=True)
class LabelledColumnArguments(ColumnArguments):
    """Columns of labels."""

    label_column: str | None = option(
        None, "Column of the labels (default: as in training, else a usual name such as label)."
    )
    tags_column: str | None = option(None, "Column of the tags (default: tags).")


@dataclass(kw_only=True)
class PreprocessingArguments:
    """Preprocessing (each task reads some of these)."""

    stride: int | None = option(None, "Tokens by which windows of a text overlap (default: as in training).")
    max_answer_length: int | None = option(None, "Maximum number of tokens of an answer (default: as in training).")
    may_be_empty: bool | None = option(None, "Whether a question may have no answer (default: as in training).")
    max_seconds: float | None = option(None, "Seconds to which recordings are truncated (default: as in training).")
