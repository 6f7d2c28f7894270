"""What a user reads of a wrong value: what was found and what is expected, in words of a user, not of a library."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pycolo.config import CopyDocument, HostConfig, VmConfig, load_config
from pycolo.config_messages import sentences
from pycolo.errors import EnvironmentFault

HOST: dict[str, Any] = {
    "name": "h1",
    "listen": "10.0.0.1:7700",
    "state_dir": "/run/colo",
    "bridge": "br0",
    "insecure": True,
    "arbiter": {"kind": "file", "path": "/run"},
}
VM: dict[str, Any] = {"name": "web", "kernel": "k", "accel": "tcg"}
NAMES = "a name of up to 63 letters, digits, '.', '_' and '-', the first of them a letter or a digit"


def said(model: type[BaseModel], values: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return sentences(caught.value, model)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "../x"}, f"name is '../x': it should be {NAMES}"),
        ({"name": 5}, f"name is 5: it should be {NAMES}, in quotes"),
        ({"listen": 7700}, "listen is 7700: it should be text such as 10.0.0.1:7700, in quotes"),
        ({"state_dir": 5}, "state_dir is 5: it should be a path, in quotes"),
        ({"state_dir": ""}, "state_dir is '': it is empty: give the path"),
        ({"state_dir": "x"}, "state_dir is 'x': it depends on where the daemon is started: give the whole path, from"),
        ({"disk_dir": "a\0b"}, "disk_dir is 'a\\x00b': there are control characters in it: correct the path"),
        ({"bridge": "b" * 16}, f"bridge is '{'b' * 16}': it should be a name of up to 15 letters, digits, '.', "),
        ({"cpus": 0}, "cpus is 0: it should be a whole number from 1 to 4096"),
        ({"cpus": 4097}, "cpus is 4097: it should be a whole number from 1 to 4096"),
        ({"cpus": 1 << 20_000}, "cpus is a number of thousands of digits: it should be a whole number from 1 to 4096"),
        ({"cpus": 1.0}, "cpus is 1.0: it should be a whole number from 1 to 4096"),
        ({"cpus": "4"}, "cpus is '4': it should be a whole number from 1 to 4096, without quotes"),
        ({"insecure": "yes"}, "insecure is 'yes': it should be true or false, without quotes"),
        ({"insecure": 1}, "insecure is 1: it should be true or false"),
        ({"log": "xml"}, 'log is \'xml\': it should be "json" or "console"'),
        ({"log": True}, 'log is true: it should be "json" or "console", in quotes'),
        ({"tls": "x"}, "tls is 'x': it should be a table [tls]"),
        ({"tls": []}, "tls is a list: it should be a table [tls]"),
        ({"arbiter": 5}, "arbiter is 5: it should be a table [arbiter]"),
        ({"arbiter": {"kind": "zk"}}, 'arbiter.kind is \'zk\': it should be "etcd" or "file"'),
        ({"peers": "x"}, "peers is 'x': it should be a list of tables [[peers]]"),
        ({"peers": {"name": "x"}}, "peers is a table: it should be a list of tables [[peers]]"),
        ({"peers": [3]}, "[[peers]] number 1 is 3: it should be a table"),
        ({"Name": "x"}, "the key Name is unknown: did you mean `name`?"),
        ({"[key]": "x"}, "the key [key] is unknown: remove it or correct its spelling"),
        ({"networks": {"[key]": "x"}}, f"a key of networks is '[key]': it should be {NAMES}"),
        ({"token-file": "x"}, "the key token-file is unknown: did you mean `token_file`?"),
        ({"tap": "x"}, "the key tap is unknown: remove it or correct its spelling"),
        ({"networks": 5}, "networks is 5: it should be a table [networks]"),
        ({"networks": {"a b": "br1"}}, "a key of networks is 'a b': it should be a name of up to 63 letters"),
        ({"networks": {"san": "b" * 16}}, f"networks.san is '{'b' * 16}': it should be a name of up to 15 letters"),
        ({"networks": {"a\n": "br1"}}, r"a key of networks is 'a\n': it should be a name of up to 63 letters"),
        ({"networks": {"san": 5}}, "networks.san is 5: it should be a name of up to 15 letters, digits, '.', '_' and "),
        ({"networks": dict.fromkeys(map(str, range(65)), "br1")}, "networks has 65 entries: it should have at most 64"),
        ({"ca": "x"}, "the key ca is unknown: it belongs into the table [tls]"),
        (
            {"insecure": False, "tls": {"ca": "/a", "cert": "/b", "key": "/c", "log": "json"}},
            "the key tls.log is unknown: `log` belongs to the top of the file, above the first [table]",
        ),
    ],
)
def test_a_value_of_host_toml(values: dict[str, Any], says: str) -> None:
    (sentence,) = said(HostConfig, HOST | values)
    assert sentence.startswith(says)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"endpoints": "x"}, "arbiter.endpoints is 'x': it should be a list such as [\"https://10.0.0.1:2379\"]"),
        ({"endpoints": []}, "arbiter.endpoints has 0 entries: it should have at least 1"),
        ({"endpoints": ["x"]}, "number 1 of arbiter.endpoints is 'x': it is not https://HOST:PORT"),
        ({"user": ""}, "arbiter.user is '': it should be text of 1 to 128 characters"),
        ({"prefix": "x"}, "arbiter.prefix is 'x': it should be 1 to 8 parts such as /pycolo, each of up to 64 "),
    ],
)
def test_a_value_of_the_arbiter(values: dict[str, Any], says: str) -> None:
    arbiter = {"kind": "etcd", "endpoints": ["https://e:1"], **values}
    (sentence,) = said(HostConfig, HOST | {"arbiter": arbiter})
    assert sentence.startswith(says)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"memory_mib": "256"}, "memory_mib is '256': it should be a whole number from 32 to 1048576, without quotes"),
        ({"cpus": True}, "cpus is true: it should be a whole number from 1 to 64"),
        ({"mac": "5"}, "mac is '5': it should be six pairs of hexadecimal digits with colons between them, such as"),
        ({"mac": "53:54:00:00:00:02"}, "mac is '53:54:00:00:00:02': its first byte, 53, is odd, which makes it a mul"),
        (
            {"mac": "52:54:00:00:00:02", "nics": [{}]},
            "it has both `mac` and [[nics]]: put the address into the first of [[nics]]",
        ),
        ({"compare": {"\n": 1}}, r"the key compare.'\n' is unknown: remove it or correct its spelling"),
        ({"nics": [{}] * 9}, "nics has 9 entries: it should have at most 8"),
        (
            {"nics": [{"mac": "5"}]},
            "mac of [[nics]] number 1 is '5': it should be six pairs of hexadecimal digits with",
        ),
        ({"nics": [{"network": ""}]}, "network of [[nics]] number 1 is '': it should be a name of up to 63 letters"),
        ({"nics": [{}, {"bridge": "br1"}]}, "the key bridge of [[nics]] number 2 is unknown: remove it or correct"),
        (
            {"nics": [{"mac": "52:54:00:00:00:02"}, {"mac": "52:54:00:00:00:02", "network": "san"}]},
            "two network cards have the address 52:54:00:00:00:02: give each its own `mac`",
        ),
        ({"mac": "00:00:00:00:00:00"}, "mac is '00:00:00:00:00:00': no network card has this address: take one"),
        ({"protection": {"self_check": "no"}}, "protection.self_check is 'no': it should be true or false, without q"),
        ({"protection": {"secondaries": "h2"}}, "protection.secondaries is 'h2': it should be a list such as [\"h1\""),
        (
            {"protection": {"secondaries": ["b", "h 2"]}},
            f"number 2 of protection.secondaries is 'h 2': it should be {NAMES}",
        ),
        ({"protection": {"cpus": 2}}, "the key protection.cpus is unknown: `cpus` belongs to the top of the file"),
        ({"heartbeat_ms": 50}, "the key heartbeat_ms is unknown: it belongs into the table [protection]"),
        ({"disk": []}, "the key disk is unknown: did you mean `disks`?"),
        ({"disks": [{"name": "a", "path": "b"}, {"name": "B", "path": "c"}]}, "name of [[disks]] number 2 is 'B': it"),
        ({"disks": [{"name": "a"}]}, "the key path of [[disks]] number 1 is missing: add it"),
        (
            {"disks": [{"name": "a", "path": "b", "size": 1}]},
            "the key size of [[disks]] number 1 is unknown: remove it",
        ),
        ({"kernel": True}, "kernel is true: it should be a path, in quotes"),
    ],
)
def test_a_value_of_vm_toml(values: dict[str, Any], says: str) -> None:
    (sentence,) = said(VmConfig, VM | values)
    assert sentence.startswith(says)


def test_letters_of_a_mac_may_be_large() -> None:
    assert VmConfig.model_validate(VM | {"mac": "52:54:00:AB:CD:EF"}).mac == "52:54:00:ab:cd:ef"


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = said(VmConfig, {"cpus": 0, "memory_mib": "1", "accel": 5, "kernel": "k", "x": 1})
    assert [sentence.split(" is ")[0] for sentence in found] == [
        "the key name",
        "cpus",
        "memory_mib",
        "accel",
        "the key x",
    ]


def test_bad_entries_do_not_make_a_list_too_short_as_well() -> None:
    arbiter = {"kind": "etcd", "endpoints": ["x", 5]}
    assert [one[:30] for one in said(HostConfig, HOST | {"arbiter": arbiter})] == [
        "number 1 of arbiter.endpoints ",
        "number 2 of arbiter.endpoints ",
    ]


def test_alternatives_have_one_sentence() -> None:
    host = HOST | {"taps": ["t"], "listen": "10.0.0.1:0", "primary": 5}
    (sentence,) = said(CopyDocument, {"host": host, "vm": VM, "role": "primary"})
    assert sentence == f'host.primary is 5: it should be {NAMES} or ""'


def test_places_in_a_document_of_ours() -> None:
    host = HOST | {"taps": ["t"], "listen": "10.0.0.1:0", "arbiter": {"kind": "file"}}
    found = said(CopyDocument, {"host": host, "vm": VM | {"disks": [{"name": "a"}]}, "role": "x"})
    assert found[0] == "the key host.arbiter.path is missing: add it"
    assert found[1] == "the key path of [[vm.disks]] number 1 is missing: add it"
    with pytest.raises(ValidationError) as caught:
        CopyDocument.model_validate_json("{")
    assert sentences(caught.value, CopyDocument)[0].startswith("it is not JSON (EOF while parsing")


# ---------------------------------------------------------------- no other library's words

FOREIGN = ("Input", "should be a valid", "String", "Value error", "instance", "tuple", "pydantic", "dict", "class", "^")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)


@pytest.mark.parametrize(("model", "good"), [(HostConfig, HOST), (VmConfig, VM)])
@given(data=st.data())
def test_no_value_makes_a_sentence_of_foreign_words(
    model: type[BaseModel], good: dict[str, Any], data: st.DataObject
) -> None:
    """Those in the value itself aside."""
    key, value = data.draw(st.sampled_from(sorted(model.model_fields))), data.draw(VALUES)
    try:
        model.model_validate(good | {key: value})
    except ValidationError as problem:
        for sentence in sentences(problem, model):
            assert [word for word in FOREIGN if word in sentence and word not in repr(value)] == []
            assert "\n" not in sentence


# ---------------------------------------------------------------- one file for the other

HOST_TOML = 'name = "h1"\nlisten = "10.0.0.1:7700"\nbridge = "br0"\nstate_dir = "/x"\ncpus = 2\n'
VM_TOML = 'name = "web"\naccel = "tcg"\nkernel = "k"\ncpus = 2\n'


@pytest.mark.parametrize(
    ("content", "model", "says"),
    [
        (
            HOST_TOML,
            VmConfig,
            "is a host.toml (it has `listen`): give a vm.toml here, and this one to `colo daemon` or",
        ),
        (VM_TOML, HostConfig, "is a vm.toml (it has `accel`): give the host.toml here, and this one to `colo protect`"),
    ],
)
def test_a_file_of_the_other_kind(tmp_path: Path, content: str, model: type[BaseModel], says: str) -> None:
    path = tmp_path / "some.toml"
    path.write_text(content)
    with pytest.raises(EnvironmentFault) as caught:
        load_config(path, model)
    assert str(caught.value).startswith(f"{path} {says}")


def test_one_foreign_key_does_not_make_it_a_file_of_the_other_kind(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text(VM_TOML + 'bridge = "br0"\n')
    with pytest.raises(EnvironmentFault, match="the key bridge is unknown"):
        load_config(path, VmConfig)
