"""Registry of the arms that feedback can be compared with. A new arm is a class and a row here."""

from .arms import Arm, BottomUp, DoubleLoRA, Duplicated, HeadOnly, LoopOnly, LoRA, Plain, PlainLonger, RDrop
from .decoder_arms import Repeated, Unmasked
from .long_text_arms import ToBERT, Truncated, WholeText, Windows

# By name in the option `arms`.
ARMS: dict[str, Arm] = {
    "head-only": HeadOnly(),
    "plain": Plain(),
    "plain-longer": PlainLonger(),
    "r-drop": RDrop(),
    "lora": LoRA(),
    "lora-double": DoubleLoRA(),
    "bottom-up": BottomUp(),
    "duplicated": Duplicated(),
    "loop-only": LoopOnly(),
    "repeated": Repeated(),
    "unmasked": Unmasked(),
    "truncated": Truncated(),
    "windows": Windows(),
    "tobert": ToBERT(),
    "whole": WholeText(),
}
