"""Who may say what in a service: each key is taken only from the certificate that it belongs to.

.. code-block:: none

    hop/K/frame        device K-1 --> device K          put
    hop/K/ack          device K-1 <-- device K          put
    hop/K/terms        device K-1 <-> device K          asked, answered
    error              any device --> device 0          put
    device/K           anybody <-> device K             asked, answered
    infer, about       anybody <-> device 0             asked, answered
    alive/K/**         anybody <-- device K             a token of liveliness

Hop N of N devices leads back to device 0; hop 0 stays within its process. All else is refused.
zenoh asks on receipt, and on sending too, so that nobody is told what is not for him.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class _Lane:
    """A kind of message on a key, with the names of who may send it and to whom.

    None is whoever has a certificate.
    """

    message: str
    key: str
    source: str | None
    target: str | None


def access_settings(service: str, devices: Sequence[str], own: str) -> dict[str, Any]:
    """Return what makes zenoh take from each name what it may send, and tell it what it may know.

    A key of a hop, an error or a device may have more parts after the service's name, such as the
    id of a bundle.

    Args:
        service: Its name, the second part of every key.
        devices: Their names in the order in which a sample visits them.
        own: Who this is: one of them; any other name is a client.

    Returns:
        zenoh's settings, for ``Config.insert_json5``; to be used with `tls_settings`, without
        which nobody has a name.
    """
    keys: dict[tuple[str | None, str, str], list[str]] = {}
    for lane in _lanes(f"isthmus/{service}", devices):
        if lane.target in (own, None) and lane.source != own:
            keys.setdefault((lane.source, "ingress", lane.message), []).append(lane.key)
        if lane.source in (own, None) and lane.target != own:
            keys.setdefault((lane.target, "egress", lane.message), []).append(lane.key)
    others = dict.fromkeys(name for name, _, _ in keys)
    subjects = [
        {"id": "anybody", "link_protocols": ["tls"]}
        if name is None
        else {"id": f"device {name}", "cert_common_names": [name]}
        for name in others
    ]
    rules = [
        {
            "id": f"{flow} {message} {name or ''}",
            "permission": "allow",
            "flows": [flow],
            "messages": [message],
            "key_exprs": found,
        }
        for (name, flow, message), found in keys.items()
    ]
    of = [(name, rule["id"]) for (name, _, _), rule in zip(keys, rules, strict=True)]
    policies = [
        {"subjects": [subject["id"]], "rules": [rule for whose, rule in of if whose == name]}
        for name, subject in zip(others, subjects, strict=True)
    ]
    control = {"rules": rules, "subjects": subjects, "policies": policies}
    return {"access_control": {"enabled": True, "default_permission": "deny", **control}}


def _lanes(prefix: str, devices: Sequence[str]) -> Iterator[_Lane]:
    """Yield all that a service says; hop 0 begins and ends in the first device's process."""
    first = devices[0]
    for hop, (sender, receiver) in enumerate(
        zip(devices, (*devices[1:], first), strict=True), start=1
    ):
        key = f"{prefix}/**/hop/{hop}"
        yield from _published(f"{key}/frame", sender, receiver)
        yield from _published(f"{key}/ack", receiver, sender)
        yield from _answered(f"{key}/terms", receiver, sender)
    for index, device in enumerate(devices):
        yield from _published(f"{prefix}/**/error", device, first)
        yield from _answered(f"{prefix}/**/device/{index}", device, None)
        yield _Lane("liveliness_token", f"{prefix}/alive/{index}/**", device, None)
        for asks in ("liveliness_query", "declare_liveliness_subscriber"):
            yield _Lane(asks, f"{prefix}/alive/**", None, device)
    for what in ("infer", "about"):
        yield from _answered(f"{prefix}/{what}", first, None)


def _published(key: str, source: str, target: str) -> tuple[_Lane, ...]:
    return _Lane("put", key, source, target), _Lane("declare_subscriber", key, target, source)


def _answered(key: str, source: str, target: str | None) -> tuple[_Lane, ...]:
    return (
        _Lane("declare_queryable", key, source, target),
        _Lane("query", key, target, source),
        _Lane("reply", key, source, target),
    )
