"""Routes for playing and downloading clips; each request is recorded in the audit log."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from ast_stream.history.records import ClipRecord
from ast_stream.web.rights import requires, visitor_of
from ast_stream.web.services import services_of
from ast_stream.web.stored_data import clip_file

MEDIA_TYPES = {"flac": "audio/flac", "opus": "audio/ogg", "wav": "audio/wav"}
_GONE = "the clip is no longer kept"


@requires("listen")
def clip(request: Request) -> Response:
    """Return a clip, or a range of its bytes."""
    services = services_of(request)
    event_id, part = str(request.path_params["id"]), int(request.path_params["part"])
    clips = services.past.history.clips(event_id)
    found = next((clip for clip in clips if clip.part == part), None)
    path = None if found is None else clip_file(services.clips, found.path)
    if found is None or path is None:
        raise HTTPException(404, _GONE)
    # every request is recorded, since a range request may also be used to download the clip
    services.clip_audit.record(visitor_of(request), found)
    is_download = request.query_params.get("download") == "1"
    return FileResponse(
        path,
        media_type=MEDIA_TYPES.get(found.format, "application/octet-stream"),
        filename=_name(found) if is_download else None,
        content_disposition_type="attachment" if is_download else "inline",
        headers={"Cache-Control": "private, no-cache"},
    )


def _name(clip: ClipRecord) -> str:
    return clip.path.rpartition("/")[2]


ROUTES: list[BaseRoute] = [Route("/clips/{id}/{part:int}", clip)]
