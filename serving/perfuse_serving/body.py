"""The file inside a request, and nothing larger than we would decode."""

from fastapi import Request
from starlette.datastructures import UploadFile

from perfuse_serving.images import MAX_BYTES, RequestError


async def uploaded(request: Request) -> bytes:
    """The bytes of the body, or of the one file of a multipart form; RequestError when there is none, or too much."""
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise _too_large()
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _body(request)
    if "content-length" not in request.headers:
        raise RequestError(411, "A multipart form must state its Content-Length.")
    form = await request.form(max_files=1)
    files = [part for part in form.values() if isinstance(part, UploadFile)]
    if len(files) != 1:
        raise RequestError(400, "The multipart form holds no file; send one TIFF or NPY file.")
    return await files[0].read()


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BYTES:
            raise _too_large()
    return bytes(data)


def _too_large() -> RequestError:
    return RequestError(413, f"The body is larger than {MAX_BYTES} bytes. Use `perfuse predict` for whole scans.")
