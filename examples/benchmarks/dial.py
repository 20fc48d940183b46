"""Is K a dial after training? Validation accuracy at K = 1 … 6 of models that were trained at K = 3.

    python examples/benchmarks/dial.py --data DIR/trec50 --model BACKBONE --work FOLDER --seeds 0 1 2

Trained with the loss of the last iteration or of all of them (`iteration_loss`), and with K the same in every step or
drawn anew for each (`train_iterations`): six ways, with the same texts, rates and steps. The last epoch is kept, for
choosing one would favour the K it was chosen at. Finished runs stay in FOLDER/dial.jsonl, the curves in
FOLDER/dial.png.
"""

import argparse
from pathlib import Path
from typing import Any

from common import Finished, fine_tuning_parser, fit, interval, measure, read
from matplotlib import pyplot
from transformers import AutoTokenizer, set_seed

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.markdown_tables import markdown_table

WAYS = [(loss, drawn) for drawn in ("fixed", "uniform") for loss in ("last", "uniform", "linear")]
KS = range(1, 7)


def run(loss: str, drawn: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one way and measures it at every K."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data, labels = read(args.data, tokenizer, args.max_length)
    set_seed(seed)
    model = FeedbackForSequenceClassification.from_backbone(
        args.model, num_labels=labels.num_labels, num_iterations=3, iteration_loss=loss,
        backbone_layers=args.backbone_layers,
    )  # fmt: skip
    trainer = fit(
        model, data, labels, tokenizer, seed, ["accuracy"],
        num_train_epochs=args.num_train_epochs, learning_rate=args.learning_rate, feedback_lr=args.feedback_lr,
        train_iterations=drawn, min_train_iterations=1, max_train_iterations=5 if drawn == "uniform" else None,
        eval_strategy="no", save_strategy="no", load_best_model_at_end=False,
    )  # fmt: skip
    found = {}
    for k in KS:
        model.set_num_iterations(k)
        found[f"K = {k}"] = 100 * measure(trainer, data, ["validation"], ["accuracy"])["validation_accuracy"]
    return found


def plot(curves: dict[str, list[float]], file: Path) -> None:
    """The mean accuracies over K."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, values in curves.items():
        axes.plot(list(KS), values, marker="o", linestyle="--" if "drawn" in name else "-", label=name)
    axes.set(xlabel="K after training", ylabel="validation accuracy (%)", title="Trained at K = 3")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main() -> None:
    options = fine_tuning_parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = options.parse_args()
    finished, found = Finished(args.work / "dial.jsonl"), {}
    names = ("model", "backbone_layers", "num_train_epochs", "learning_rate", "feedback_lr", "max_length")
    for seed in args.seeds:
        for loss, drawn in WAYS:
            settings = dict(loss=loss, drawn=drawn, data=args.data.name, seed=seed)
            settings |= {name: getattr(args, name) for name in names}
            found[loss, drawn, seed] = finished.find(
                settings, "K = 6", lambda loss=loss, drawn=drawn, seed=seed: run(loss, drawn, seed, args)
            )
    rows, curves = [], {}
    for loss, drawn in WAYS:
        name = f"{loss} loss, K {'fixed' if drawn == 'fixed' else 'drawn from 1 to 5'}"
        values = {k: [found[loss, drawn, seed][f"K = {k}"] for seed in args.seeds] for k in KS}
        rows.append((name, *(interval(values[k]) for k in KS)))
        curves[name] = [sum(values[k]) / len(values[k]) for k in KS]
    print(markdown_table((f"{args.data.name}, validation (%)", *(f"K = {k}" for k in KS)), rows))
    plot(curves, args.work / "dial.png")


if __name__ == "__main__":
    main()
