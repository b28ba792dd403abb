"""The page as a bundle serves it."""

import mimetypes
import threading
import webbrowser
from http.server import ThreadingHTTPServer
from urllib.request import urlopen

import pytest

from export.bundle import predict


@pytest.mark.parametrize(
    ("name", "kind"), [("a.js", "text/javascript"), ("a.mjs", "text/javascript"), ("a.wasm", "application/wasm")]
)
def test_a_script_is_called_one_whatever_the_registry_says(tmp_path, monkeypatch, name, kind):
    (tmp_path / name).write_text("1")
    for end in (".js", ".mjs", ".wasm"):  # as on many a Windows
        monkeypatch.setitem(mimetypes.types_map, end, "text/plain")
    with predict.make_server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urlopen(f"http://127.0.0.1:{server.server_port}/{name}") as answer:
            assert answer.headers["Content-Type"] == kind
        server.shutdown()


def test_it_is_opened_in_the_browser_and_a_bundle_without_says_so(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda server: None)
    monkeypatch.setattr(predict, "check_files", lambda folder: None)
    assert predict.main(["--page"], tmp_path) == 2
    assert capsys.readouterr().err == "error: this folder was made without a page\n"
    (tmp_path / "index.html").touch()
    assert predict.main(["--page"], tmp_path) == 0
    assert capsys.readouterr().out == f"the page: {opened[0]}; Ctrl-C ends it\n"
