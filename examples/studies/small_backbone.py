"""Writes a small backbone with random weights, and a tokenizer whose vocabulary is the words of data sets.

    python examples/studies/small_backbone.py FOLDER --data DIR/babi_qa1 DIR/babi_qa15 --layers 2 --hidden-size 64

The backbone is a ModernBERT in which every layer sees the whole text. For tasks that small networks learn from scratch,
where a pretrained backbone would take hours.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast, set_seed

from hf_feedback.training.data.files import read_file

SPECIAL_TOKENS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def read_texts(folders: Sequence[Path]) -> Iterator[str]:
    """The training texts of data sets."""
    for folder in folders:
        yield from read_file(str(next(iter(sorted(folder.glob("train.*"))))))["text"]


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """One token for each word or sign of the texts, in lower case; texts and pairs with [CLS] and [SEP]."""
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, WordLevelTrainer(special_tokens=SPECIAL_TOKENS, show_progress=False))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def make_backbone(vocab_size: int, hidden_size: int, num_layers: int) -> ModernBertModel:
    """A ModernBERT with weights drawn at random."""
    config = ModernBertConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers, num_attention_heads=4, layer_types=["full_attention"] * num_layers,
        initializer_range=0.05, max_position_embeddings=4096,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1000.0}},
        pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return ModernBertModel(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the backbone is written")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with a training file of texts")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=64)
    args = parser.parse_args()
    set_seed(0)
    tokenizer = make_tokenizer(read_texts(args.data))
    make_backbone(len(tokenizer), args.hidden_size, args.layers).save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"{args.folder}: {args.layers} layers of {args.hidden_size} features, {len(tokenizer)} tokens.")


if __name__ == "__main__":
    main()
