"""Who is let in, over real TLS on loopback, and who may say what."""

import json
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import zenoh
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from isthmus.errors import InputError
from isthmus.run.access import access_settings
from isthmus.run.hop import Receiver, Sender
from isthmus.run.keys import init_keys, issue_key, tls_settings
from isthmus.run.messages import Terms
from isthmus.run.session import locator

PATIENCE_S = 20.0  # of a loaded machine; never waited where all is well
REFUSAL_MS = 700  # how long somebody tries who shall not get in
DEVICES = ("camera", "hub", "cloud")
RUN = "isthmus/desk/2-abc"
HOUR = timedelta(hours=1)
TERMS = Terms(bundle="b", codec="c")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """An authority, and a folder each for three devices and a client."""
    folder = tmp_path_factory.mktemp("keys")
    init_keys(folder)
    for name in (*DEVICES, "laptop"):
        issue_key(folder, name)
    return folder


def opened(settings, *, connect="", mode="peer", listen="tls/127.0.0.1:0", timeout_ms=10_000):
    config = zenoh.Config()
    basic = {
        "mode": mode,
        "listen/endpoints": [listen] if listen else [],
        "connect/endpoints": [connect] if connect else [],
        "connect/exit_on_failure": True,
        "connect/timeout_ms": timeout_ms,
        "scouting/multicast/enabled": False,
        "adminspace/enabled": True,
    }
    for key, value in (basic | settings).items():
        config.insert_json5(key, json.dumps(value))
    return zenoh.open(config)


