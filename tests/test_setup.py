"""`setup.sh` in a folder of a tiny project, with uv itself, and indexes on loopback in place of the real ones."""

import hashlib
import importlib.metadata
import io
import os
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uv
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ORDINARY, OF_PYTORCH = "simple", "whl"


def wheel(name: str, version: str, *needs: str) -> tuple[str, bytes]:
    """The file name and the content of a wheel with one module, which says its version."""
    info, module = f"{name}-{version}.dist-info", name.replace("-", "_")
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{module}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))
    return f"{module}-{version}-py3-none-any.whl", content.getvalue()


HOLDS: dict[str, dict[str, list[tuple[str, bytes]]]] = {
    ORDINARY: {"torch": [wheel("torch", "2.0.0", "cudalib")], "cudalib": [wheel("cudalib", "1.0")]},
    OF_PYTORCH: {"torch": [wheel("torch", "2.0.0+cpu")]},
}
"""Index -> project -> its files."""


class Indexes:
    """An ordinary index at `url`, and any host over a proxy at the same port, which is PyTorch's index.

    `how` the host answers: "well", "refuses", "hangs", or is "without" the packages.
    """

    def __init__(self, folder: Path, how: str) -> None:
        self.how, self.hosts = how, list[str]()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._authority = self._certificate("authority", None)
        self.authority_file = folder / "authority.pem"
        self.authority_file.write_bytes(self._authority.public_bytes(serialization.Encoding.PEM))
        indexes = self

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                indexes.connect(self)

            def do_GET(self) -> None:
                indexes.get(self)

            def do_HEAD(self) -> None:
                self.send_error(405)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._over = threading.Event()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def connect(self, request: BaseHTTPRequestHandler) -> None:
        host = request.path.partition(":")[0]
        self.hosts.append(host)
        if self.how == "refuses":
            return request.send_error(503)
        if self.how == "hangs":
            self._over.wait(100)
            return None
        request.send_response(200)
        request.end_headers()
        files = self._folder / f"{host}.pem"
        names = [self._certificate(host, self._authority).public_bytes(serialization.Encoding.PEM)]
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        files.write_bytes(b"".join([self._key.private_bytes(serialization.Encoding.PEM, *private), *names]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files)
        with context.wrap_socket(request.connection, server_side=True) as connection:
            type(request)(connection, request.client_address, request.server)
        request.close_connection = True
        return None

    def get(self, request: BaseHTTPRequestHandler) -> None:
        index, _, name = request.path.strip("/").partition("/")
        name = name.rpartition("/")[2]
        held = HOLDS.get(index, {}) if index == ORDINARY or self.how == "well" else {}
        files = {file: content for of in held.values() for file, content in of}
        if name in held:
            links = (f'<a href="{f}#sha256={hashlib.sha256(c).hexdigest()}">{f}</a>' for f, c in held[name])
            body, kind = "".join(links).encode(), "text/html"
        elif name.replace("%2B", "+") in files:
            body, kind = files[name.replace("%2B", "+")], "application/zip"
        else:
            return request.send_error(404)
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
        return None

    def _certificate(self, name: str, issuer: x509.Certificate | None) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:60])])
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


BACKEND = """
import zipfile

def build_editable(folder, *_):
    name = "tiny-1.0-py3-none-any.whl"
    info = {
        "METADATA": "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\nProvides-Extra: cpu\\nProvides-Extra: gpu\\n"
        "Requires-Dist: torch==2.0.0; extra == 'cpu'\\nRequires-Dist: torch==2.0.0; extra == 'gpu'\\n",
        "WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    with zipfile.ZipFile(f"{folder}/{name}", "w") as archive:
        for file, text in info.items():
            archive.writestr(f"tiny-1.0.dist-info/{file}", text)
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return name

build_wheel = build_editable
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with `setup.sh`, and a .venv that finds pip and uv here."""
    folder = tmp_path / "project"
    (folder / "constraints").mkdir(parents=True)
    (folder / "setup.sh").write_text((ROOT / "setup.sh").read_text())
    (folder / "constraints" / "constraints.txt").write_text(f"uv=={importlib.metadata.version('uv')}\ntorch==2.0.0\n")
    (folder / "constraints" / "overrides.txt").write_text("torch==2.0.0\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "tiny"\nversion = "1.0"\n'
        '[project.optional-dependencies]\ncpu = ["torch==2.0.0"]\ngpu = ["torch==2.0.0"]\n'
    )
    venv.create(folder / ".venv")
    (folder / ".venv" / "bin" / "uv").symlink_to(uv.find_uv_bin())
    site = next((folder / ".venv" / "lib").glob("python*/site-packages"))
    (site / "own.pth").write_text(sysconfig.get_path("purelib"))
    return folder


@contextmanager
def indexes(folder: Path, how: str) -> Iterator[tuple[Indexes, dict[str, str]]]:
    """The indexes, and the environment that leads uv to them."""
    folder.mkdir()
    served = Indexes(folder, how)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    try:
        yield (
            served,
            {
                **kept,
                "UV_DEFAULT_INDEX": f"{served.url}/{ORDINARY}",
                "UV_CACHE_DIR": str(folder / "cache"),
                "UV_NO_CONFIG": "1",
                "SSL_CERT_FILE": str(served.authority_file),
                "HTTPS_PROXY": served.url,
                "NO_PROXY": "127.0.0.1",
                "PIP_NO_INDEX": "1",
                "PYTHON": sys.executable,
            },
        )
    finally:
        served.stop()


def installed(project: Path) -> set[str]:
    site = next((project / ".venv" / "lib").glob("python*/site-packages"))
    return {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")} - {"tiny-1.0"}


def set_up(project: Path, environment: dict[str, str], extras: str = "cpu") -> subprocess.CompletedProcess[str]:
    given = {**environment, "EXTRAS": extras}
    return subprocess.run(["bash", "setup.sh"], cwd=project, env=given, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("how", ["well", "refuses", "hangs", "without"])
def test_the_cpu_build_where_its_index_answers(project: Path, tmp_path: Path, how: str) -> None:
    with indexes(tmp_path / "indexes", how) as (served, environment):
        began = time.monotonic()
        done = set_up(project, environment)
        took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert len(set(served.hosts)) == 1
    found = {name for name in installed(project) if name.startswith(("torch", "cudalib"))}
    assert found == ({"torch-2.0.0+cpu"} if how == "well" else {"torch-2.0.0", "cudalib-1.0"})
    assert ("from its own index for CPUs" in done.stdout) == (how == "well")
    lines = done.stdout.splitlines()
    assert all(line.startswith("setup: ") for line in lines), lines
    assert "setup: done in " in lines[-1]
    # Nobody is alarmed, nor kept waiting: a host that never answers is left after seconds.
    assert not {"error", "warning"} & set(done.stderr.replace("setup: warning: vLLM on CPU", "").lower().split())
    assert took < 100


def test_gpus_need_no_other_index(project: Path, tmp_path: Path) -> None:
    with indexes(tmp_path / "indexes", "well") as (served, environment):
        done = set_up(project, environment, "gpu")
    assert done.returncode == 0, done.stderr
    assert served.hosts == []
    assert {"torch-2.0.0", "cudalib-1.0"} <= installed(project)


def test_the_user_chooses_the_build(project: Path, tmp_path: Path) -> None:
    """With uv's own variable."""
    with indexes(tmp_path / "indexes", "refuses") as (served, environment):
        done = set_up(project, environment | {"UV_TORCH_BACKEND": "cpu"})
        assert done.returncode != 0
        assert "torch" in done.stderr
        assert set_up(project, environment).returncode == 0
    assert served.hosts
