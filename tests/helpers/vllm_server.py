"""A real `vllm serve` of an embedded model on loopback."""

import os
import signal
import socket
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from subprocess import TimeoutExpired

from dialog_gen.models.registry import resolve_model
from helpers.forks import ForkedCommand

_PATIENCE_S = 400


@contextmanager
def vllm_server(model: str, folder: Path) -> Generator[str]:
    """Yields its address, without a path; the model is served under its own name. `folder` gets its log."""
    resolved = resolve_model(model)
    template = folder / "chat.jinja"
    # The chat API adds no token for the beginning of a text; the engine vllm's tokenizer does.
    template.write_text("{{ bos_token }}" + (resolved.chat_template or ""))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # What `vllm serve` runs; the command itself does not find its version in a CPU build.
        "python", "-m", "vllm.entrypoints.openai.api_server", "--model", str(resolved.files),
        "--served-model-name", model, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--max-model-len", str(resolved.max_model_len), "--enforce-eager", "--load-format", "safetensors",
        "--limit-mm-per-prompt", '{"image": 1}', "--max-num-seqs", "32", "--gpu-memory-utilization", "0.4",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192",
        "--chat-template", str(template), "--chat-template-content-format", "openai",
    ]  # fmt: skip
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "serve.log"
    with log.open("wb") as output:
        server = ForkedCommand(command, stdout=output, stderr=output, env=os.environ | settings, start_new_session=True)
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            if server.poll() is None:
                os.kill(server.pid, signal.SIGTERM)
            try:
                server.wait(60)
            except TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait(server: ForkedCommand, url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"not ready after {_PATIENCE_S} s: {log.read_text()[-3000:]}")
