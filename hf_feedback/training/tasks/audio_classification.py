"""Audio classification."""

from dataclasses import dataclass

import numpy as np
from datasets import Audio, Dataset
from transformers import AutoConfig, AutoFeatureExtractor, DataCollatorWithPadding, SequenceFeatureExtractor

from ...modeling_feedback import FeedbackForAudioClassification
from ...validation import option
from ..data.media import read_bytes, read_wave
from ..data.splits import Row
from ..starting_model.model_setup import make_model
from ..starting_model.model_sources import hub_options
from ..task_card import TaskCard, pipeline_usage
from .media_classification import MediaArguments, MediaClassification
from .task import Collator, Model

CALL = """rate = answer.feature_extractor.sampling_rate
print(answer({{"raw": np.zeros(rate, dtype=np.float32), "sampling_rate": rate}}))  # or the name of a file"""


@dataclass
class AudioArguments(MediaArguments):
    """Audio column and length."""

    audio_column: str = option("audio", "Column of the recordings.")
    max_seconds: float = option(20.0, "Seconds to which recordings are truncated.")


class AudioClassification(MediaClassification[AudioArguments]):
    """Classifies recordings.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import ModelArguments
    >>> task = AudioClassification(ModelArguments(model="facebook/wav2vec2-base"), AudioArguments("tones/train"))
    >>> task.data_args.max_seconds
    20.0

    ```
    """

    data_arguments = AudioArguments
    model_class = FeedbackForAudioClassification
    card = TaskCard(
        pipeline_tag="audio-classification",
        model="audio classifier",
        usage="import numpy as np\n" + pipeline_usage("audio-classification", CALL),
        inputs="recordings",
        dataset_type="audio",
        pooled=True,
        labelled=True,
    )
    column_option = "audio_column"
    evaluation_options = ("max_seconds",)
    processor: SequenceFeatureExtractor
    media_name = "recordings"
    folder_type = "audiofolder"
    feature = Audio(decode=False)

    def check_options(self) -> None:
        if not self.data_args.max_seconds > 0:
            raise ValueError(f"`max_seconds` must be above 0, got {self.data_args.max_seconds}.")

    @staticmethod
    def decode(content: bytes) -> np.ndarray:
        return read_wave(content)

    def load(self) -> tuple[SequenceFeatureExtractor, Model]:
        args, hub = self.model_args, hub_options(self.model_args.revision)
        extractor = AutoFeatureExtractor.from_pretrained(args.model, **hub)
        backbone = AutoConfig.from_pretrained(args.model, **hub)
        # layers that are skipped at random cannot be looped
        overrides = {"layerdrop": 0.0} if getattr(backbone, "layerdrop", 0.0) else None
        return extractor, make_model(self.model_class, args, self.labels, overrides)

    def encode_media(self, data: Dataset) -> Dataset:
        """Encodes recordings with the feature extractor."""
        column, rate = self.media_column, self.processor.sampling_rate
        longest = max(1, int(self.data_args.max_seconds * rate))

        def extract(row: Row) -> Row:
            wave = read_wave(read_bytes(row[column]), rate)[:longest]
            features = self.processor(wave, sampling_rate=rate)  # type: ignore[operator]
            return {name: values[0] for name, values in features.items()}

        workers = self.encoder.num_workers
        return data.map(extract, remove_columns=data.column_names, num_proc=workers, load_from_cache_file=False)

    def make_collator(self) -> Collator:
        return DataCollatorWithPadding(self.processor)  # type: ignore[arg-type]  # pads as a tokenizer does
