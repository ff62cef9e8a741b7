"""What the sandbox's S3 server serves: moto, which refuses half an upload as S3 does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moto.moto_server.werkzeug_app import create_backend_app

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def application() -> WSGIApplication:
    """Return moto's S3 as a WSGI application.

    gunicorn says that a body ends where its stream does, which makes one that was cut look whole: moto would
    store the half that came. Held to its announced length, it is refused with 400.
    """
    moto = create_backend_app("s3")

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("CONTENT_LENGTH"):
            environ.pop("wsgi.input_terminated", None)
        return moto(environ, start_response)

    return serve
