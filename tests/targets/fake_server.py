"""An engine's server that holds no model: `python fake_server.py PORT [--gap S] [--log LINE] [--fail N]`. Streams words at a steady pace.

Every Nth request is refused with `--fail`. `/v1/token/decode` answers with text, as TabbyAPI's does.
"""

from __future__ import annotations

import argparse
import asyncio
import json

_EVENT = {"id": "cmpl-0", "object": "text_completion", "created": 1, "model": "fake", "usage": None}


class Server:
    def __init__(self, gap: float, fail: int) -> None:
        self.gap, self.fail = gap, fail
        self.seen = self.running = self.most = 0
        self.prompts: list[object] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length")), 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        path = head.split()[1]
        if path == "/v1/completions":
            await self.complete(body, writer)
        elif path == "/v1/token/decode":
            self.send(writer, 200, {"text": " ".join(map(str, body["tokens"]))})
        elif path == "/metrics":
            self.tell(writer)
        elif path == "/seen":
            self.send(writer, 200, {"most": self.most, "prompts": self.prompts})
        else:
            self.send(writer, 200 if path == "/health" else 404, {})
        await writer.drain()
        writer.close()

    def send(self, writer: asyncio.StreamWriter, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d said\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text))

    def tell(self, writer: asyncio.StreamWriter) -> None:
        """Metrics as vLLM tells them, of two engines; a third of the requests lost its blocks."""
        share = min(1.0, self.running / 4)
        text = (
            "# HELP vllm:num_requests_running of two engines\n"
            f'vllm:num_requests_running{{engine="0",model_name="a b"}} {self.running - self.running // 2}.0\n'
            f'vllm:num_requests_running{{engine="1",model_name="a b"}} {self.running // 2}.0\n'
            f'vllm:num_requests_waiting{{engine="0"}} 0.0\nvllm:kv_cache_usage_perc{{engine="0"}} {share}\n'
            f'vllm:num_preemptions_total{{engine="0"}} {self.seen // 3}.0\n'
        ).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))

    async def complete(self, body: dict, writer: asyncio.StreamWriter) -> None:
        self.seen += 1
        self.prompts.append(body["prompt"])
        if self.fail and self.seen % self.fail == 0:
            self.send(writer, 503, {"error": "no room"})
            return
        self.running += 1
        self.most = max(self.most, self.running)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
        due = asyncio.get_running_loop().time()
        for _ in range(body["max_tokens"]):
            due += self.gap
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            self.event(writer, json.dumps(_EVENT | {"choices": [{"index": 0, "text": " word"}]}))
            await writer.drain()
        self.event(writer, json.dumps(_EVENT | {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}}))
        self.event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        self.running -= 1

    def event(self, writer: asyncio.StreamWriter, data: str) -> None:
        text = f"data: {data}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(text), text))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--gap", type=float, default=0.002)
    parser.add_argument("--fail", type=int, default=0)
    parser.add_argument("--log", default="")
    asked = parser.parse_args()
    print(asked.log, flush=True)
    served = await asyncio.start_server(Server(asked.gap, asked.fail).answer, "127.0.0.1", asked.port, backlog=512)
    async with served:
        await served.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
