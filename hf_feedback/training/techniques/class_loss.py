"""Cross-entropy with class weights, focal loss and label smoothing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..data.labels import IGNORED, SINGLE_LABEL


def balanced_class_weights(labels: Iterable[int] | Mapping[int, int], num_classes: int) -> list[float]:
    """Returns weights that balance the classes, `N / (C · N_c)`; 1 for a class without examples.

    Args:
        labels: class numbers, or counts by class number; −100 is ignored.
        num_classes: number of classes; C counts those with examples.

    Raises:
        ValueError: there is no label.

    Example:

    ```python
    >>> balanced_class_weights([0, 0, 0, 1], num_classes=2)
    [0.6666666666666666, 2.0]

    ```
    """
    counts = Counter(labels if isinstance(labels, Mapping) else map(int, labels))
    counts.pop(IGNORED, None)
    if not counts:
        raise ValueError("`class_weights`='balanced' counts labels, and the training data have none; give a list.")
    total = sum(counts.values())
    return [total / (len(counts) * counts[c]) if c in counts else 1.0 for c in range(num_classes)]


class ClassLoss:
    """`−Σ_c q_c w_c (1 − p_c)^γ log p_c`, the mean over all labels; `model.loss_function = ClassLoss(…)`.

    q is the target: 1 for the label, or `(1 − ε) + ε/C` and `ε/C` for the other classes. The mean is over the number of
    labels, not over their weights as in torch, so that accumulated batches add up to one. The model uses it at every
    iteration that `iteration_loss` counts.

    Args:
        class_weights: w, one per class; all 1 by default.
        focal_gamma: γ; above 0, examples that are right already count less.
        label_smoothing: ε.

    Raises:
        ValueError: an option has a value that is not allowed.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv 1708.02002, equation 5; Szegedy et al. 2016,
    Rethinking the Inception Architecture, arXiv 1512.00567, section 7, for smoothing.

    Example:

    ```python
    >>> import torch
    >>> logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    >>> round(ClassLoss(class_weights=[1.0, 3.0])(logits, labels).item(), 4)  # (1 + 3)/2 · log 2
    1.3863

    ```
    """

    def __init__(
        self, class_weights: Sequence[float] | None = None, focal_gamma: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        if class_weights is not None and not all(0 <= weight < float("inf") for weight in class_weights):
            raise ValueError(f"`class_weights` must be numbers of at least 0, got {list(class_weights)!r}.")
        if not 0 <= focal_gamma < float("inf"):
            raise ValueError(f"`focal_gamma` must be a number of at least 0, got {focal_gamma!r}.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing_factor` must be at least 0 and below 1, got {label_smoothing!r}.")
        self.class_weights = None if class_weights is None else list(class_weights)
        self.focal_gamma, self.label_smoothing = focal_gamma, label_smoothing

    def __call__(
        self, logits: torch.Tensor | None = None, labels: torch.Tensor | None = None, config: Any = None, **others: Any
    ) -> torch.Tensor:
        """The loss, as the `loss_function` of a transformers model.

        Args:
            logits: `(…, C)`; some models call them `pooled_logits`.
            labels: `(…)`, class numbers, −100 where there is none.
            config: config of the model, whose `problem_type` is set as by the losses of transformers.
            **others: arguments of other losses.
        """
        scores = others["pooled_logits"] if logits is None else logits
        if labels is None or labels.is_floating_point():
            raise ValueError(
                "`class_weights`, `focal_gamma` and `label_smoothing_factor` need class numbers as labels."
            )
        if "pooled_logits" in others and config.problem_type is None:
            config.problem_type = SINGLE_LABEL
        classes = scores.shape[-1]
        scores, labels = scores.reshape(-1, classes), labels.reshape(-1).to(scores.device)
        scores, labels = scores[labels != IGNORED], labels[labels != IGNORED]
        log_p = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)
        target = F.one_hot(labels, classes).to(log_p) * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.class_weights is not None:
            target = target * log_p.new_tensor(self.class_weights)
        if self.focal_gamma:
            target = target * (-log_p.expm1()).clamp_min(1e-12) ** self.focal_gamma
        return -(target * log_p).sum() / max(1, len(labels))
