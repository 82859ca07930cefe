import asyncio
import os
import stat
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from nagaya.errors import KeyDestroyed, KeyDisabled, NotFound, RootKeyRefused, SealBroken, SettingsInvalid
from nagaya.keys.driver import KeyContext
from nagaya.keys.local import LocalKeyService
from nagaya.keys.root import RootKey, open_root_key
from nagaya.keys.small_files import make_folder, wipe, write_new

CONTEXT = KeyContext(tenant="acme", key="acme", version=1, purpose="tenant-data")
PASSPHRASE = {"ROOT": "correct horse battery staple"}
CHEAP = 2**4  # scrypt's cost is not what these tests are about


async def service(folder: Path) -> LocalKeyService:
    return await LocalKeyService.open(folder, create=True)


async def wrapped_in(folder: Path) -> bytes:
    keys = await service(folder)
    _, wrapped = await keys.generate(CONTEXT)
    await keys.close()
    return wrapped


def refusal(folder: Path, reference: str | None = None, **more: object) -> str:
    with pytest.raises(RootKeyRefused) as refused:
        open_root_key(folder, reference, scrypt_n=CHEAP, **more)  # type: ignore[arg-type]  # passed through
    assert refused.value.message("ja") != refused.value.message("en")
    return str(refused.value)


def test_the_pairs_a_cloud_key_service_binds_a_key_to() -> None:
    assert CONTEXT.encryption_context() == {
        "app": "nagaya",
        "tenant": "acme",
        "key": "acme",
        "version": "1",
        "purpose": "tenant-data",
    }


# --- the root key -------------------------------------------------------------------------------------------------


async def test_a_root_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        await wrapped_in(tmp_path / "service")
    finally:
        os.umask(previous)
    for path in (tmp_path / "service").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert not list((tmp_path / "service").rglob(".*"))


def test_a_root_key_is_never_made_unasked(tmp_path: Path) -> None:
    assert "none was made yet" in refusal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_making_a_root_key_again_keeps_the_first(tmp_path: Path) -> None:
    first = open_root_key(tmp_path, create=True).derive("x")
    assert open_root_key(tmp_path, create=True).derive("x") == first
    assert open_root_key(tmp_path).derive("x") == first


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o777])
@pytest.mark.parametrize("name", ["root.key", "root.check"])
def test_a_file_that_others_can_use_is_refused_with_the_cure(tmp_path: Path, mode: int, name: str) -> None:
    open_root_key(tmp_path, create=True)
    (tmp_path / name).chmod(mode)
    assert f"chmod 600 {tmp_path / name}" in refusal(tmp_path)
    (tmp_path / name).chmod(0o600)
    open_root_key(tmp_path)


async def test_a_missing_root_key_is_refused_where_keys_are_wrapped_under_it(tmp_path: Path) -> None:
    await wrapped_in(tmp_path)
    (tmp_path / "root.key").unlink()
    for create in (False, True):
        assert "put it back from your backup" in refusal(tmp_path, create=create)
    assert not (tmp_path / "root.key").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"no base64!", b"\xff\xfe", b64encode(b"k" * 31), b64encode(b"k" * 33)]
)
def test_a_malformed_root_key_is_refused(tmp_path: Path, content: bytes) -> None:
    open_root_key(tmp_path, create=True)
    (tmp_path / "root.key").write_bytes(content)
    assert "32" in refusal(tmp_path)


def test_another_root_key_is_told_at_start(tmp_path: Path) -> None:
    open_root_key(tmp_path, create=True)
    (tmp_path / "root.key").write_bytes(b64encode(b"k" * 32))
    assert "not the root key" in refusal(tmp_path)


async def test_without_the_check_value_nobody_guesses(tmp_path: Path) -> None:
    await wrapped_in(tmp_path)
    (tmp_path / "root.check").unlink()
    for create in (False, True):
        assert "root.check is missing" in refusal(tmp_path, create=create)


def test_a_root_key_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(tmp_path, f"file:{tmp_path / 'loop'}")


def test_a_root_key_may_lie_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.key"
    made = open_root_key(tmp_path / "service", f"file:{elsewhere}", create=True)
    assert elsewhere.exists()
    assert not (tmp_path / "service" / "root.key").exists()
    assert open_root_key(tmp_path / "service", f"file:{elsewhere}").derive("x") == made.derive("x")


def test_a_root_key_may_come_from_the_environment(tmp_path: Path) -> None:
    environment = {"ROOT": b64encode(b"k" * 32).decode()}
    made = open_root_key(tmp_path, "env://ROOT", create=True, environment=environment)
    assert open_root_key(tmp_path, "env://ROOT", environment=environment).derive("x") == made.derive("x")
    assert [path.name for path in tmp_path.iterdir()] == ["root.check"]
    assert "not the root key" in refusal(tmp_path, "env://ROOT", environment={"ROOT": b64encode(b"x" * 32).decode()})
    assert "malformed" in refusal(tmp_path, "env://ROOT", environment={"ROOT": "?"})
    with pytest.raises(SettingsInvalid):
        open_root_key(tmp_path, "env://ROOT", environment={})


def test_a_root_key_may_come_from_a_passphrase(tmp_path: Path) -> None:
    reference = "passphrase-env://ROOT"
    made = open_root_key(tmp_path, reference, create=True, environment=PASSPHRASE, scrypt_n=CHEAP)
    again = open_root_key(tmp_path, reference, environment=PASSPHRASE, scrypt_n=CHEAP)
    assert again.derive("x") == made.derive("x")
    assert "not the root key" in refusal(tmp_path, reference, environment={"ROOT": "wrong horse battery staple"})
    assert "shorter than 12" in refusal(tmp_path, reference, environment={"ROOT": "short"})
    for content in (b"zz", b"00", b"\xff"):
        (tmp_path / "root.salt").write_bytes(content)
        assert "root.salt" in refusal(tmp_path, reference, environment=PASSPHRASE)
    (tmp_path / "root.salt").unlink()
    assert "root.salt" in refusal(tmp_path, reference, environment=PASSPHRASE)


