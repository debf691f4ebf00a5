import hashlib
import re
import subprocess

import pytest

from wan_ray.cli import main
from wan_ray.config import RenderConfig
from wan_ray.errors import ConfigError
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.keys import Keys, check_exposure, check_same_site, is_loopback, key_line, new_key

ALICE, BOB = "wr_" + "a" * 43, "wr_" + "b" * 43
# printf %s wr_aaa... | sha256sum
ALICE_SHA256 = subprocess.run(["sha256sum"], input=ALICE.encode(), capture_output=True, check=True).stdout[:64].decode()


def keys() -> Keys:
    return Keys.from_lines(f"# ours\n\nalice:{ALICE_SHA256}\n  {key_line('bob-2', BOB)}  \n")


def config(host: str) -> RenderConfig:
    return RenderConfig.model_validate(
        {"model": {"variant": "debug", "checkpoint": "/nowhere"}, "serve": {"host": host}}
    )


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_a_key_is_its_owners(scheme: str) -> None:
    assert keys().owner_of(f"{scheme} {ALICE}") == "alice"
    assert keys().owner_of(f"{scheme} {BOB}") == "bob-2"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE} {ALICE}",
        f"Bearer {ALICE}, Bearer {ALICE}",
        f"Bearer {ALICE}\x00",
        f"Bearer {ALICE_SHA256}",
        "Bearer é" + ALICE,
        "Bearer " + "a" * 1_000_000,
    ],
)
def test_anything_else_is_refused_without_being_repeated(header: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        keys().owner_of(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}
    assert ALICE not in caught.value.message and ALICE_SHA256 not in caught.value.message


def test_without_keys_every_request_is_locals() -> None:
    assert Keys().owner_of(None) == "local"
    assert Keys.from_lines("\n# none yet\n").owner_of("Bearer whatever") == "local"


def test_an_owner_may_have_an_old_and_a_new_key() -> None:
    both = Keys.from_lines(f"{key_line('alice', ALICE)}\n{key_line('alice', BOB)}")
    assert both.owner_of(f"Bearer {ALICE}") == both.owner_of(f"Bearer {BOB}") == "alice"


@pytest.mark.parametrize(
    "line",
    [ALICE, f"alice:{ALICE}", f"Alice:{ALICE_SHA256}", f"al/ice:{ALICE_SHA256}", f"alice:{ALICE_SHA256.upper()}", ":"],
)
def test_a_line_that_is_none_is_named_by_number_and_not_shown(line: str) -> None:
    with pytest.raises(ConfigError, match="line 3") as caught:
        Keys.from_lines(f"# ours\n\n{line}\n")
    assert ALICE not in str(caught.value)


def test_a_key_of_two_owners_is_refused() -> None:
    with pytest.raises(ConfigError, match="'alice' and 'bob' have the same key"):
        Keys.from_lines(f"{key_line('alice', ALICE)}\n{key_line('bob', ALICE)}")


def test_keys_come_from_a_file_and_from_further_lines(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", ALICE))
    found = Keys.open(str(file), more=key_line("bob", BOB))
    assert found.owner_of(f"Bearer {ALICE}") == "alice"
    assert found.owner_of(f"Bearer {BOB}") == "bob"
    assert not Keys.open(None).entries


def test_a_keys_file_that_is_missing_or_empty_does_not_open_the_door(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.open(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("# soon\n")
    with pytest.raises(ConfigError, match="holds no key"):
        Keys.open(str(tmp_path / "empty"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.open(str(tmp_path / "binary"))


def test_new_keys_are_long_and_never_the_same() -> None:
    made = {new_key() for _ in range(1000)}
    assert len(made) == 1000
    assert all(key.startswith("wr_") and len(key) == 46 for key in made)


def test_the_command_prints_a_key_and_the_line_that_admits_it(capsys) -> None:
    assert main(["key", "alice"]) == 0
    said = dict(re.split(r"  +", line) for line in capsys.readouterr().out.splitlines())
    assert list(said) == ["key", "webhook secret", "line"]
    assert said["line"] == f"alice:{hashlib.sha256(said['key'].encode()).hexdigest()}"
    assert Keys.from_lines(said["line"]).owner_of(f"Bearer {said['key']}") == "alice"


def test_the_command_refuses_a_name_that_the_server_would_not_take(capsys) -> None:
    assert main(["key", "Alice Smith"]) == 2
    printed = capsys.readouterr()
    assert "a-z, 0-9" in printed.err and not printed.out


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_a_server_for_this_machine_alone_may_go_without_keys(host: str) -> None:
    check_exposure(config(host), Keys())
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "no.such.host.invalid", "0", "192.168.0.9"])
def test_any_other_needs_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="API keys"):
        check_exposure(config(host), Keys())
    check_exposure(config(host), keys())


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", None),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("localhost", "http://localhost"),
    ],
)
def test_without_keys_programs_and_pages_of_this_machine_are_answered(host: str, origin: str | None) -> None:
    check_same_site({"host": host} if origin is None else {"host": host, "origin": origin})


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "https://evil.example"),  # a form on a page anywhere
        ("localhost:8000", "null"),
        ("localhost:8000", "http://localhost:9000"),
        ("rebound.evil.example:8000", "http://rebound.evil.example:8000"),  # a name that came to stand for 127.0.0.1
        ("rebound.evil.example:8000", None),
        ("localhost.evil.example", None),
        ("127.0.0.1.evil.example", None),
        ("", None),
    ],
)
def test_without_keys_no_other_site_has_a_browser_use_the_server(host: str, origin: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        check_same_site({"host": host} if origin is None else {"host": host, "origin": origin})
    assert (caught.value.status, caught.value.code) == (403, "cross_site_request")
