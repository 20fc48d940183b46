"""Writes the small sets of this folder that are made by rule: entities, questions, replies, shapes and tones.

    python examples/data/make_small_sets.py [FOLDER]

The same versions of Python and its libraries give the same sets. Validation texts come from templates or questions of
their own, with names and articles that training mostly lacks.
"""

import json
import math
import sys
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from small_set_texts import (
    ENTITY_TEMPLATES,
    FACTS,
    FILLERS,
    NAMES,
    OPENINGS,
    PRODUCTS,
    QUESTIONS,
    REPLY_TOPICS,
)

Row = dict[str, Any]
COUNTS = {"train": 360, "validation": 200}
SHAPES = ("circle", "square", "triangle", "cross")
TONES = ("rising", "falling", "steady", "beating")
SAMPLING_RATE, SECONDS = 4000, 0.5
SIDE, SCALE = 32, 4  # pixels; drawn larger by the factor, for smooth edges


def entity(split: str, random: Random) -> Row:
    """A message with its BIO tags."""
    tokens: list[str] = []
    tags: list[str] = []
    for word in random.choice(ENTITY_TEMPLATES[split]).split():
        kind = word.strip("{}")
        if word == kind:
            tokens.append(word)
            tags.append("O")
            continue
        name = random.choice(NAMES[kind][split]).format(number=random.randrange(1000, 99999)).split()
        tokens += name
        tags += [f"B-{kind}", *[f"I-{kind}"] * (len(name) - 1)]
    return {"tokens": tokens, "tags": tags}


def question(split: str, random: Random) -> Row:
    """A note of several facts about an order, and a question about one of them."""
    number = str(random.randrange(10000, 99999))
    values = {kind: random.choice(options) for kind, options in FILLERS.items()}
    values["price"] = f"{random.randrange(5, 400)}.{random.choice(('00', '50', '95', '99'))} euros"
    values["weight"] = f"{random.randrange(1, 40)} kilograms"
    values["code"] = "".join(random.choice("ABCDEFGHKLMNPRSTUVWX") for _ in range(3)) + str(random.randrange(100, 999))
    told = random.sample(list(FACTS), random.randrange(3, 7))
    asked = random.choice(told)
    context = random.choice(OPENINGS).format(number=number, product=random.choice(PRODUCTS[split]))
    for kind in told:
        sentence, answer = FACTS[kind]
        context += " "
        if kind == asked:
            start = len(context) + len(sentence[: sentence.index(answer)].format(**values))
            wanted = answer.format(**values)
        context += sentence.format(**values)
    return {
        "question": random.choice(QUESTIONS[asked][split]),
        "context": context,
        "answers": {"text": [wanted], "answer_start": [start]},
    }


def reply(split: str, random: Random) -> Row:
    """A message and four replies, one of which answers it."""
    topic = random.choice(list(REPLY_TOPICS))
    others = random.sample([name for name in REPLY_TOPICS if name != topic], 3)
    values = {"product": random.choice(PRODUCTS[split]), "day": random.choice(FILLERS["day"])}
    order = random.sample([topic, *others], 4)
    return {
        "context": random.choice(REPLY_TOPICS[topic][split]).format(**values),
        "choices": [random.choice(REPLY_TOPICS[name]["replies"]).format(**values) for name in order],
        "label": order.index(topic),
    }


def shape(kind: str, random: Random) -> bytes:
    """A grey PNG of one turned shape on a noisy ground."""
    from PIL import Image, ImageDraw

    size = SIDE * SCALE
    image = Image.new("L", (size, size), random.randrange(40, 120))
    draw, ink = ImageDraw.Draw(image), random.randrange(150, 240)
    radius = random.uniform(0.2, 0.34) * size
    x, y = (random.uniform(radius, size - radius) for _ in range(2))
    turn = random.uniform(0, 2 * math.pi)

    def corner(angle: float, length: float = 1.0) -> tuple[float, float]:
        return x + length * radius * math.cos(turn + angle), y + length * radius * math.sin(turn + angle)

    if kind == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    elif kind == "cross":
        for angle in (0.0, math.pi / 2):
            draw.line([corner(angle), corner(angle + math.pi)], fill=ink, width=int(radius / 2))
    else:
        corners = 3 if kind == "triangle" else 4
        draw.polygon([corner(2 * math.pi * i / corners) for i in range(corners)], fill=ink)
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float32)
    pixels += np.random.default_rng(random.randrange(2**32)).normal(0, 14, pixels.shape)
    stream = BytesIO()  # sixteen greys make small files
    Image.fromarray((np.clip(pixels, 0, 255) // 16 * 16).astype(np.uint8)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def tone(kind: str, random: Random) -> bytes:
    """An 8-bit WAV of a noisy tone."""
    from scipy.io import wavfile

    time = np.arange(int(SAMPLING_RATE * SECONDS)) / SAMPLING_RATE
    low = random.uniform(200, 600)
    high = low * random.uniform(1.4, 2.2)
    first, last = {"rising": (low, high), "falling": (high, low)}.get(kind, (low, low))
    phase = 2 * np.pi * (first * time + (last - first) * time**2 / (2 * SECONDS)) + random.uniform(0, 2 * np.pi)
    wave = np.sin(phase)
    if kind == "beating":
        wave = (wave + np.sin(phase + 2 * np.pi * random.uniform(6, 14) * time)) / 2
    noise = np.random.default_rng(random.randrange(2**32)).normal(0, 0.08, len(time))
    samples = np.clip(random.uniform(0.4, 0.8) * wave + noise, -1, 1) * 127 + 128
    stream = BytesIO()
    wavfile.write(stream, SAMPLING_RATE, samples.astype(np.uint8))
    return stream.getvalue()


def distinct(make: Any, split: str, random: Random) -> list[Row]:
    """So many different rows as the split has."""
    found: dict[str, Row] = {}
    while len(found) < COUNTS[split]:
        row = make(split, random)
        found.setdefault(json.dumps(row), row)
    return list(found.values())


def write_texts(folder: Path) -> None:
    """The three sets of texts."""
    for name, make in (("entities", entity), ("questions", question), ("replies", reply)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in COUNTS:
            rows = distinct(make, split, Random(f"{name} {split}"))
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def write_media(folder: Path) -> None:
    """Shapes and tones."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    bytes_and_path = {"bytes": Value("binary"), "path": Value("string")}
    sets = (
        ("shapes", "image", shape, SHAPES, Image(), {"train": 400, "validation": 200}),
        ("tones", "audio", tone, TONES, bytes_and_path, {"train": 180, "validation": 100}),
    )
    for name, column, make, classes, feature, counts in sets:
        features = Features({column: feature, "label": ClassLabel(names=list(classes))})
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, count in counts.items():
            random = Random(f"{name} {split}")
            labels = [i % len(classes) for i in range(count)]
            cells = [{"bytes": make(classes[label], random), "path": None} for label in labels]
            data = Dataset.from_dict({column: cells, "label": labels}, features=features)
            data.to_parquet(folder / name / f"{split}.parquet")


def main(folder: str = str(Path(__file__).parent)) -> None:
    write_texts(Path(folder))
    write_media(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
