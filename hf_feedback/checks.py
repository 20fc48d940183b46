"""What both configurations share: the version, and checks of option values."""

HF_FEEDBACK_VERSION = "0.1.0"

# What transformers adds to a config by itself; neither ours nor a misspelling of ours.
TRANSFORMERS_KEYS = {
    "_attn_implementation",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
}


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def check_integer(name: str, value: object, least: int, hint: str) -> None:
    if not is_integer(value) or value < least:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r} ({hint}).")


def check_choice(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def is_newer(version: str | None) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdigit()]

    return version is not None and numbers(version) > numbers(HF_FEEDBACK_VERSION)
