"""A model behind transformers' server, or llama.cpp's, that does not outlive who started it.

Used by lessons: 09, 12.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, NamedTuple

HOST = "127.0.0.1"  # this machine alone
GGUF = "--gguf"  # before the file that llama.cpp serves
KEY = "COURSE_SERVER_KEY"  # a variable, since every user of a machine can read command lines
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past any proxy


class Served(NamedTuple):
    """What an OpenAI client needs: `base_url=address, api_key=key`."""

    address: str
    key: str


@contextmanager
def serve(
    folder: str | Path, options: Sequence[str] = (), timeout: float = 180.0
) -> Iterator[Served]:
    """Run `transformers serve` on a model's folder, and yield address and key for an OpenAI client.

    The address is such as "http://127.0.0.1:8123/v1"; a request's `model` is `folder` as given
    here. The command itself has no key, and other users of this machine reach the address, too;
    here each request but /health has to bring the key, which is another one each time. Before the
    address is handed out, the server is asked for its models without a key, and stopped unless it
    refuses. `options` are more options of the command line. The server is offline, and stopped when
    the block ends, by an error too; if this process is killed, the server ends by itself.

    Raises:
        FileNotFoundError: if the folder holds no model.
        RuntimeError: if the server ends, does not answer within `timeout` seconds, or answers
            without a key.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no config.json. A folder with a whole model is served: merge an "
            "adapter first, and write both with model.save_pretrained(folder) and "
            "tokenizer.save_pretrained(folder)."
        )
    with _running([str(folder), *options], timeout, "transformers serve FOLDER") as served:
        yield served


@contextmanager
def serve_gguf(
    file: str | Path,
    adapters: Sequence[str | Path] = (),
    *,
    exact: bool = False,
    context: int = 512,
    threads: int = 1,
    port: int | None = None,
    timeout: float = 60.0,
) -> Iterator[Served]:
    """Run llama.cpp's server on a GGUF file, and yield address and key for an OpenAI client.

    It is the server of `llama-server -m FILE --lora ADAPTER`, in a process of its own, since some
    files end the engine and what it runs in. `exact` keeps its cache in float32 (it is float16
    otherwise) and the plain order of sums. The key, the address and the end are as in `serve`; what
    is not in OpenAI's format (/completion, /tokenize) stands next to "/v1", with the same key.

    Raises:
        FileNotFoundError: if a file is not there.
        OSError: if the port is taken.
        RuntimeError: if the server ends, does not answer in time, or answers without a key.
    """
    for one in (file, *adapters):
        if not Path(one).is_file():
            raise FileNotFoundError(
                f"There is no file '{one}'. Allowed is a GGUF file, as gguf_files writes it. "
                "Convert a model or adapter first."
            )
    if port is not None:
        _require_free(port)
    options = ["--context", str(context), "--threads", str(threads), *["--exact"] * exact]
    loras = [word for one in adapters for word in ("--lora", str(one))]
    given = [GGUF, str(file), *loras, *options]
    with _running(given, timeout, "llama-server -m FILE", port) as served:
        yield served


@contextmanager
def _running(
    arguments: Sequence[str], timeout: float, terminal: str, port: int | None = None
) -> Iterator[Served]:
    """Run this file as a server in a process of its own, with a new key."""
    port, key = port or free_port(), secrets.token_urlsafe()
    # By its path: where the package is not installed, a child process would not find its name.
    # -P keeps that path's folder out of sys.path, where our modules would hide others' by name.
    command = [sys.executable, "-P", __file__, *arguments, "--host", HOST, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", KEY: key},
        )
        try:
            _wait(process, f"http://{HOST}:{port}/health", timeout, log, terminal)
            require_refusal(f"http://{HOST}:{port}/v1/models")
            yield Served(f"http://{HOST}:{port}/v1", key)
        finally:
            _stop(process)


def _require_free(port: int) -> None:
    with socket.socket() as one:
        try:
            one.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise OSError(
                f"Port {port} of {HOST} cannot be had ({error}). Allowed is one that no program "
                "uses, from 1024 to 65535. Leave port out: a free one is taken."
            ) from error


def free_port() -> int:
    """Return the number of a port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return free.getsockname()[1]


def _wait(
    process: subprocess.Popen, address: str, timeout: float, log: IO[bytes], terminal: str
) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with _DIRECT.open(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    last = log.read().decode(errors="replace")[-2000:]
    what = "did not answer in time" if process.poll() is None else "ended before it answered"
    raise RuntimeError(
        f"The server {what} (allowed: {timeout:g} s). Look at what it printed last, and try "
        f"`{terminal}` in a terminal:\n{last}"
    )


def require_refusal(address: str) -> None:
    """Ask a server without a key; return if it refuses.

    Where the key is checked is a matter of how transformers starts its server, so it is tried.

    Raises:
        RuntimeError: if the server answers in any other way, or not at all.
    """
    try:
        with _DIRECT.open(address, timeout=30) as answer:
            what = f"answered ({answer.status})"
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.UNAUTHORIZED:
            return
        what = f"answered ({error.code})"
    except OSError as error:
        what = f"failed ({error})"
    raise RuntimeError(
        f"The server {what} to a request without a key, which it has to refuse (401). It was "
        "stopped, since others on this machine could use it. Install the versions of "
        "constraints.txt: pip install -r requirements.txt -c constraints.txt"
    )


def _stop(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    """End this process when the pipe from its parent closes, which death does too."""
    sys.stdin.buffer.read()
    os._exit(0)


def _guarded(app: Callable[..., Awaitable[None]], key: str) -> Callable[..., Awaitable[None]]:
    """Return an ASGI app that passes on requests with the key, and refuses all others."""
    right = f"Bearer {key}".encode()

    async def guard(scope: dict[str, Any], receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if (
            scope["type"] == "lifespan"
            or scope["path"] == "/health"
            or secrets.compare_digest(given, right)
        ):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"The key is missing or wrong."})

    return guard


def _guard_uvicorn(key: str) -> None:
    """Put the guard around every app that uvicorn is given in this process."""
    import uvicorn

    class Config(uvicorn.Config):
        def __init__(self, app: Any, *args: Any, **options: Any) -> None:
            super().__init__(_guarded(app, key), *args, **options)

    uvicorn.Config = Config


def _serve_folder(arguments: list[str], key: str) -> None:
    """Run `transformers serve` behind the guard."""
    from transformers.cli.transformers import main

    _guard_uvicorn(key)
    sys.argv = ["transformers", "serve", *arguments]
    main()


def _serve_file(arguments: list[str], key: str) -> None:
    """Run llama.cpp's server, which checks the key itself."""
    import argparse

    import xllamacpp

    parser = argparse.ArgumentParser()
    parser.add_argument("--lora", action="append", default=[])
    for name in ("--context", "--threads", "--port"):
        parser.add_argument(name, type=int)
    parser.add_argument("--exact", action="store_true")
    for name in (GGUF, "--host"):
        parser.add_argument(name)
    given = parser.parse_args(arguments)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx = given.gguf, given.context
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in given.lora]
    params.hostnames, params.port, params.api_keys = [given.host], given.port, [key]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    params.verbosity, params.ui = 2, False  # errors and warnings
    if given.exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start = _serve_file if GGUF in sys.argv else _serve_folder
    start(sys.argv[1:], os.environ.pop(KEY))
