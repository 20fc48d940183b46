"""The task of language models: blocks of tokens, labels, perplexity, accumulated batches, streams and continuations."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import character_tokenizer, tiny_tokenizer
from datasets import Dataset
from families import randomize_messages, tiny_config
from peft import LoraConfig, get_peft_model
from transformers import EvalPrediction, GenerationConfig, LlamaForCausalLM

from hf_feedback import FeedbackForCausalLM
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments, peft_options
from hf_feedback.training.data.streams import stream_rows
from hf_feedback.training.parameters.model_parts import parts_of
from hf_feedback.training.tasks.causal_lm import NextTokenCollator, TextBlocks, next_token_losses
from hf_feedback.training.tasks.plain_texts import perplexity_of_losses

TEXTS = ["where is my red fan", "late", "", "it broke again, and nobody answers", "ok", "thank you. it came"]
END = 0


def backbone():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config("llama", pad_token_id=None, eos_token_id=END, initializer_range=0.3))


def model_of(**options):
    options = {"num_iterations": 2, "feedback_rank": 4, **options}
    return randomize_messages(FeedbackForCausalLM.from_backbone(backbone(), **options))


def tokenizer_of():
    tokenizer = character_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    return tokenizer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """Folder of a tiny decoder."""
    folder = tmp_path_factory.mktemp("decoder")
    backbone().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def run(decoder, folder, *more, train=None):
    """The script on a few texts; its exit status."""
    examples = str(Path(__file__).parent.parent / "examples")
    sys.path[:0] = [] if examples in sys.path else [examples]
    file = folder / "train.txt"
    file.write_text("\n".join(TEXTS))
    common = "--feedback-rank 4 --disable-tqdm True --bf16 False --per-device-train-batch-size 2 --max-length 24"
    command = ["--model", str(decoder), "--train-file", train or str(file), "--output-dir", str(folder / "out")]
    return import_module("run_causal_lm").main([*command, *common.split(), *more])


# Parts


def test_pretrained_heads_are_part_of_the_backbone():
    """Tied to the embeddings or not, no head is new: it has the backbone's rate, and adapters do not copy it."""
    model = model_of()
    assert parts_of(model)["backbone.lm_head.weight"] == "backbone"
    assert "head" not in parts_of(model).values()
    assert peft_options(model)["modules_to_save"] == ["feedback"]
    tuned = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **peft_options(model)))
    text = torch.tensor([[5, 6, 7]])
    tokens = tuned.generate(input_ids=text, max_new_tokens=4, do_sample=False, pad_token_id=END)
    assert torch.equal(tokens[:, 3:], tuned(tokens).logits[:, 2:-1].argmax(-1))


# Rows


@pytest.mark.parametrize("length", [2, 7, 24, 1000])
def test_blocks_are_all_tokens_with_an_end_after_each_text(length):
    tokenizer = tokenizer_of()
    expected = [token for text in TEXTS if text for token in [*tokenizer(text)["input_ids"], END]]
    rows = list(TextBlocks(tokenizer, length).rows_of(TEXTS))
    joined = np.concatenate(rows).tolist()
    assert {len(row) for row in rows[:-1]} <= {length}
    assert joined == expected[: len(joined)]
    assert len(expected) - len(joined) == (1 if len(expected) % length == 1 else 0)  # nothing to predict in the last


def test_rows_without_packing_are_texts():
    tokenizer = tokenizer_of()
    rows = [row.tolist() for row in TextBlocks(tokenizer, 10, packing=False).rows_of(TEXTS)]
    assert rows == [[*tokenizer(text)["input_ids"], END][:10] for text in TEXTS if text]


def test_end_that_a_tokenizer_adds_is_not_doubled():
    tokenizer = tiny_tokenizer()  # [CLS] … [SEP]
    tokenizer.eos_token = "[SEP]"
    (row,) = TextBlocks(tokenizer, 10, packing=False).rows_of(["where is my parcel"])
    assert row.tolist() == tokenizer("where is my parcel")["input_ids"]


def test_labels_are_all_tokens_but_the_first_and_padding():
    batch = NextTokenCollator(tokenizer_of())([{"input_ids": [5, 6, END]}, {"input_ids": [7, END]}])
    assert batch["input_ids"].tolist() == [[5, 6, END], [7, END, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, END], [-100, END, -100]]  # an end is a label, padding is none


# Loss and perplexity


def test_loss_of_tokens_is_that_of_the_model():
    model, batch = model_of(), NextTokenCollator(tokenizer_of())([{"input_ids": [5, 6, END]}, {"input_ids": [7, END]}])
    with torch.no_grad():
        output = model(**batch)
    losses = next_token_losses(output.logits, batch["labels"])
    assert losses.shape == (2, 3)
    probabilities = output.logits.log_softmax(-1)
    by_hand = [-probabilities[0, 0, 6], -probabilities[0, 1, END], -probabilities[1, 0, END]]
    torch.testing.assert_close(losses[batch["labels"] != -100], torch.stack(by_hand))
    torch.testing.assert_close(output.loss, torch.stack(by_hand).mean())
    found = perplexity_of_losses(EvalPrediction(losses.numpy(), batch["labels"].numpy()))
    assert found["perplexity"] == pytest.approx(output.loss.exp().item(), rel=1e-5)


