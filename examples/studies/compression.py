"""Fewer layers, read again with feedback: accuracy against parameters and FLOPs, beside dropping layers alone.

    python examples/studies/compression.py --model MINILM --data DIR/sst2 DIR/trec50 --work FOLDER --kept all "0 2 4"

For each choice of layers: the backbone with these layers alone, as it is (`plain`), for as long as feedback costs, with
the layers repeated but no messages, and with feedback. `all` is the whole backbone. Fixed before it is run: sizes,
epochs, seeds, and the rates that every arm chooses from on validation.
"""

from study import compare_all, comparison_parser, finish, kept_layers

OPTIONS = (
    "--num-train-epochs 3 --per-device-train-batch-size 16 --weight-decay 0.01 --backbone-lr 1e-4 --learning-rate 1e-3 "
    "--rate-factors 0.5 1 2 --arms plain plain-longer loop-only"
).split()


def main() -> None:
    made = comparison_parser(__doc__)
    made.add_argument("--kept", nargs="+", default=["0 2 4", "all"], help="numbers of the layers that are kept, or all")
    args = made.parse_args()
    finish(
        [
            compare_all(kept.replace(" ", "-"), args, [*OPTIONS, *kept_layers([] if kept == "all" else kept.split())])
            for kept in args.kept
        ]
    )


if __name__ == "__main__":
    main()
