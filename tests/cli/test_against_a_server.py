"""The client commands against a real server on loopback: what they send, what they print, how they end."""

import json

import pytest
from aiohttp import web
from rich.console import Console

from controlplane.cli import commands
from controlplane.cli.arguments import build_parser
from controlplane.client import RequestFailed


class Server:
    """Takes one request for a picture and answers with a job that has ended as it was told to."""

    def __init__(self):
        self.sent = {}
        self.status = "succeeded"
        self.url = ""

    def job(self):
        failed = {"code": "execution_error", "detail": "KSampler failed: [no] luck"}
        asset = {"id": "asset_1", "url": f"{self.url}/files/default/nell/2026-11-20/job_1-0.png"}
        return {
            "id": "job_1",
            "kind": "image",
            "status": self.status,
            "progress": {},
            "warnings": [],
            "assets": [asset] if self.status == "succeeded" else [],
            "error": failed if self.status == "failed" else None,
        }

    async def generate(self, request):
        self.sent = await request.json()
        if self.sent["prompt"] == "":
            return web.json_response({"detail": "prompt is empty", "code": "invalid_request"}, status=422)
        return web.json_response({"job": self.job(), "links": {}}, status=202)

    async def events(self, request):
        return web.Response(text="", content_type="text/event-stream")

    async def get_job(self, request):
        return web.json_response(self.job())

    async def file(self, request):
        return web.Response(body=b"a picture", content_type="image/png")


@pytest.fixture
async def server():
    server = Server()
    app = web.Application()
    app.router.add_post("/generate-image", server.generate)
    app.router.add_get("/jobs/{id}", server.get_job)
    app.router.add_get("/jobs/{id}/events", server.events)
    app.router.add_get("/files/{key:.*}", server.file)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


async def troupe(server, command, *arguments, capture=None):
    options = build_parser().parse_args([command, "--url", server.url, *arguments])
    return await getattr(commands, command)(options, capture or Console())


async def test_only_what_was_given_is_sent(server):
    await troupe(server, "image", "nell", "smiling, in a forest", "--seed", "7", "--strength", "0")
    assert server.sent == {"character_id": "nell", "prompt": "smiling, in a forest", "seed": 7, "lora_strength": 0.0}


async def test_urgency_is_sent_under_the_names_of_the_api(server):
    await troupe(server, "image", "nell", "smiling", "--priority", "-5", "--deadline", "90")
    assert (server.sent["priority"], server.sent["deadline_seconds"]) == (-5, 90.0)


async def test_the_urls_of_what_came_out_are_printed(server, capsys):
    await troupe(server, "image", "nell", "smiling")
    assert f"{server.url}/files/default/nell/2026-11-20/job_1-0.png" in capsys.readouterr().out


async def test_a_job_that_succeeded_is_exit_code_0(server):
    assert await troupe(server, "image", "nell", "smiling") == 0


async def test_a_job_that_failed_is_exit_code_1(server):
    server.status = "failed"
    assert await troupe(server, "image", "nell", "smiling") == 1


async def test_the_reason_of_a_failure_is_printed_as_it_is(server, capsys):
    server.status = "failed"
    await troupe(server, "image", "nell", "smiling")
    assert "KSampler failed: [no] luck" in capsys.readouterr().err


async def test_files_are_saved_under_their_own_names(server, tmp_path):
    await troupe(server, "image", "nell", "smiling", "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "job_1-0.png").read_bytes() == b"a picture"


async def test_json_is_nothing_but_json(server, capsys):
    await troupe(server, "image", "nell", "smiling", "--json")
    assert json.loads(capsys.readouterr().out)["id"] == "job_1"


async def test_without_waiting_the_job_is_named(server, capsys):
    server.status = "queued"
    await troupe(server, "image", "nell", "smiling", "--no-wait")
    assert capsys.readouterr().out == "job job_1\n"


async def test_a_refusal_is_raised_with_the_servers_words(server):
    with pytest.raises(RequestFailed, match="prompt is empty"):
        await troupe(server, "image", "nell", "")