def test_a_root_key_does_not_show_itself() -> None:
    assert "k" * 8 not in repr(RootKey(b"k" * 32))
    assert RootKey(b"k" * 32).derive("a", "bc") != RootKey(b"k" * 32).derive("a", "b", "c")


def test_two_processes_that_start_at_once_agree_on_one_root_key(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from nagaya.keys.root import open_root_key;"
        "print(open_root_key(pathlib.Path(sys.argv[1]), create=True).derive('x').hex())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = {process.communicate(timeout=120)[0] for process in started}
    assert len(printed) == 1
    assert len(printed.pop()) == 65


# --- tenants' keys ------------------------------------------------------------------------------------------------


async def test_a_key_survives_a_restart(tmp_path: Path) -> None:
    first = await service(tmp_path)
    plain, wrapped = await first.generate(CONTEXT)
    await first.close()
    second = await LocalKeyService.open(tmp_path)
    assert await second.unwrap(wrapped, CONTEXT) == plain
    await second.close()


async def test_a_change_by_one_process_holds_in_another_at_once(tmp_path: Path) -> None:
    one, other = await service(tmp_path), await service(tmp_path)
    plain, wrapped = await one.generate(CONTEXT)
    assert await other.unwrap(wrapped, CONTEXT) == plain
    await one.disable("acme")
    with pytest.raises(KeyDisabled):
        await other.unwrap(wrapped, CONTEXT)
    await other.enable("acme")
    assert await one.unwrap(wrapped, CONTEXT) == plain
    await other.destroy("acme")
    with pytest.raises(KeyDestroyed):
        await one.unwrap(wrapped, CONTEXT)


async def test_who_keeps_the_root_key_cannot_open_a_destroyed_key_either(tmp_path: Path) -> None:
    keys = await service(tmp_path)
    _, wrapped = await keys.generate(CONTEXT)
    await keys.destroy("acme")
    assert not (tmp_path / "keys" / "acme.key").exists()
    # Even with the tombstone taken away: what made the wrapping key is gone.
    (tmp_path / "keys" / "acme.destroyed").unlink()
    with pytest.raises(SealBroken):
        await keys.unwrap(wrapped, CONTEXT)
    await keys.generate(CONTEXT)
    with pytest.raises(SealBroken):
        await keys.unwrap(wrapped, CONTEXT)


async def test_a_crash_while_destroying_leaves_a_key_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = await service(tmp_path)
    _, wrapped = await keys.generate(CONTEXT)

    def crash(path: Path) -> None:
        raise OSError(5, "I/O error")

    with monkeypatch.context() as broken:
        broken.setattr("nagaya.keys.local.wipe", crash)
        with pytest.raises(OSError):
            await keys.destroy("acme")
    with pytest.raises(KeyDestroyed):
        await keys.unwrap(wrapped, CONTEXT)
    await keys.destroy("acme")
    assert not (tmp_path / "keys" / "acme.key").exists()


async def test_a_truncated_secret_does_not_wrap_anything(tmp_path: Path) -> None:
    keys = await service(tmp_path)
    _, wrapped = await keys.generate(CONTEXT)
    (tmp_path / "keys" / "acme.key").write_bytes(b"")
    with pytest.raises(SealBroken):
        await keys.unwrap(wrapped, CONTEXT)
    with pytest.raises(SealBroken):
        await keys.generate(CONTEXT)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../root", "a/b", "/etc/passwd", "a\0b", "a.key", "ACME", "acmé", "a\n", " a", "a" * 81, "-a"],
)
async def test_a_name_never_leaves_the_folder(tmp_path: Path, name: str) -> None:
    keys = await service(tmp_path / "service")
    before = sorted(tmp_path.rglob("*"))
    context = CONTEXT._replace(key=name)
    for call in (keys.generate(context), keys.unwrap(b"x", context), *(f(name) for f in (keys.disable, keys.destroy))):
        with pytest.raises(NotFound):
            await call
    assert sorted(tmp_path.rglob("*")) == before


async def test_two_that_make_one_name_at_once_share_its_secret(tmp_path: Path) -> None:
    services = [await service(tmp_path) for _ in range(4)]
    made = await asyncio.gather(*(each.generate(CONTEXT) for each in services))
    for plain, wrapped in made:
        assert await services[0].unwrap(wrapped, CONTEXT) == plain


# --- files --------------------------------------------------------------------------------------------------------


def test_a_file_that_could_not_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_new(tmp_path / "root.key", b"x")
    assert list(tmp_path.iterdir()) == []


def test_wiping_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    make_folder(tmp_path / "new")
    wipe(tmp_path / "new" / "nothing")


async def test_a_key_that_was_made_for_nothing_is_forgotten_and_a_destroyed_one_stays_so(tmp_path: Path) -> None:
    keys = await service(tmp_path)
    await keys.generate(CONTEXT)
    await keys.disable("acme")
    for _ in range(2):
        await keys.retract("acme")
        with pytest.raises(NotFound):
            await keys.status("acme")
    await keys.generate(CONTEXT)
    await keys.destroy("acme")
    await keys.retract("acme")
    assert await keys.status("acme") == "destroyed"
    await keys.close()
