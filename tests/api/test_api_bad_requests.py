"""Bad requests over real HTTP: the right problem document for each, naming the place of the fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .api_pictures import pictures
from .api_server import Answer, Api, form_of

NAMES = {
    "emoji": "🦊 Fox 🦊",
    "right-to-left": "مرحبا بالعالم",
    "path": "../../etc/passwd",
    "markup": "<script>alert(1)</script>",
    "joined emoji": "👩‍👩‍👧‍👦",
    "sql": "Robert'); DROP TABLE jobs;--",
}


def pointers(answer: Answer) -> set[str]:
    return {error["pointer"] for error in answer.body.get("errors", [])}


@pytest.mark.usefixtures("pod")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
async def test_any_real_name_is_kept_and_its_slug_is_safe(api: Api, name: str) -> None:
    answer = await api.create({"name": name, "recipe": "fast"}, pictures(6))
    assert answer.status == 202
    character = answer.body["character"]
    assert character["name"] == name
    assert character["id"].replace("-", "").isalnum()
    assert character["id"].isascii()


@pytest.mark.parametrize("name", ["", "   ", "x" * 10_000, "a\0b"], ids=["empty", "blank", "long", "NUL"])
async def test_a_name_that_is_none_is_refused_at_its_place(api: Api, name: str) -> None:
    answer = await api.create({"name": name}, pictures(6))
    assert answer.status in (400, 422)
    assert pointers(answer) == {"/name"}


async def test_a_missing_name_is_refused_at_its_place(api: Api) -> None:
    answer = await api.create({"class_word": "woman"}, pictures(6))
    assert (answer.status, pointers(answer)) == (422, {"/name"})


async def test_an_unknown_form_field_is_refused_by_name(api: Api) -> None:
    answer = await api.create({"name": "Mira", "colour": "red"}, pictures(6))
    assert (answer.status, pointers(answer)) == (422, {"/colour"})


@pytest.mark.parametrize("field", ["metadata", "captions", "consent"])
async def test_a_json_field_that_is_no_json_is_refused_at_its_place(api: Api, field: str) -> None:
    answer = await api.create({"name": "Mira", field: "{not json"}, pictures(6))
    assert (answer.status, pointers(answer)) == (400, {f"/{field}"})


@pytest.mark.parametrize("word", ["ab", "has space", "toolongforatrigger", "Große"])
async def test_a_trigger_word_that_is_none_is_refused_at_its_place(api: Api, word: str) -> None:
    answer = await api.create({"name": "Mira", "trigger_word": word}, pictures(6))
    assert (answer.status, pointers(answer)) == (422, {"/trigger_word"})


@pytest.mark.usefixtures("pod")
async def test_a_real_person_needs_consent(api: Api) -> None:
    answer = await api.create({"name": "Mira", "subject": "real"}, pictures(6))
    assert (answer.status, pointers(answer)) == (422, {"/consent"})


@pytest.mark.usefixtures("pod")
async def test_a_real_person_with_consent_is_accepted_and_the_consent_is_kept(api: Api) -> None:
    consent = json.dumps({"attested_by": "Ada", "text_version": "2026-11"})
    answer = await api.create({"name": "Ada L", "subject": "real", "consent": consent}, pictures(6))
    assert answer.status == 202
    assert answer.body["character"]["consent"]["attested_by"] == "Ada"


async def test_json_where_a_form_is_due_is_refused(api: Api) -> None:
    answer = await api.post("/characters", json={"name": "Mira"})
    assert (answer.status, answer.body["code"]) == (415, "unsupported_media_type")


async def test_a_form_that_breaks_off_is_refused(api: Api) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nMira'
    answer = await api.post("/characters", data=head, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status == 400


async def test_a_form_without_its_boundary_is_refused(api: Api) -> None:
    answer = await api.post("/characters", data=b"x", headers={"Content-Type": "multipart/form-data"})
    assert answer.status == 400


async def test_a_field_given_twice_is_refused(api: Api) -> None:
    form = form_of({"name": "Mira"}, pictures(6))
    form.add_field("name", "Myra")
    answer = await api.post("/characters", data=form)
    assert (answer.status, pointers(answer)) == (422, {"/name"})


BODIES = {
    "NaN": '{"prompt": "x", "cfg": NaN}',
    "Infinity": '{"prompt": "x", "cfg": Infinity}',
    "a number beyond all bounds": '{"prompt": "x", "cfg": 1e999}',
    "an unclosed object": '{"prompt": "x"',
    "nothing": "",
    "a member twice": '{"prompt": "x", "prompt": "y"}',
    "half a surrogate pair": '{"prompt": "\\ud800"}',
    "NUL": '{"prompt": "a\\u0000b"}',
    "deep nesting": "[" * 100_000,
    "a number of 5,000 digits": '{"prompt": "x", "seed": ' + "9" * 5000 + "}",
    "not UTF-8": b'{"prompt": "\xff"}',
}


@pytest.mark.parametrize("path", ["/generate-image", "/generate-video"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_body_that_is_no_good_json_is_a_bad_request(api: Api, path: str, body: str | bytes) -> None:
    answer = await api.post(path, data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.body["code"]) == (400, "bad_request")


VALUES: dict[str, Any] = {
    "prompt": "",
    "seed": -1,
    "steps": "many",
    "cfg": -3,
    "width": 0,
    "count": 0,
    "metadata": "text",
    "format": "bmp",
    "rating": "explicit",
    "version": 0,
}


@pytest.mark.parametrize("field", VALUES)
async def test_a_value_out_of_bounds_is_refused_at_its_place(api: Api, field: str) -> None:
    answer = await api.post("/generate-image", json={"prompt": "smiling", field: VALUES[field]})
    assert (answer.status, answer.body["code"]) == (422, "invalid_request")
    assert f"/{field}" in pointers(answer)


async def test_text_instead_of_json_is_refused(api: Api) -> None:
    answer = await api.post("/generate-image", data="prompt=x", headers={"Content-Type": "text/plain"})
    assert answer.status == 415


async def test_a_body_that_is_too_large_is_refused(api: Api) -> None:
    answer = await api.post("/generate-image", json={"prompt": "x" * 2_000_000})
    assert (answer.status, answer.body["code"]) == (413, "payload_too_large")


LISTS = ["/jobs", "/characters", "/assets"]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=ten", "colour=red", "limit=5&limit=6"], ids=lambda query: query
)
async def test_a_query_that_is_not_understood_is_refused(api: Api, path: str, query: str) -> None:
    answer = await api.get(f"{path}?{query}")
    assert (answer.status, pointers(answer)) == (422, {f"?{query.split('=')[0]}"})


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("cursor", ["zzz", "bnVsbA", "W10", "%C3%A4", "W05hTiwgMV0", "WzEsIlx1ZDgwMCJd"])
async def test_a_cursor_that_is_none_of_ours_is_refused(api: Api, path: str, cursor: str) -> None:
    answer = await api.get(f"{path}?cursor={cursor}")
    assert answer.status in (400, 422)


MISSING = [
    ("GET", "/characters/nobody", "character_not_found"),
    ("DELETE", "/characters/nobody", "character_not_found"),
    ("POST", "/characters/nobody/versions/1/activate", "character_not_found"),
    ("POST", "/characters/nobody/versions/one/activate", "not_found"),
    ("GET", "/jobs/job_nosuch", "not_found"),
    ("DELETE", "/jobs/job_nosuch", "not_found"),
    ("GET", "/jobs/job_nosuch/events", "not_found"),
    ("GET", "/assets/asset_nosuch", "not_found"),
    ("DELETE", "/assets/asset_nosuch", "not_found"),
    ("DELETE", "/pods/pod_nosuch", "not_found"),
]


@pytest.mark.parametrize(("method", "path", "code"), MISSING)
async def test_what_does_not_exist_is_not_found(api: Api, method: str, path: str, code: str) -> None:
    answer = await api.call(method, path)
    assert (answer.status, answer.body["code"]) == (404, code)
