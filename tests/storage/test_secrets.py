"""Secrets made on first start are kept, private, and give way to what the operator set."""

from __future__ import annotations

import stat
from pathlib import Path

from pydantic import SecretStr

from controlplane.settings import Settings
from controlplane.storage.secrets import load_secrets


def test_the_secrets_of_the_first_start_are_kept(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    assert load_secrets(settings) == load_secrets(settings)


def test_only_the_owner_can_read_them(tmp_path: Path) -> None:
    load_secrets(Settings(data=tmp_path))
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_two_installations_have_different_secrets(tmp_path: Path) -> None:
    one, other = load_secrets(Settings(data=tmp_path / "a")), load_secrets(Settings(data=tmp_path / "b"))
    assert one.join_token != other.join_token
    assert one.signing_key != other.signing_key


def test_what_the_operator_sets_wins(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, join_token=SecretStr("my own token"))
    assert load_secrets(settings).join_token == "my own token"


def test_the_secrets_do_not_show_when_printed(tmp_path: Path) -> None:
    secrets = load_secrets(Settings(data=tmp_path))
    assert secrets.signing_key not in repr(secrets)