@pytest.mark.parametrize("packing", ["true", "false"])
def test_perplexity_weighs_every_token_the_same(packing, decoder, tmp_path):
    """Whatever batches the texts come in; by hand, one text at a time."""
    more = ["--validation-file", str(tmp_path / "train.txt"), "--max-steps", "1", "--packing", packing]
    assert run(decoder, tmp_path, *more, "--per-device-eval-batch-size", "2") == 0
    found = json.loads((tmp_path / "out" / "all_results.json").read_text())
    model, total, count = FeedbackForCausalLM.from_pretrained(tmp_path / "out"), 0.0, 0
    for row in TextBlocks(tokenizer_of(), 24, packing == "true").rows_of(TEXTS):
        ids = torch.from_numpy(row).long()[None]
        with torch.no_grad():
            total += model(ids, labels=ids).loss.item() * (len(row) - 1)
        count += len(row) - 1
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-4)
    assert found["eval_perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)


@pytest.mark.parametrize("accumulated", [2, 4])
def test_accumulated_batches_are_one_large_one(accumulated, tmp_path):
    """Rows of different lengths: the loss that is logged, and the weights after two steps."""
    rows = list(TextBlocks(tokenizer_of(), 48, packing=False).rows_of(2 * TEXTS[:1] + TEXTS[1:2] * 3 + TEXTS[3:]))
    data = Dataset.from_dict({"input_ids": rows})

    def train(batch_size, steps):
        model = model_of()
        args = FeedbackTrainingArguments(
            tmp_path / f"{steps}",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=2,
            logging_steps=1,
            optim="sgd",
            learning_rate=0.1,
            report_to=[],
            use_cpu=True,
        )
        trainer = FeedbackTrainer(model, args, train_dataset=data, data_collator=NextTokenCollator(tokenizer_of()))
        trainer.train()
        return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    (whole, losses), (parts, losses_of_parts) = train(8, 1), train(8 // accumulated, accumulated)
    assert losses_of_parts == pytest.approx(losses, rel=1e-4)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_label_smoothing_is_refused(tmp_path):
    args = FeedbackTrainingArguments(tmp_path, label_smoothing_factor=0.1, report_to=[], use_cpu=True)
    with pytest.raises(ValueError, match=r"`label_smoothing_factor`=0\.1 would compare"):
        FeedbackTrainer(model_of(), args)


# Streams

ROWS = [{"text": 'it\'s "late", they say'}, {"text": "where is my red fan"}, {"text": "ok"}]
FILES = {
    "train.txt": "\n\n".join(row["text"] for row in ROWS),
    "train.jsonl": "\n".join(json.dumps(row) for row in ROWS),
    "train.csv": 'text\n"it\'s ""late"", they say"\nwhere is my red fan\nok\n',
    "train.tsv": "text\n" + "\n".join(row["text"] for row in ROWS),
}


@pytest.mark.parametrize("name", [*FILES, "train.parquet"])
def test_streamed_rows_are_those_of_the_file(name, tmp_path):
    file = tmp_path / name
    if name in FILES:
        file.write_text(FILES[name])
    else:
        Dataset.from_list(ROWS).to_parquet(file)
    assert list(stream_rows(str(file))) == ROWS


BAD_STREAMS = {
    "train.json": ("[]", "`streaming`: .*train.json must end in one of .txt"),
    "cells.csv": ("text\na,b\n", r"cells.csv: row 1 cannot be read \(the number of its cells differs"),
    "text.jsonl": ('{"text": "a"}\n"b"\n', "text.jsonl: row 2 cannot be read .it must be an object"),
    "broken.jsonl": ("{", "broken.jsonl: row 1 cannot be read"),
    "latin.txt": (b"ok\n\xe9t\xe9\n", "latin.txt: line 2 is not UTF-8 .byte 4"),
    "damaged.parquet": ("PAR1", "damaged.parquet: row 1 cannot be read"),
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_rows_that_cannot_be_streamed_are_named(name, tmp_path):
    content, words = BAD_STREAMS[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        list(stream_rows(str(tmp_path / name)))


@pytest.mark.parametrize("packing", ["true", "false"])
def test_streamed_training_is_that_of_the_whole_file(packing, decoder, tmp_path):
    """In the order of the file, two batches of all rows: the model is the same."""
    more = ["--max-steps", "2", "--packing", packing, "--per-device-train-batch-size", "100"]
    for name, streamed in (("whole", []), ("streamed", ["--streaming"])):
        (tmp_path / name).mkdir()
        assert run(decoder, tmp_path / name, *more, *streamed) == 0
    whole, streamed = (
        FeedbackForCausalLM.from_pretrained(tmp_path / name / "out").state_dict() for name in ("whole", "streamed")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(streamed[name], tensor, rtol=0, atol=1e-5)
    assert "streamed texts from train.txt" in (tmp_path / "streamed" / "out" / "README.md").read_text()


# TRL


@pytest.mark.parametrize("packing", [False, True])
def test_sft_trainer_of_trl(packing, tmp_path):
    """Its loss is that of the model with all iterations, and every parameter is trained."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = model_of(), tokenizer_of()
    model.backbone.config.output_hidden_states = True
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    texts = [text for text in TEXTS if text]
    with torch.no_grad():
        rows = [torch.tensor([*tokenizer(text)["input_ids"], END])[None] for text in texts]
        losses = [model(row, labels=row).loss * (row.shape[1] - 1) for row in rows]
        plain = [model(row, labels=row, num_iterations=1).loss * (row.shape[1] - 1) for row in rows]
    count = sum(row.shape[1] - 1 for row in rows)
    args = SFTConfig(
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=len(texts),
        max_length=48,
        packing=packing,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    data = Dataset.from_dict({"text": texts})
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert sum(plain).item() / count != pytest.approx(sum(losses).item() / count, rel=1e-2)
    if not packing:
        assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(losses).item() / count, rel=1e-4)
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


# Continuations


def test_prompts_are_continued_as_one_by_one():
    model, tokenizer = model_of(), tokenizer_of()
    prompts = ["where is", "a", "it came, but"] * 4
    found = [answer["continuation"] for answer in model.predict(prompts, tokenizer, max_new_tokens=6)]
    for prompt, continuation in zip(prompts[:3], found, strict=False):
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=END, eos_token_id=END)
        assert continuation == tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found[:3] == found[3:6] == found[9:]
    for other in (dict(num_beams=3, num_return_sequences=2), dict(return_dict_in_generate=True)):
        model.generation_config = GenerationConfig(**other)
        again = model.predict(prompts, tokenizer, max_new_tokens=6)
        assert [answer["continuation"] for answer in again] == found


def test_script_writes_continuations(decoder, tmp_path):
    (tmp_path / "prompts.csv").write_text("id,text\n1,where is\n2,\n3,late\n")
    more = ["--max-steps", "1", "--prompt-file", str(tmp_path / "prompts.csv"), "--max-new-tokens", "3"]
    assert run(decoder, tmp_path, *more) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "continuations.jsonl").read_text().splitlines()]
    prompts = ["where is", "late"]
    model = FeedbackForCausalLM.from_pretrained(tmp_path / "out")
    assert lines == [
        {"prompt": prompt, **answer}
        for prompt, answer in zip(prompts, model.predict(prompts, tokenizer_of(), max_new_tokens=3), strict=True)
    ]


# Bad input

BAD = {
    "one token": (["--max-length", "1"], "`max_length` must be an integer of at least 2"),
    "no new token": (["--max-new-tokens", "0"], "`max_new_tokens` must be an integer of at least 1"),
    "no prompts": (["--prompt-file", "/no/such.txt"], "/no/such.txt"),
    "endless stream": (["--streaming"], "`streaming` reads a file whose length is not known"),
    "no full batch": (
        ["--dataloader-drop-last", "--per-device-train-batch-size", "99999"],
        "do not fill one of 99999: nothing would",
    ),
    "another column": (["--text-column", "review"], "there is no column 'review'"),
    "future": (["--feedback-future", "true"], "`feedback_future=True`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, decoder, tmp_path, capsys):
    more, words = BAD[case]
    assert run(decoder, tmp_path, *more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_tokenizer_without_an_end_is_refused(decoder, tmp_path, capsys):
    backbone().save_pretrained(tmp_path / "model")
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    assert run(tmp_path / "model", tmp_path) == 2
    assert "has no end-of-text token (`eos_token`)" in capsys.readouterr().err


def test_file_without_words_is_refused(decoder, tmp_path, capsys):
    (tmp_path / "empty.csv").write_text('text\n" "\n')
    assert run(decoder, tmp_path, train=str(tmp_path / "empty.csv")) == 2
    assert "column 'text' holds no words" in capsys.readouterr().err


@pytest.mark.parametrize("states", [False, True])
def test_answers_of_iterations_are_of_the_tokens_to_keep(states):
    """Asked for hidden states too, each iteration has its answers from its own pass."""
    model, ids = model_of(num_iterations=3).eval(), torch.randint(4, 90, (2, 7))
    options = {"output_iterations": True, "output_hidden_states": states}
    for keep in (1, torch.tensor([2, 5])):
        with torch.no_grad():
            whole, kept = (model(ids, logits_to_keep=one, **options).iteration_logits for one in (0, keep))
        at = slice(-1, None) if isinstance(keep, int) else keep
        for one, other in zip(whole, kept, strict=True):
            torch.testing.assert_close(other, one[:, at])
