"""Checks of option values, each with an error that names the option, the value and what is allowed."""


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


def is_newer(version: str | None, than: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdigit()]

    return version is not None and numbers(version) > numbers(than)
