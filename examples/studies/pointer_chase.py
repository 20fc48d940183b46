"""A pointer chase over segments: "a ?" stands first, "a → b" and "b → c" in two of the segments after it; c is asked.

The facts are many, so that most of what a segment holds is never asked for, and one vector a segment would have to hold
all that might be.
"""

from dataclasses import dataclass

import torch

PAD, CLS, SEP, END, FIRST_HOPS, FIRST_SYMBOL = 0, 1, 2, 3, 4, 8
MAX_HOPS = FIRST_SYMBOL - FIRST_HOPS


def test_name(hops: int, num_segments: int) -> str:
    """What results call the test on texts of so many hops and segments."""
    return f"{hops} {'hop' if hops == 1 else 'hops'}, {num_segments} segments"


@dataclass(frozen=True)
class Chase:
    """How texts are drawn.

    Args:
        num_symbols: keys and values are drawn from, and what is asked for is one of.
        num_facts: N, the facts of a segment.
        device: where texts go; they are drawn on the CPU, so that they are the same everywhere.
    """

    num_symbols: int
    num_facts: int
    device: str = "cpu"

    @property
    def vocab_size(self) -> int:
        """Symbols and special tokens."""
        return FIRST_SYMBOL + self.num_symbols

    @property
    def segment_length(self) -> int:
        """Tokens of a segment: [CLS], the question with its [SEP] or another fact, N facts, [SEP]."""
        return 3 * (self.num_facts + 1) + 2

    def draw(
        self, batch_size: int, num_segments: int, hops: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids `(B, T)` of texts that are cut into S segments, the question in the first, and what each of their
        facts leads to, `(B, hops)`, the answer last.

        Args:
            batch_size: B.
            num_segments: S.
            hops: how many facts lead to the answer, each in a segment of its own after the first.
            generator: of everything.
        """
        n, batch = self.num_facts, torch.arange(batch_size)[:, None]
        total = n + (num_segments - 1) * (n + 1)
        symbols = torch.rand(batch_size, self.num_symbols, generator=generator).argsort(1)
        chain, others = symbols[:, : hops + 1], symbols[:, hops:]  # no other fact has a key that is asked for
        drawn = torch.randint(others.shape[1], (batch_size, total), generator=generator)
        keys = others.gather(1, drawn)
        values = torch.randint(self.num_symbols, (batch_size, total), generator=generator)
        segments = torch.rand(batch_size, num_segments - 1, generator=generator).argsort(1)[:, :hops]
        places = n + segments * (n + 1) + torch.randint(n + 1, segments.shape, generator=generator)
        keys[batch, places], values[batch, places] = chain[:, :-1], chain[:, 1:]
        facts = torch.stack((FIRST_SYMBOL + keys, FIRST_SYMBOL + values, torch.full_like(keys, END)), -1).flatten(1)
        column = torch.full((batch_size, 1), CLS)
        question = (column, FIRST_SYMBOL + chain[:, :1], torch.full_like(column, FIRST_HOPS + hops - 1))
        separator = torch.full_like(column, SEP)
        ids = torch.cat((*question, separator, facts, separator), 1)
        return ids.to(self.device), chain[:, 1:].to(self.device)

    def look_ups(self, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """One segment, `(B, T)`, that starts with N keys, one after the other, and their values `(B, N)`."""
        n = self.num_facts
        keys = torch.rand(batch_size, self.num_symbols, generator=generator).argsort(1)[:, :n]
        values = torch.randint(self.num_symbols, (batch_size, n), generator=generator)
        order = torch.rand(batch_size, n, generator=generator).argsort(1)
        facts = torch.stack((FIRST_SYMBOL + keys, FIRST_SYMBOL + values, torch.full_like(keys, END)), -1).flatten(1)
        column = torch.full((batch_size, 1), CLS)
        ids = torch.cat((column, FIRST_SYMBOL + keys.gather(1, order), torch.full_like(column, SEP), facts), 1)
        return ids.to(self.device), values.gather(1, order).to(self.device)
