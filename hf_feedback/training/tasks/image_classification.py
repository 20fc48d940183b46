"""Image classification."""

from dataclasses import dataclass
from io import BytesIO

import torch
from datasets import Dataset, Image
from transformers import AutoImageProcessor, BaseImageProcessor
from transformers.utils import requires_backends

from ...modeling_feedback import FeedbackForImageClassification
from ...validation import option
from ..data.splits import Row
from ..starting_model.model_setup import make_model
from ..starting_model.model_sources import hub_options
from ..task_card import TaskCard, pipeline_usage
from .media_classification import MediaArguments, MediaClassification
from .task import Collator, Model

CALL = 'print(answer(Image.new("RGB", (32, 32))))  # or the name of a file'


@dataclass
class ImageArguments(MediaArguments):
    """Image column."""

    image_column: str = option("image", "Column of the images.")


class ImageCollator:
    """Collator that makes `pixel_values` of images with the processor.

    Args:
        processor: image processor of the model.
        column: column of the images.
    """

    def __init__(self, processor: BaseImageProcessor, column: str) -> None:
        self.processor, self.column = processor, column

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        pixels = self.processor([row[self.column] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


class ImageClassification(MediaClassification[ImageArguments]):
    """Classifies images.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import ModelArguments
    >>> task = ImageClassification(ModelArguments(model="google/vit-base-patch16-224"), ImageArguments("images/train"))
    >>> task.media_column
    'image'

    ```
    """

    data_arguments = ImageArguments
    model_class = FeedbackForImageClassification
    card = TaskCard(
        pipeline_tag="image-classification",
        model="image classifier",
        usage="from PIL import Image\n" + pipeline_usage("image-classification", CALL),
        inputs="images",
        dataset_type="image",
        pooled=True,
        labelled=True,
    )
    column_option = "image_column"
    processor: BaseImageProcessor
    media_name = "images"
    folder_type = "imagefolder"
    feature = Image(decode=False)
    keep_all_columns = True  # the collator makes the model's inputs from them

    def check_options(self) -> None:
        requires_backends(self, "vision")

    @staticmethod
    def decode(content: bytes) -> None:
        from PIL import Image as PILImage  # Pillow is an extra

        PILImage.open(BytesIO(content)).convert("RGB")  # `verify` accepts half of a file

    def load(self) -> tuple[BaseImageProcessor, Model]:
        args = self.model_args
        processor = AutoImageProcessor.from_pretrained(args.model, **hub_options(args.revision))
        return processor, make_model(self.model_class, args, self.labels)

    def encode_media(self, data: Dataset) -> Dataset:
        """Leaves images encoded until a batch needs them."""
        return data.select_columns([self.media_column]).cast_column(self.media_column, Image(mode="RGB"))

    def make_collator(self) -> Collator:
        return ImageCollator(self.processor, self.media_column)
