"""What stands behind the front in tests/faults/front.py, as processes that can be killed.

python front_peer.py replica PORT          answers as an application's replica does, slowly enough to be caught
python front_peer.py proxy PORT REPLICA    answers as Serve's own proxy does: 500 where the replica is dead
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
from aiohttp import web

MODEL = {"X-Model-Version": "v1"}
WORK_S = 0.03


async def unary(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    await asyncio.sleep(WORK_S)
    return web.json_response({"length": len(body)}, headers=MODEL)


async def stream(request: web.Request) -> web.StreamResponse:
    await request.read()
    response = web.StreamResponse(headers={**MODEL, "Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(20):
        await response.write(f'data: {{"token": {number}}}\n\n'.encode())
        await asyncio.sleep(WORK_S)
    await response.write(b"data: [DONE]\n\n")
    return response


async def healthy(_: web.Request) -> web.StreamResponse:
    return web.Response(text="success")


def replica() -> web.Application:
    app = web.Application(client_max_size=2**26)
    app.router.add_get("/-/healthz", healthy)
    app.router.add_post("/app/v1/completions", stream)
    app.router.add_post("/app", unary)
    return app


def proxy(behind: int) -> web.Application:
    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        url = f"http://127.0.0.1:{behind}{request.path}"
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.post(url, data=body) as answer,
            ):
                return web.Response(status=answer.status, body=await answer.read(), headers=MODEL)
        except (aiohttp.ClientError, OSError):
            return web.Response(status=500, text="Internal Server Error")

    app = web.Application(client_max_size=2**26)
    app.router.add_get("/-/healthz", healthy)
    app.router.add_post("/{path:.*}", forward)
    return app


if __name__ == "__main__":
    made = replica() if sys.argv[1] == "replica" else proxy(int(sys.argv[3]))
    web.run_app(made, host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)
