"""Endpoints as they are: those that answer loosely, refuse texts or are slow, and what is between them and us."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from pmm_shm.vectors.embedder import embedded
from tests.support.provider import Clock, Provider, embedder, failure, refusal


@pytest.mark.parametrize(
    ("variables", "messages"),
    [
        ({"ALL_PROXY": "socks5://me:hunter2@127.0.0.1:1080"}, ["the proxy in ALL_PROXY cannot be used", "unset it"]),
        ({"all_proxy": "gopher://x"}, ["the proxy in all_proxy cannot be used"]),
        (
            {"HTTP_PROXY": "http://me:hunter2@127.0.0.1:9"},
            ["the proxy in HTTP_PROXY)", "name 127.0.0.1 in NO_PROXY"],
        ),
        ({"http_proxy": "127.0.0.1:9"}, ["check http_proxy"]),
        ({"ALL_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:8"}, ["check ALL_PROXY"]),
        ({"SSL_CERT_FILE": "/gone/cacert.pem"}, ["SSL_CERT_FILE=/gone/cacert.pem cannot be used: FileNotFoundError"]),
        ({"SSL_CERT_FILE": __file__}, ["SSL_CERT_FILE=", "unset it"]),
        ({"SSL_CERT_FILE": "/"}, ["SSL_CERT_FILE=/ cannot be used"]),
    ],
)
def test_openai_settings_of_the_network_are_named(
    provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], messages: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = failure(embedder(clock, deadline_s=0.4), provider=provider)
    assert all(message in text for message in messages)
    assert "OPENAI_BASE_URL" not in text
    assert "hunter2" not in text
    # For another host the same proxy is no matter.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if not any("cannot be used" in message or "SSL" in message for message in messages):
        assert embedded(embedder(clock), ["a"]).shape == (1, 3)


def test_openai_an_answer_of_the_proxy(provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://models.example/v1")
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2hunter2@{provider.address}")
    provider.answers = [refusal(407, "who is me:hunter2hunter2@?")]
    text = failure(embedder(clock))
    assert "status 407: who is ***@?: check the user and password in HTTP_PROXY" in text


def test_openai_a_certificate_that_is_not_trusted(
    clock: Clock, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    pem = str(tmp_path / "own.pem")
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {pem} -out {pem}.crt"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pem}.crt", pem)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            for _ in range(2):
                with contextlib.suppress(OSError), server.accept()[0] as connection:
                    context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"https://127.0.0.1:{server.getsockname()[1]}/v1")
        text = failure(embedder(clock))
        assert "its certificate is not trusted: " in text
        assert "given up after 1 attempt within 60 s; name its authority's in SSL_CERT_FILE" in text
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        assert "check the certificates in SSL_CERT_DIR" in failure(embedder(clock))
        thread.join(10)


@pytest.mark.parametrize("word", ["a", "o", "none"])
def test_openai_short_words_are_no_secrets(
    provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", word)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{word}:{word}@{provider.address}/v1")
    provider.answers = [refusal(401, "not one of our keys")]
    assert "status 401: not one of our keys: check OPENAI_API_KEY" in failure(embedder(clock), provider=provider)


@pytest.mark.parametrize(
    ("indices", "is_clear"),
    [
        ([None, None, None], True),
        ([None, 1, 2], True),
        ([2, None, 1], True),
        ([2, 0, 1], True),
        ([0, None, 2], False),
        ([None, None, 2], False),
        ([0, None, None], False),
        ([None, 1, 1], False),
    ],
)
@pytest.mark.parametrize("is_null", [False, True])
def test_openai_indices_that_are_left_out(
    provider: Provider, clock: Clock, indices: list[int | None], is_clear: bool, is_null: bool
) -> None:
    texts = ["a", "b", "c"]
    entries = [
        {"embedding": provider.vector(texts[place if index is None and indices.count(None) > 1 else index or 0])}
        | ({"index": index} if index is not None or is_null else {})
        for place, index in enumerate(indices)
    ]
    provider.answers = [lambda request: provider.data(entries)]
    if is_clear:
        assert embedded(embedder(clock), texts).tolist() == [provider.vector(text) for text in texts]
    else:
        assert "indices, and 3 texts were sent" in failure(embedder(clock), texts)
