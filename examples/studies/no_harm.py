"""No harm: feedback with default options compared with plain fine-tuning and LoRA, on natural texts.

    python examples/studies/no_harm.py --model MINILM --backbone-layers 1 3 5 --work FOLDER \
        --data DIR/sst2 DIR/trec50 DIR/ag_news DIR/cola DIR/rte DIR/mrpc DIR/sms_spam DIR/tweeteval_emotion

For short texts and a bidirectional encoder, lower layers can read everything that feedback could carry. The question is
whether it costs accuracy: the expected verdict is "equivalent", within one point. The compute is reported too. Fixed
before it is run: sizes, epochs, seeds, and the rates that every arm chooses from.
"""

from study import add_backbone_layers, compare_all, comparison_parser, finish, kept_layers

SHARED = "--per-device-train-batch-size 16 --weight-decay 0.01 --margin 1".split()
REGIMES = {
    "full": "--num-train-epochs 3 --backbone-lr 1e-4 --learning-rate 1e-3 --rate-factors 0.5 1 2 --arms plain lora",
    "frozen": "--num-train-epochs 2 --learning-rate 1e-3 --rate-factors 1 3 10 --arms head-only lora --freeze backbone",
}


def main() -> None:
    made = comparison_parser(__doc__)
    add_backbone_layers(made)
    made.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    args = made.parse_args()
    layers = kept_layers(args.backbone_layers)
    finish([compare_all(name, args, [*SHARED, *layers, *REGIMES[name].split()]) for name in args.regimes])


if __name__ == "__main__":
    main()
