"""Later tokens for a decoder: tagging with attention messages from the top, compared with alternatives.

    python examples/data/get_smollm2.py runs/smollm2
    python examples/studies/later_tokens.py --model runs/smollm2 --data DIR/wnut17 DIR/btc DIR/anem --work FOLDER

A causal token is independent of later ones, whatever is trained below. The first layers of a pretrained decoder tag
words, labels at the last piece of each, embeddings frozen, in two regimes:

- full: everything else is trained. Feedback (`attention` messages, last layer to all lower ones, K = 2, later tokens
  allowed) beside plain fine-tuning, the same with the compute of feedback, the causal mask lifted, the text repeated.
- frozen: the backbone stays as it is. The same feedback beside LoRA of as many parameters: causal, with the mask
  lifted, with the text repeated; and the same messages bottom-up.

Fixed before it is run: sizes, epochs, seeds, and the rates that every arm chooses from on validation. Options that are
not listed here go to `hf-feedback compare` and replace those of the regimes, such as `--arms`, `--variants`,
`--rate-factors` and `--bf16`.
"""

from study import compare_all, comparison_parser, finish, kept_layers

FEEDBACK = "--feedback-type attention --num-iterations 2".split()
SHARED = (
    "--task token-classification --per-device-train-batch-size 8 --train-sampling-strategy group_by_length "
    "--weight-decay 0.01"
).split()
REGIMES = {
    "full": "--freeze embeddings --num-train-epochs 2 --backbone-lr 4e-4 --learning-rate 1e-3 --rate-factors 0.5 1 2 "
    "--arms plain plain-longer unmasked repeated".split(),
    "frozen": "--freeze backbone --num-train-epochs 2 --learning-rate 1e-3 --rate-factors 1 3 "
    "--arms lora lora+unmasked lora+repeated bottom-up".split(),
}


def main() -> None:
    made = comparison_parser(__doc__)
    made.add_argument("--layers", type=int, default=6, help="first layers of the backbone, which are kept")
    made.add_argument("--rank", type=int, default=64, help="of the messages")
    made.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    args, others = made.parse_known_args()
    model = ["--feedback-rank", str(args.rank), *kept_layers(range(args.layers))]
    finish([compare_all(name, args, [*SHARED, *FEEDBACK, *model, *REGIMES[name], *others]) for name in args.regimes])


if __name__ == "__main__":
    main()