def wait_for(condition, *, meanwhile=lambda: None):
    """Repeat until a condition holds; a lost race is tried again, a loaded machine waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.02)


@contextmanager
def heard(session, key):
    """Give the list to which (last part of the key, text) of every message is added."""
    messages = []

    def note(sample):
        messages.append((str(sample.key_expr).rsplit("/", 1)[-1], sample.payload.to_string()))

    subscriber = session.declare_subscriber(key, note)
    yield messages
    subscriber.undeclare()


def signed(keys, place, name, *, begins, ends):
    """Make a folder like `issue_key`, for other times."""
    shutil.copytree(keys / name, place)
    old = x509.load_pem_x509_certificate((place / "cert.pem").read_bytes())
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), old.serial_number, begins, ends
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    ca_key = serialization.load_pem_private_key((keys / "ca-key.pem").read_bytes(), None)
    certificate = builder.sign(ca_key, hashes.SHA256())  # type: ignore[arg-type]
    (place / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return place


def renamed(keys, folder):
    """Return the settings of a folder whose files are not looked at before they are used."""
    settings = tls_settings(keys / "laptop")
    own = str((keys / "laptop").resolve())
    return {
        key: value.replace(own, str(folder.resolve())) if isinstance(value, str) else value
        for key, value in settings.items()
    }


class TestWhoIsLetIn:
    def test_two_with_certificates_of_one_authority_talk_both_ways(self, keys):
        with (
            opened(tls_settings(keys / "hub")) as hub,
            opened(tls_settings(keys / "camera"), connect=locator(hub)) as camera,
            heard(hub, "to/hub") as at_hub,
            heard(camera, "to/camera") as at_camera,
        ):
            assert locator(hub).startswith("tls/127.0.0.1:")
            wait_for(lambda: at_hub, meanwhile=lambda: camera.put("to/hub", "hello"))
            wait_for(lambda: at_camera, meanwhile=lambda: hub.put("to/camera", "hello"))

    @pytest.mark.parametrize("who", ["other authority", "expired", "no certificate", "plain tcp"])
    def test_nobody_else_is_let_in(self, keys, tmp_path, who):
        with opened(tls_settings(keys / "hub")) as hub, heard(hub, "**") as messages:
            where, settings = locator(hub), {}
            if who == "other authority":
                init_keys(tmp_path / "theirs")
                theirs = issue_key(tmp_path / "theirs", "laptop")
                shutil.copy(keys / "ca.pem", theirs)  # it would believe the hub
                settings = renamed(keys, theirs)
            elif who == "expired":
                now = datetime.now(UTC)
                ended = now - timedelta(minutes=1)
                begun = now - timedelta(days=2)
                old = signed(keys, tmp_path / "old", "laptop", begins=begun, ends=ended)
                new = signed(keys, tmp_path / "new", "laptop", begins=begun, ends=now + HOUR)
                opened(renamed(keys, new), connect=where, listen="").close()
                settings = renamed(keys, old)
            elif who == "no certificate":
                settings = {"transport/link/tls/root_ca_certificate": str(keys / "ca.pem")}
            else:
                where = where.replace("tls/", "tcp/")
            with pytest.raises(zenoh.ZError):
                opened(settings, connect=where, listen="", timeout_ms=REFUSAL_MS)
            stay = settings | {"connect/exit_on_failure": False}  # and one that goes on trying
            with opened(stay, connect=where, listen="", timeout_ms=REFUSAL_MS) as stranger:
                stranger.put("to/hub", "from a stranger")
                with opened(tls_settings(keys / "laptop"), connect=locator(hub)) as laptop:
                    wait_for(lambda: messages, meanwhile=lambda: laptop.put("to/hub", "mine"))
                    assert hub.info.peers_zid() == [laptop.zid()]
                assert stranger.info.peers_zid() == []
        assert set(messages) == {("hub", "mine")}

    def test_nothing_is_said_without_tls_by_mistake(self, keys):
        with pytest.raises(zenoh.ZError, match="tcp"):
            opened(tls_settings(keys / "hub"), listen="tcp/127.0.0.1:0")

    @pytest.mark.skipif(sys.platform != "linux", reason="needs another address of this machine")
    def test_a_good_certificate_for_another_address_is_not_believed(self, keys):
        here = "tls/127.0.0.2:0"
        issue_key(keys, "moved", hosts=["127.0.0.2"])
        camera = tls_settings(keys / "camera")
        with opened(tls_settings(keys / "hub"), listen=here) as hub, pytest.raises(zenoh.ZError):
            opened(camera, connect=locator(hub), listen="", timeout_ms=REFUSAL_MS)
        with opened(tls_settings(keys / "moved"), listen=here) as moved:
            opened(camera, connect=locator(moved), listen="").close()


class TestWhoMaySayWhat:
    def test_a_frame_is_taken_from_the_device_before_and_from_no_other(self, keys):
        """The rogue is a zenoh client, which sends without being told that anybody listens."""
        with ExitStack() as stack:
            hub = stack.enter_context(opened(allowed(keys, "hub")))
            camera, cloud, laptop = (
                stack.enter_context(
                    opened(tls_settings(keys / name), connect=locator(hub), mode="client")
                )
                for name in ("camera", "cloud", "laptop")
            )
            messages = stack.enter_context(heard(hub, f"{RUN}/hop/**"))

            def everybody():
                for session, name in ((laptop, "laptop"), (cloud, "cloud"), (camera, "camera")):
                    for key in ("hop/1/frame", "hop/2/ack", "hop/2/frame"):
                        session.put(f"{RUN}/{key}", name)

            wait_for(lambda: len(set(messages)) >= 2, meanwhile=everybody)
            for _ in range(3):
                everybody()
            seen = len(messages)
            wait_for(lambda: len(messages) > seen, meanwhile=everybody)
        assert set(messages) == {("frame", "camera"), ("ack", "cloud")}

    def test_without_access_settings_the_same_rogue_is_heard(self, keys):
        with (
            opened(tls_settings(keys / "hub")) as hub,
            opened(tls_settings(keys / "laptop"), connect=locator(hub), mode="client") as laptop,
            heard(hub, f"{RUN}/hop/**") as messages,
        ):
            wait_for(lambda: messages, meanwhile=lambda: laptop.put(f"{RUN}/hop/1/frame", "x"))

    def test_a_chain_under_access_control_agrees_and_acknowledges(self, keys):
        with service(keys) as (camera, hub, cloud, _):
            for hop, (near, far) in enumerate(
                ((camera, hub), (hub, cloud), (cloud, camera)), start=1
            ):
                receiver = Receiver(far, f"{RUN}/hop/{hop}", TERMS)
                key = f"{RUN}/hop/{hop}"
                with Sender(near, key, crossing=hop, timeout_s=PATIENCE_S) as sender:
                    sender.agree(TERMS)
                    sender.send(0, b"payload")
                    frame = receiver.receive(PATIENCE_S)
                    assert frame is not None
                    assert frame.payload == b"payload"
                    wait_for(lambda sender=sender: not sender._parcels)
            with heard(camera, f"{RUN}/error") as errors:
                wait_for(lambda: errors, meanwhile=lambda: cloud.put(f"{RUN}/error", "it broke"))

    def test_only_the_first_device_answers_a_client(self, keys):
        with service(keys) as (camera, hub, cloud, laptop):
            infer, state = "isthmus/desk/infer", f"{RUN}/device/1"
            answering = [
                session.declare_queryable(
                    key, lambda query, key=key, name=name: query.reply(key, name)
                )
                for session, key, name in (
                    (camera, infer, "camera"),
                    (cloud, infer, "a rogue"),
                    (hub, state, "hub"),
                    (cloud, state, "a rogue"),
                )
            ]

            def answers(session, key):
                replies = session.get(
                    key,
                    payload=b"x",
                    target=zenoh.QueryTarget.ALL,
                    consolidation=zenoh.ConsolidationMode.NONE,
                    timeout=PATIENCE_S,
                )
                return [reply.ok.payload.to_string() for reply in replies if reply.ok]

            wait_for(lambda: answers(laptop, infer))
            wait_for(lambda: answers(laptop, state))
            assert answers(laptop, infer) == ["camera"]
            assert answers(laptop, state) == ["hub"]
            assert answers(camera, state) == ["hub"]
            assert len(answering) == 4

    def test_a_device_is_alive_only_by_its_own_word(self, keys):
        with service(keys) as (camera, hub, cloud, laptop):
            names = (f"isthmus/desk/alive/{index}/{{}}" for index in range(3))
            zero, one, two = names
            tokens = [
                session.liveliness().declare_token(key)
                for session, key in (
                    (cloud, one.format("rogue")),
                    (laptop, zero.format("rogue")),
                    (camera, zero.format("own")),
                    (hub, one.format("own")),
                    (cloud, two.format("own")),
                )
            ]
            for session in (camera, hub, laptop):
                seen: set[str] = set()
                subscriber = session.liveliness().declare_subscriber(
                    "isthmus/desk/alive/*/**",
                    lambda sample, seen=seen: seen.add(str(sample.key_expr)),
                    history=True,
                )
                wait_for(lambda seen=seen: len(seen - {zero.format("rogue")}) >= 3)
                subscriber.undeclare()
                foreign = seen - {key.format("own") for key in (zero, one, two)}
                # Within its own process nobody is asked for his name.
                assert foreign == (set() if session is not laptop else {zero.format("rogue")})
            assert len(tokens) == 5

    def test_a_service_of_one_device_has_no_hop(self):
        (rules,) = access_settings("desk", ["hub"], "hub").values()
        assert rules["default_permission"] == "deny"
        assert not [rule for rule in rules["rules"] if "put" in rule["messages"]]


def allowed(keys, name):
    return tls_settings(keys / name) | access_settings("desk", DEVICES, name)


@contextmanager
def service(keys):
    """Three devices and a client, each with its own settings, all of them connected."""
    with ExitStack() as stack:
        sessions: list[zenoh.Session] = []
        for name in (*DEVICES, "laptop"):
            connect = locator(sessions[0]) if sessions else ""
            sessions.append(stack.enter_context(opened(allowed(keys, name), connect=connect)))
        wait_for(lambda: all(len(session.info.peers_zid()) == 3 for session in sessions))
        yield sessions


class TestWhatIsMade:
    def test_private_keys_are_for_the_owner_alone(self, keys):
        for path in (keys / "ca-key.pem", keys / "hub" / "key.pem"):
            assert path.stat().st_mode & 0o777 == 0o600
        assert sorted(path.name for path in (keys / "hub").iterdir()) == [
            "ca.pem",
            "cert.pem",
            "key.pem",
        ]

    def test_renewed_it_is_another_key_for_the_same_hosts(self, keys):
        hosts = ["camera.local", "10.0.0.5", "fe80::1"]
        place = issue_key(keys, "roamer", hosts=hosts)
        before = (place / "cert.pem").read_bytes()
        issue_key(keys, "roamer", renew=True)
        after = (place / "cert.pem").read_bytes()
        old, new = map(x509.load_pem_x509_certificate, (before, after))
        assert old.public_key() != new.public_key()
        names = [
            each.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            for each in (old, new)
        ]
        assert names[0].get_values_for_type(x509.DNSName) == ["localhost", "camera.local"]
        assert list(map(str, names[0].get_values_for_type(x509.IPAddress))) == [
            "127.0.0.1",
            "10.0.0.5",
            "fe80::1",
        ]
        assert set(names[0]) == set(names[1])
        tls_settings(place, name="roamer")


class TestWhatIsRefused:
    def test_a_second_authority_or_certificate_is_not_made_by_accident(self, keys):
        with pytest.raises(InputError, match=r"ca\.pem: exists, .*name another --out"):
            init_keys(keys)
        with pytest.raises(InputError, match="hub: exists; add --renew"):
            issue_key(keys, "hub")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"name": "../hub"}, "name '../hub': expected that of a device or a client"),
            ({"name": ""}, "name '': expected"),
            ({"name": "x", "days": 0}, "--days 0: expected 1 or more"),
            ({"name": "x", "days": 3_000_000}, "--days 3000000: .* an end before that of"),
            ({"name": "x", "days": 4000}, "--days 4000: .* an end before that of .*ca.pem, 20"),
            ({"name": "x", "hosts": ["hub:7447"]}, "--host 'hub:7447': .* without a port"),
            ({"name": "x", "hosts": ["10.0.0.999"]}, "--host '10.0.0.999': expected"),
        ],
    )
    def test_what_cannot_be_issued_leaves_nothing(self, keys, arguments, words):
        with pytest.raises(InputError, match=words):
            issue_key(keys, **arguments)
        assert not (keys / "x").exists()

    def test_without_an_authority_nothing_is_issued(self, tmp_path):
        with pytest.raises(InputError, match=r"no ca-key\.pem; make an authority"):
            issue_key(tmp_path, "hub")

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda at: (at / "key.pem").unlink(), r"key\.pem: cannot be read \(No such file"),
            (lambda at: (at / "ca.pem").write_text("x"), r"ca\.pem: no certificate in PEM"),
            (lambda at: (at / "key.pem").write_text("x"), r"key\.pem: no private key in PEM"),
            (lambda at: shutil.copy(at / "../cloud/cert.pem", at), "is not the key of cert.pem"),
            (lambda at: shutil.copy(at / "../cloud/key.pem", at), "is not the key of cert.pem"),
            (lambda at: (at / "key.pem").chmod(0o640), r"others may read .*\(mode 0640\).*chmod"),
        ],
    )
    def test_a_folder_that_is_not_whole_says_what_is_wrong(self, keys, tmp_path, spoil, words):
        for name in ("hub", "cloud"):
            shutil.copytree(keys / name, tmp_path / name)
        spoil(tmp_path / "hub")
        with pytest.raises(InputError, match=words) as caught:
            tls_settings(tmp_path / "hub")
        assert "\n" not in str(caught.value)

    def test_a_certificate_of_another_authority_is_found_out(self, keys, tmp_path):
        shutil.copytree(keys / "hub", tmp_path / "hub")
        init_keys(tmp_path / "theirs")
        shutil.copy(tmp_path / "theirs" / "ca.pem", tmp_path / "hub")
        with pytest.raises(InputError, match=r"cert\.pem: is not signed by ca\.pem"):
            tls_settings(tmp_path / "hub")

    @pytest.mark.parametrize(
        ("begins", "ends", "words"),
        [
            (-2, -1, r"cert\.pem: ended on 20.* UTC; issue it anew"),
            (1, 2, r"cert\.pem: begins on 20.* UTC, .* set the clock"),
        ],
    )
    def test_a_certificate_is_good_in_its_time(self, keys, tmp_path, begins, ends, words):
        begins, ends = (datetime.now(UTC) + timedelta(days=days) for days in (begins, ends))
        place = signed(keys, tmp_path / "hub", "hub", begins=begins, ends=ends)
        with pytest.raises(InputError, match=words):
            tls_settings(place)

    def test_the_certificate_of_another_device_is_not_taken(self, keys):
        words = "found the name hub, expected camera; give the folder that .*issue camera"
        with pytest.raises(InputError, match=words):
            tls_settings(keys / "hub", name="camera")
