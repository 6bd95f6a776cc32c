"""One command, a guarded proxy: the real encoder, the shipped policy, LiteLLM, and a server behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("litellm", reason="LiteLLM has its own virtual environment: make test-litellm")

import openai
from litellm_proxies import MASTER_KEY, await_health, free_port, proxy_command, started, stopped
from PIL import Image

from guardalign_guardrails.content.payload import to_data_url
from litellm_guardalign.__main__ import main
from litellm_guardalign.version import litellm_version
from with_litellm.conftest import guardrail

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.slow]

NEWER = pytest.mark.skipif(litellm_version() < (1, 105), reason="this LiteLLM knows no stream_scope")
ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "examples" / "images"


def test_it_starts_a_proxy_whose_upstream_gets_no_unsafe_image(upstream, tmp_path):
    port = free_port()
    options = ["--upstream", upstream.base_url, "--model", "gpt-4o", "--port", str(port)]
    process = started([sys.executable, "-m", "litellm_guardalign", *options], tmp_path, port)
    try:
        await_health(process, port, tmp_path)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=MASTER_KEY, max_retries=0, timeout=120)
        for name in ("rifle.png", "cat.jpg"):
            kind = "image/png" if name.endswith("png") else "image/jpeg"
            block = {"type": "image_url", "image_url": {"url": to_data_url((IMAGES / name).read_bytes(), kind)}}
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": [block]}])
            sent = upstream.last.blocks[-1] == block
            assert sent == (name == "cat.jpg")
        script, photo = ROOT / "examples" / "litellm_proxy" / "ask.sh", IMAGES / "coffee_and_pistol.jpg"
        done = subprocess.run(
            [str(script), str(photo), "gpt-4o", f"http://127.0.0.1:{port}"],
            env={**os.environ, "LITELLM_MASTER_KEY": MASTER_KEY},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "x-litellm-applied-guardrails: guardalign" in done.stdout
        assert upstream.last.images[0].tobytes() != Image.open(photo).convert("RGB").tobytes()
    finally:
        stopped(process)


def test_it_starts_a_proxy_from_a_config_that_passes_the_check(upstream, tmp_path):
    options = ["--upstream", upstream.base_url, "--model", "gpt-4o", "--write", str(tmp_path)]
    assert main(options) == 0
    port = free_port()
    command = [sys.executable, "-m", "litellm_guardalign", "start", str(tmp_path / "config.yaml"), "--port", str(port)]
    process = started(command, tmp_path, port)
    try:
        await_health(process, port, tmp_path)
    finally:
        stopped(process)
    assert "model gpt-4o: guarded by guardalign" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("fault", "own"),
    [
        ({"polcy": "a.yaml"}, {}),
        ({"policy": "none.yaml"}, {}),
        ({"encoder": "what"}, {}),
        ({}, {"mode": []}),
        pytest.param({}, {"stream_scope": "streaming"}, marks=NEWER),
    ],
)
def test_a_proxy_with_a_mistake_in_its_guardrail_does_not_start(tmp_path, fault, own):
    port = free_port()
    entry = guardrail(tmp_path, default_on=True)
    entry["litellm_params"]["guardalign"].update(fault)
    entry["litellm_params"].update(own)
    (tmp_path / "guardalign_guardrail.py").write_text("from litellm_guardalign import ImageGuardrail\n")
    process = started(proxy_command({"model_list": [], "guardrails": [entry]}, tmp_path, port), tmp_path, port)
    try:
        assert process.wait(240) != 0
    finally:
        stopped(process)
    assert "Uvicorn running" not in (tmp_path / "log").read_text()


def test_a_config_can_be_written_to_be_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UPSTREAM_KEY", "sk-secret-of-the-upstream")
    options = ["--upstream", "https://example.org/v1", "--model", "a", "--api-key-env", "UPSTREAM_KEY"]
    assert main([*options, "--write", str(tmp_path)]) == 0
    text = (tmp_path / "config.yaml").read_text()
    assert "os.environ/UPSTREAM_KEY" in text
    assert "sk-secret" not in text
    assert "litellm --config" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--route-to", "b"], "--route-to: name the model"),
        (["--api-key-env", "GUARDALIGN_NO_SUCH_KEY"], "GUARDALIGN_NO_SUCH_KEY is not set"),
    ],
)
def test_mistakes_are_named_before_anything_starts(options, message, capsys):
    assert main(["--upstream", "https://example.org/v1", "--model", "a", *options]) == 2
    assert message in capsys.readouterr().err


def test_an_upstream_that_is_no_url_is_one_of_them(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--upstream", "example", "--model", "a"])
    assert "must be a URL" in capsys.readouterr().err
