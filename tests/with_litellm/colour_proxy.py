"""LiteLLM's own proxy, in a process of its own, with the encoder that sees colours under the name ``colour``.

    python colour_proxy.py --config proxy.yaml --port 4000

Every other part is real. ``colour-broken`` is the same encoder with a fault. What LiteLLM tells loggers is written to
the file named by ``TOLD``, one line each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from guardalign_guardrails.detection.encoders import registry
from guardalign_guardrails.testing.colours import ColourEncoder


def _broken() -> ColourEncoder:
    encoder = ColourEncoder()
    encoder.fingerprint = "c1" * 32
    encoder.failure = RuntimeError("the encoder is broken")
    return encoder


def main() -> None:
    registry._PREFIXES["colour"] = lambda rest, options: ColourEncoder()
    registry._PREFIXES["colour-broken"] = lambda rest, options: _broken()

    import litellm
    from litellm.integrations.custom_logger import CustomLogger
    from litellm.proxy.proxy_cli import run_server

    class Telltale(CustomLogger):
        async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            self.tell("success", kwargs)

        async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            self.tell("failure", kwargs)

        async def async_post_call_failure_hook(self, request_data: Any, *args: Any, **kwargs: Any) -> None:
            self.tell("failure hook", request_data)

        def tell(self, what: str, value: Any) -> None:
            with Path(os.environ["TOLD"]).open("a") as file:
                file.write(f"{what} {value!r}\n".replace("\n", " ") + "\n")

    litellm.callbacks.append(Telltale())
    run_server.main(args=sys.argv[1:], prog_name="litellm")


if __name__ == "__main__":
    main()
