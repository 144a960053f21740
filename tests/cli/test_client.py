"""The HTTP client against a real server on loopback: problems in words, uploads, and streams that break."""

import json

import pytest
from aiohttp import web

from controlplane.client import Client, RequestFailed, Unreachable


class Server:
    """A server that tells of one job over a stream which breaks after its first event."""

    def __init__(self):
        self.status = "running"
        self.asked_after = []
        self.form = {}

    async def events(self, request):
        last = request.headers.get("Last-Event-ID")
        self.asked_after.append(last)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        number = int(last or 0) + 1
        await response.write(b": a comment, to be passed over\n\n")
        await self.event(response, number, "running")
        if number == 1:
            request.transport.abort()
            return response
        self.status = "succeeded"
        await self.event(response, number + 1, "succeeded")
        return response

    @staticmethod
    async def event(response, number, status):
        told = json.dumps({"id": number, "data": {"progress": {"phase": status, "step": number}}})
        await response.write(f"id: {number}\nevent: job.progress\ndata: {told}\n\n".encode())

    async def job(self, request):
        return web.json_response({"id": request.match_info["id"], "status": self.status})

    async def characters(self, request):
        async for part in await request.multipart():
            self.form.setdefault(part.name, []).append((part.filename, part.headers["Content-Type"], await part.read()))
        return web.json_response({"character": {"id": "nell"}}, status=202)

    async def refuse(self, request):
        body = {"detail": "no such", "code": "not_found", "errors": [{"pointer": "/x", "detail": "why"}]}
        return web.json_response(body, status=404, content_type="application/problem+json")

    async def plain(self, request):
        return web.Response(status=502, text="<html>bad gateway</html>")


@pytest.fixture
def server():
    return Server()


@pytest.fixture
async def client(server):
    app = web.Application()
    app.router.add_get("/jobs/{id}/events", server.events)
    app.router.add_get("/jobs/{id}", server.job)
    app.router.add_post("/characters", server.characters)
    app.router.add_get("/refuse", server.refuse)
    app.router.add_get("/plain", server.plain)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with Client(f"http://127.0.0.1:{runner.addresses[0][1]}") as opened:
        yield opened
    await runner.cleanup()


async def test_a_job_is_followed_to_its_end_over_a_broken_stream(client):
    assert (await client.follow("job_1"))["status"] == "succeeded"


async def test_a_broken_stream_is_taken_up_where_it_broke(client, server):
    await client.follow("job_1")
    assert server.asked_after == [None, "1"]


async def test_every_event_is_told_once(client):
    told = []
    await client.follow("job_1", lambda data: told.append(data["progress"]["step"]))
    assert told == [1, 2, 3]


async def test_a_problem_document_becomes_words(client):
    with pytest.raises(RequestFailed) as caught:
        await client.get("/refuse")
    error = caught.value
    assert (error.http_status, error.problem_code, error.detail, error.errors[0]["pointer"]) == (
        404,
        "not_found",
        "no such",
        "/x",
    )


async def test_an_answer_that_is_no_problem_document_is_still_a_failure(client):
    with pytest.raises(RequestFailed, match="502"):
        await client.get("/plain")


async def test_a_server_that_is_not_there_is_unreachable(unused_tcp_port):
    async with Client(f"http://127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(Unreachable, match="No answer"):
            await client.get("/pods")


async def test_images_are_sent_as_files_and_objects_as_json(client, server, tmp_path):
    image = tmp_path / "zwölf.png"
    image.write_bytes(b"not really")
    await client.create_character("Nell ✨", [image], {"captions": {"zwölf.png": "smiling"}, "recipe": None})
    name, captions = server.form["name"][0][2].decode(), json.loads(server.form["captions"][0][2])
    assert (name, captions, server.form["images"]) == (
        "Nell ✨",
        {"zwölf.png": "smiling"},
        [("zwölf.png", "image/png", b"not really")],
    )


async def test_a_field_that_is_not_given_is_not_sent(client, server, tmp_path):
    await client.create_character("Nell", [], {"recipe": None})
    assert set(server.form) == {"name"}
