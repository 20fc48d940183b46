"""A task in words, for model cards and messages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskCard:
    """The part of the model card that describes a task.

    Args:
        pipeline_tag: name of the task on the Hub.
        model: name of a model of the task.
        usage: Python lines that use a model, with `{model}` in place of its folder or hub id.
        inputs: name of the model's inputs, in the plural.
        dataset_type: type of a data set of such inputs that has no id on the Hub.
        pooled: whether a new head reads one pooled vector per input.
        labelled: whether the labels are classes with names.
    """

    pipeline_tag: str
    model: str
    usage: str
    inputs: str = "texts"
    dataset_type: str = "text"
    pooled: bool = False
    labelled: bool = False

    @property
    def model_with_article(self) -> str:
        """`a text classifier`, `an image classifier`."""
        return f"{'an' if self.model[0] in 'aeiou' else 'a'} {self.model}"


def pipeline_usage(task: str, call: str, options: str = "") -> str:
    """Returns the Python lines that use a model through a pipeline.

    Args:
        task: name of the pipeline.
        call: line that uses `answer`, the pipeline.
        options: further arguments of `pipeline`, after a comma.

    Example:

    ```python
    >>> print(pipeline_usage("fill-mask", 'answer("Where is my [MASK]?")').format(model="me/model"))
    from transformers import pipeline
    <BLANKLINE>
    answer = pipeline("fill-mask", "me/model", trust_remote_code=True)
    answer("Where is my [MASK]?")

    ```
    """
    return f"""from transformers import pipeline

answer = pipeline("{task}", "{{model}}", trust_remote_code=True{options})
{call}"""
