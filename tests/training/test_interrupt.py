"""What asks a run to stop: signals, and Google's notice that a host goes down."""

import http.server
import os
import signal
import threading
import time
from collections.abc import Iterator

import jax
import pytest

from fmi_jax.training import interrupt
from fmi_jax.training.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_asks_and_the_second_is_the_system_s(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in interrupt._SIGNALS]
    with StopRequest() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(2)
        assert {signal.getsignal(each) for each in interrupt._SIGNALS} == {signal.SIG_DFL}
    assert [signal.getsignal(each) for each in interrupt._SIGNALS] == before


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Metadata server of a TPU VM, as which this process counts; it says the last of these."""
    said = ["NONE"]

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = self.path == "/computeMetadata/v1/instance/maintenance-event"
            self.send_response(200 if right and self.headers["Metadata-Flavor"] else 404)
            self.end_headers()
            self.wfile.write(said[-1].encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.setattr(interrupt, "_NOTICE_SECONDS", 0.01)
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        yield said
        server.shutdown()


def within(stop: StopRequest, seconds: float) -> bool:
    """Whether a stop is requested within some seconds."""
    end = time.monotonic() + seconds
    while not (asked := stop.requested(1)) and time.monotonic() < end:
        time.sleep(0.01)
    return asked


def test_a_notice_of_maintenance_asks(notices: list[str]) -> None:
    with StopRequest() as stop:
        assert not within(stop, 0.1)
        notices.append("MIGRATE_ON_HOST_MAINTENANCE")
        assert not within(stop, 0.1)
        notices.append("TERMINATE_ON_HOST_MAINTENANCE")
        assert within(stop, 60)
    with StopRequest() as again:  # started anew before the host goes down
        assert not within(again, 0.1)


def test_without_a_metadata_server_nothing_is_waited_for(
    notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    with StopRequest() as stop:
        assert not within(stop, 0.1)
