"""YAML without what can make it large or ambiguous: aliases, depth, double keys."""

from typing import Any

import yaml

from isthmus.errors import InputError

_MAX_DEPTH = 16
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where it is there
_NOT_TEXT = {
    "tag:yaml.org,2002:bool": "a boolean",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:null": "nothing",
}


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        InputError: It holds an alias, too many levels, a key twice or one that is no text.
        yaml.YAMLError: It is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"found the alias *{event.anchor}, expected plain values")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise InputError(f"found over {_MAX_DEPTH} nested levels, expected a platform file")
    root = yaml.compose(text, Loader=_LOADER)
    _check_keys(root)
    try:
        return None if root is None else yaml.SafeLoader("").construct_document(root)
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise InputError(f"not YAML ({error})") from error


def _check_keys(node: yaml.Node | None) -> None:
    """Raise where a key is no text, or named twice: YAML itself would silently keep the last."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if key.tag in _NOT_TEXT:
                raise InputError(
                    f"found the key {name} in line {line}, which YAML reads as "
                    f"{_NOT_TEXT[key.tag]}; put it in quotes: {name!r}"
                )
            if name in seen:
                raise InputError(f"{name}: found twice (again in line {line}), expected once")
            seen.add(name)
            children.append(value)
    for child in children:
        _check_keys(child)
