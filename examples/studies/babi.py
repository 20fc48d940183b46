"""Stories whose questions take one fact or several: read by a shallow backbone, and strewn over a long text.

    python examples/studies/babi.py --model MINILM --work FOLDER --data DIR/babi_qa1 DIR/babi_qa2 DIR/babi_qa3 \
        --between DIR/ag_news

The texts are those of bAbI (Weston et al. 2015, arXiv 1502.05698), which end in their question. Two parts:

- depth: the first layers of a backbone, as many as --layers says, with the recipe "depth-on-demand". Beside it: the
  same layers once, for as many epochs, and for as much compute; repeated without messages; copied, with weights of
  their own.
- segments: with --between, sentences of another data set, of the same split, stand between the facts (as in BABILong,
  Kuratov et al. 2024, arXiv 2406.10149), so that a text has at most --tokens. It is cut into segments of
  --segment-length, the question in every one. `feedback_type="memory"`, also with the question in the first segment
  alone, beside segments without messages, a transformer over them, the start of the text, and the whole text where the
  backbone reads it.

Fixed before it is run: sizes, epochs, seeds, and the rates that every arm chooses from on validation. Options that are
not listed here go to `hf-feedback compare` and replace those of both parts, such as `--arms`, `--rate-factors`,
`--learning-rate`, `--backbone-lr` and `--bf16`.
"""

import argparse
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets import Dataset
from study import Files, compare_all, comparison_parser, finish, kept_layers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_feedback.training.data.files import read_file

RATES = "--weight-decay 0.01 --backbone-lr 2e-4 --learning-rate 1e-3 --rate-factors 0.5 1 2".split()
DEPTH = (
    "--recipe depth-on-demand --iteration-loss uniform --num-train-epochs 5 --per-device-train-batch-size 32 "
    "--arms plain plain-longer loop-only duplicated"
).split()
SEGMENTS = [
    *"--feedback-span segment --feedback-type memory --num-iterations 3 --feedback-rank none".split(),
    *"--segment-summaries 4 --segment-pooling attention --segment-overlap 0 --segment-pair every".split(),
    *"--iteration-loss uniform --num-train-epochs 5 --per-device-train-batch-size 16".split(),
    *"--arms windows tobert truncated whole".split(),
    *("--variants", '{"memory": {}, "memory-question-first": {"segment_pair": "first"}}'),
]
QUESTION_TOKENS = 16  # the most that a question of bAbI has, with [CLS] and two [SEP]


def sentences_of(text: str) -> list[str]:
    """The sentences of a text."""
    return re.split(r"(?<=[.!?])\s+", text.strip())


def write_pairs(files: Files, folder: Path) -> Files:
    """Writes the files with the question as the first text of a pair and the story as the second."""
    for split, file in files.items():
        rows = read_file(file).to_list()
        for row in rows:
            *facts, row["text"] = sentences_of(row["text"])
            row["text_pair"] = " ".join(facts)
        files[split] = str(folder / f"{split}-pairs.jsonl")
        Dataset.from_list(rows).to_json(files[split])
    return files


def write_long(files: Files, folder: Path, between: Path, num_tokens: int, tokenizer: PreTrainedTokenizerBase) -> Files:
    """Writes the files with sentences of another data set between the facts.

    Args:
        files: by split.
        folder: where the new ones go.
        between: folder of the other data set.
        num_tokens: most tokens of a text, question and special tokens included; facts that are more stay all.
        tokenizer: counts them.
    """
    for split, file in write_pairs(files, folder).items():
        generator, rows = random.Random(split), read_file(file).to_list()
        other = read_file(str(next(iter(sorted(between.glob(f"{split}.*"))))))["text"]
        for row in rows:
            facts, strewn = sentences_of(row["text_pair"]), []
            left = num_tokens - len(tokenizer(row["text"], row["text_pair"])["input_ids"])
            while True:
                sentence = generator.choice(sentences_of(generator.choice(other)))
                left -= len(tokenizer(sentence, add_special_tokens=False)["input_ids"])
                if left < 0:
                    break
                strewn.append(sentence)
            places = sorted(generator.sample(range(len(facts) + len(strewn)), len(facts)))
            for place, fact in zip(places, facts, strict=True):
                strewn.insert(place, fact)
            row["text_pair"] = " ".join(strewn)
        files[split] = str(folder / f"{split}-{num_tokens}.jsonl")
        Dataset.from_list(rows).to_json(files[split])
    return files


def study_segments(args: argparse.Namespace, others: Sequence[str]) -> list[int]:
    """Texts of all lengths, with other options of `hf-feedback compare`; returns the exit statuses."""
    prepare, tokenizer, statuses = write_pairs, AutoTokenizer.from_pretrained(args.model), []
    for num_tokens in args.tokens:
        args.max_length = num_tokens
        if args.between is not None:
            prepare = partial(write_long, between=args.between, num_tokens=num_tokens, tokenizer=tokenizer)
        most = -(-num_tokens // (args.segment_length - QUESTION_TOKENS))
        sizes = ["--segment-length", str(args.segment_length), "--max-segments", str(most)]
        options = [*RATES, *SEGMENTS, *sizes, *kept_layers(range(max(args.layers))), *others]
        statuses.append(compare_all(f"{num_tokens} tokens", args, options, prepare))
    return statuses


def main() -> None:
    made = comparison_parser(__doc__, train=2000, max_length=256)
    made.add_argument("--parts", nargs="+", choices=["depth", "segments"], default=["depth", "segments"])
    made.add_argument(
        "--layers", type=int, nargs="+", default=[2, 3], help="number of first layers that are kept; segments: the most"
    )
    made.add_argument(
        "--between", type=Path, help="segments: folder of texts for sentences between the facts, such as DIR/ag_news"
    )
    made.add_argument("--tokens", type=int, nargs="+", default=[360, 1024, 2048, 4096], help="segments: of a text")
    made.add_argument("--segment-length", type=int, default=64, help="segments: tokens of each")
    args, others = made.parse_known_args()
    statuses = []
    if "depth" in args.parts:
        for count in args.layers:
            options = [*RATES, *DEPTH, *kept_layers(range(count)), *others]
            statuses.append(compare_all(f"{count} layers", args, options, write_pairs))
    finish(statuses + (study_segments(args, others) if "segments" in args.parts else []))


if __name__ == "__main__":
    main()
