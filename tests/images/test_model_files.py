"""Model files reach a volume whole and verified, whatever the hub, the network and the disk do."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pod_images.model_files import ModelFile, ModelFilesError, Progress, Surroundings, fetch, load_manifest, main

from .hub_double import COMMIT, HubDouble

ROOT = Path(__file__).resolve().parents[2]
REPO, FILE = "maker/model", "big.safetensors"
# The hub's client hands bytes on in pieces of this size; a broken connection loses what is left of one.
PIECE = 10 << 20
Around = Callable[..., Surroundings]


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def wanted(body: bytes | None = None, **changes: object) -> ModelFile:
    """The manifest's line for the big file; pinned where its bytes are given."""
    pins = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)} if body is not None else {}
    return ModelFile(
        **{"folder": "checkpoints", "name": "m.safetensors", "repo": REPO, "file": FILE, **pins, **changes}
    )


def heard() -> tuple[list[Progress], Callable[[Progress], None]]:
    told: list[Progress] = []
    return told, told.append


def nothing(_progress: Progress) -> None:
    return


def names(folder: Path) -> list[str]:
    """Everything in the model folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(manifest: list[ModelFile], root: Path, around: Surroundings) -> ModelFilesError:
    with pytest.raises(ModelFilesError) as caught:
        fetch(manifest, root, nothing, around)
    return caught.value


def test_a_file_arrives_whole_under_its_name_and_nothing_else_is_left(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(3_000_000)
    fetch([wanted(body)], tmp_path, nothing, around())
    assert (tmp_path / "checkpoints/m.safetensors").read_bytes() == body
    assert names(tmp_path / "checkpoints") == ["m.safetensors"]


def test_what_was_verified_before_costs_no_request_and_no_hashing(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    fetch([wanted(body)], tmp_path, nothing, around())
    hub.asked.clear()
    told, hear = heard()
    fetch([wanted(body)], tmp_path, hear, around())
    assert (hub.asked, told) == ([], [])


def test_a_file_whose_time_changed_is_hashed_again_but_not_fetched_again(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    fetch([wanted(body)], tmp_path, nothing, around())
    os.utime(tmp_path / "checkpoints/m.safetensors", (1, 1))
    hub.asked.clear()
    told, hear = heard()
    fetch([wanted(body)], tmp_path, hear, around())
    assert hub.asked == []
    assert [progress.doing for progress in told] == ["checking", "checking"]


def test_a_pinned_file_put_there_by_hand_is_taken_without_the_hub(tmp_path: Path, around: Around) -> None:
    body = content(100_000)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/m.safetensors").write_bytes(body)
    fetch([wanted(body)], tmp_path, nothing, around(endpoint="http://127.0.0.1:9"))
    assert (tmp_path / ".troupe/verified/checkpoints/m.safetensors.json").exists()


def test_a_cut_connection_is_taken_up_where_it_broke(hub: HubDouble, around: Around, tmp_path: Path) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(25_000_000)
    hub.cut_after = [22_000_000]
    fetch([wanted(body)], tmp_path, nothing, around())
    assert [request.range for request in hub.bodies_asked()] == ["", f"bytes={2 * PIECE}-"]
    assert (tmp_path / "checkpoints/m.safetensors").read_bytes() == body


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub: HubDouble, around: Around, tmp_path: Path) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(25_000_000)
    hub.cut_after, hub.ignores_ranges = [12_000_000], True
    fetch([wanted(body)], tmp_path, nothing, around())
    assert (tmp_path / "checkpoints/m.safetensors").read_bytes() == body


def test_a_killed_fetch_is_continued_by_the_next_one_although_its_lock_is_still_there(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(40_000_000)
    manifest = written_manifest(tmp_path / "models.yaml", wanted(body))
    hub.bytes_per_second = 20_000_000
    process = command(hub, manifest, tmp_path / "root")
    part = wait_for_part(tmp_path / "root/checkpoints", at_least=PIECE)
    process.kill()
    process.wait()
    left, locks = part.stat().st_size, [name for name in names(part.parent) if name.endswith(".lock")]
    hub.bytes_per_second = 0
    fetch([wanted(body)], tmp_path / "root", nothing, around())
    assert locks == [".m.safetensors.lock"]
    assert hub.bodies_asked()[-1].range == f"bytes={left}-"
    assert names(part.parent) == ["m.safetensors"]


def test_a_spoilt_part_of_an_earlier_run_is_thrown_away_and_fetched_anew(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(500_000)
    (tmp_path / "checkpoints").mkdir()
    digest = hashlib.sha256(body).hexdigest()
    (tmp_path / f"checkpoints/.m.safetensors.{digest[:16]}.part").write_bytes(b"\0" * 100_000)
    fetch([wanted(body)], tmp_path, nothing, around())
    assert (tmp_path / "checkpoints/m.safetensors").read_bytes() == body
    assert [request.range for request in hub.bodies_asked()] == ["bytes=100000-", ""]


def test_a_hub_that_serves_another_digest_than_pinned_is_refused_before_the_first_byte(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    error = refused([wanted(content(100_000, seed=2))], tmp_path, around())
    assert (error.code, hub.bodies_asked()) == ("wrong_digest", [])
    assert names(tmp_path / "checkpoints") == []


def test_bytes_that_are_not_the_promised_ones_leave_nothing_behind(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    hub.serves_instead = content(100_000, seed=2)
    error = refused([wanted(body)], tmp_path, around())
    assert error.code == "wrong_digest"
    assert names(tmp_path / "checkpoints") == []


def test_what_the_manifest_does_not_pin_is_verified_against_the_hubs_own_sha256(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    hub.serves_instead = content(100_000, seed=2)
    assert refused([wanted()], tmp_path, around()).code == "wrong_digest"


def test_a_small_file_is_verified_by_the_digest_git_gave_it(hub: HubDouble, around: Around, tmp_path: Path) -> None:
    hub.small[f"{REPO}/vocab.json"] = b'{"a": 0}'
    hub.serves_instead = b'{"a": 1}'
    error = refused([wanted(file="vocab.json", name="vocab.json")], tmp_path, around())
    assert error.code == "wrong_digest"


def test_the_record_tells_the_digest_and_the_commit_that_was_found(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    hub.small[f"{REPO}/vocab.json"] = b'{"a": 0}'
    fetch([wanted(file="vocab.json", name="tok/vocab.json")], tmp_path, nothing, around())
    record = yaml.safe_load((tmp_path / ".troupe/verified/checkpoints/tok/vocab.json.json").read_text())
    assert (record["sha256"], record["commit"]) == (hashlib.sha256(b'{"a": 0}').hexdigest(), COMMIT)


REFUSALS = [
    (404, "EntryNotFound", "not_found", "has no file big.safetensors"),
    (404, "RevisionNotFound", "not_found", "has no revision main"),
    (404, "RepoNotFound", "not_found", "the hub has no maker/model at main"),
    (401, "", "unauthorised", "HF_TOKEN is not accepted"),
    (403, "GatedRepo", "forbidden", "accept its licence at https://huggingface.co/maker/model with the account"),
    (451, "", "refused", "the hub answered HTTP 451"),
]


@pytest.mark.parametrize(("status", "hub_code", "code", "words"), REFUSALS)
def test_a_refusal_of_the_hub_becomes_one_clear_sentence_without_the_token(
    hub: HubDouble, around: Around, tmp_path: Path, status: int, hub_code: str, code: str, words: str
) -> None:
    hub.refusals[f"{REPO}/{FILE}"] = (status, hub_code)
    error = refused([wanted()], tmp_path, around(token="hf_secret"))
    assert error.code == code
    assert words in str(error)
    assert "hf_secret" not in str(error) + repr(around(token="hf_secret"))


def test_without_a_token_a_closed_repository_says_which_variable_opens_it(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    hub.refusals[f"{REPO}/{FILE}"] = (401, "RepoNotFound")
    assert "set HF_TOKEN" in str(refused([wanted()], tmp_path, around()))


def test_the_token_goes_to_the_hub_and_never_to_the_servers_it_points_to(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    fetch([wanted()], tmp_path, nothing, around(token="hf_secret"))
    assert {(request.server, request.authorization) for request in hub.asked} == {
        ("hub", "Bearer hf_secret"),
        ("cdn", ""),
    }


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: HubDouble, around: Around, tmp_path: Path) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    hub.busy = [503, 429]
    fetch([wanted(body)], tmp_path, nothing, around())
    assert names(tmp_path / "checkpoints") == ["m.safetensors"]


def test_a_hub_that_stays_away_is_given_up_with_its_name_in_the_sentence(tmp_path: Path, around: Around) -> None:
    error = refused([wanted()], tmp_path, around(endpoint="http://127.0.0.1:9"))
    assert (error.code, str(error)) == (
        "unreachable",
        "checkpoints/m.safetensors: the hub cannot be reached (ConnectError)",
    )


def test_too_little_space_is_told_before_the_first_byte_with_what_is_missing(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    hub.lfs[f"{REPO}/{FILE}"] = content(20_000_000)
    error = refused([wanted()], tmp_path, around(free_bytes=lambda _root: 30_000_000))
    assert error.code == "no_space"
    assert "make the volume 0.26 GB larger" in str(error)
    assert hub.bodies_asked() == []


def test_what_is_downloaded_already_needs_no_space_again(hub: HubDouble, around: Around, tmp_path: Path) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(20_000_000)
    (tmp_path / "checkpoints").mkdir()
    part = tmp_path / f"checkpoints/.m.safetensors.{hashlib.sha256(body).hexdigest()[:16]}.part"
    part.write_bytes(body[:19_000_000])
    fetch([wanted(body)], tmp_path, nothing, around(free_bytes=lambda _root: (256 << 20) + 1_000_000))
    assert names(tmp_path / "checkpoints") == ["m.safetensors"]


def test_a_quota_met_while_writing_is_one_sentence_and_leaves_nothing_behind(hub: HubDouble, tmp_path: Path) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(3_000_000)
    manifest = written_manifest(tmp_path / "models.yaml", wanted(body))
    quota = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # noqa: E731
    process = command(hub, manifest, tmp_path / "root", before=quota)
    _out, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == (
        "checkpoints/m.safetensors: the disk (or its quota) was full after 1.00 MB of 3.00 MB"
    )
    assert names(tmp_path / "root/checkpoints") == []


def test_two_pods_on_one_volume_fetch_a_file_once(hub: HubDouble, around: Around, tmp_path: Path) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(1_500_000)
    hub.bytes_per_second = 1_500_000
    stories = [heard() for _ in range(2)]
    threads = [
        threading.Thread(target=fetch, args=([wanted(body)], tmp_path, hear, around())) for _told, hear in stories
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    doings = sorted({progress.doing for progress in told} for told, _hear in stories)
    assert len(hub.bodies_asked()) == 1
    assert any("waiting" in seen for seen in doings)
    assert names(tmp_path / "checkpoints") == ["m.safetensors"]


def test_a_file_of_somebody_else_in_the_way_is_refused_and_left_alone(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/m.safetensors").write_bytes(b"my own work")
    assert refused([wanted(body)], tmp_path, around()).code == "in_the_way"
    assert (tmp_path / "checkpoints/m.safetensors").read_bytes() == b"my own work"


def test_a_new_digest_in_the_manifest_replaces_the_file_that_was_fetched_for_the_old_one(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    old = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    fetch([wanted(old)], tmp_path, nothing, around())
    new = hub.lfs[f"{REPO}/{FILE}"] = content(120_000, seed=2)
    fetch([wanted(new, revision=COMMIT)], tmp_path, nothing, around())
    assert (tmp_path / "checkpoints/m.safetensors").read_bytes() == new


def test_pieces_of_an_older_content_are_swept_away(hub: HubDouble, around: Around, tmp_path: Path) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.m.safetensors.ffffffffffffffff.part").write_bytes(b"old")
    fetch([wanted(body)], tmp_path, nothing, around())
    assert names(tmp_path / "checkpoints") == ["m.safetensors"]


def test_who_hears_the_progress_may_stop_the_fetch_and_its_bytes_are_kept(
    hub: HubDouble, around: Around, tmp_path: Path
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(40_000_000)
    hub.bytes_per_second = 15_000_000

    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done_bytes:
            raise Stopped

    with pytest.raises(Stopped):
        fetch([wanted(body)], tmp_path, stop, around())
    assert [name.split(".")[-1] for name in names(tmp_path / "checkpoints")] == ["part"]


def test_progress_counts_over_all_files_and_ends_at_a_hundred(hub: HubDouble, around: Around, tmp_path: Path) -> None:
    hub.lfs[f"{REPO}/{FILE}"] = content(3_000_000)
    hub.small[f"{REPO}/vocab.json"] = b"x" * 1_000_000
    told, hear = heard()
    fetch([wanted(), wanted(file="vocab.json", name="vocab.json")], tmp_path, hear, around())
    assert [(progress.name, progress.percent) for progress in told if progress.done_bytes == progress.total_bytes][
        -2:
    ] == [("checkpoints/m.safetensors", 75.0), ("checkpoints/vocab.json", 100.0)]


BAD_MANIFESTS = [
    ({"folder": "a", "name": "b", "repo": "c/d", "file": "e", "sha265": "f"}, "sha265"),
    ({"folder": "a", "name": "b", "repo": "c/d"}, "file missing"),
    ({"folder": "a", "name": "../../b", "repo": "c/d", "file": "e"}, "leaves the model folder"),
    ({"folder": "/a", "name": "b", "repo": "c/d", "file": "e"}, "leaves the model folder"),
    ({"folder": "a", "name": "b", "repo": "c/d", "file": "e", "sha256": "12"}, "not 64 hex digits"),
    ({"folder": "a", "name": "b", "repo": "c/d", "file": "e", "bytes": "12"}, "bytes: '12' is no int"),
]


@pytest.mark.parametrize(("row", "words"), BAD_MANIFESTS)
def test_a_manifest_at_fault_is_refused_with_the_fault(tmp_path: Path, row: dict[str, object], words: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump([row]))
    with pytest.raises(ModelFilesError, match=words):
        load_manifest(path)


def test_the_command_says_what_it_verified(hub: HubDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    manifest = written_manifest(tmp_path / "models.yaml", wanted(body))
    assert main([str(manifest), str(tmp_path / "root")]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "1 model files (0.10 MB) are verified"


def test_the_command_says_what_the_disk_says(
    hub: HubDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(100_000)
    manifest = written_manifest(tmp_path / "models.yaml", wanted(body))
    (tmp_path / "root").touch()
    assert main([str(manifest), str(tmp_path / "root")]) == 1
    assert f"File exists: '{tmp_path}/root'" in capsys.readouterr().err


def test_the_command_stops_politely_on_ctrl_c_and_keeps_the_bytes(hub: HubDouble, tmp_path: Path) -> None:
    body = hub.lfs[f"{REPO}/{FILE}"] = content(40_000_000)
    manifest = written_manifest(tmp_path / "models.yaml", wanted(body))
    hub.bytes_per_second = 20_000_000
    process = command(hub, manifest, tmp_path / "root")
    part = wait_for_part(tmp_path / "root/checkpoints", at_least=PIECE)
    process.send_signal(signal.SIGINT)
    _out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (
        130,
        "stopped; what was downloaded is kept and continued next time",
    )
    assert names(part.parent) == [part.name]


def written_manifest(path: Path, file: ModelFile) -> Path:
    path.write_text(yaml.safe_dump([{key: value for key, value in vars(file).items() if value}]))
    return path


def command(
    hub: HubDouble, manifest: Path, root: Path, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """`python -m pod_images.model_files` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pod_images.model_files", str(manifest), str(root)],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(root.parent / "hf")},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def wait_for_part(folder: Path, at_least: int) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in folder.glob(".*.part") if folder.exists() else ():
            if path.stat().st_size >= at_least:
                return path
        time.sleep(0.02)
    raise AssertionError("the download did not begin")
