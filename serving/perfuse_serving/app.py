"""The HTTP application: POST /segment, GET /model, GET /healthz."""

import os
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve

from perfuse.registry import load_bundle
from perfuse_serving.body import uploaded
from perfuse_serving.images import RequestError, decode, encode
from perfuse_serving.model import Model, Output, parse_voxel_size, parse_window

MEDIA_TYPES = {"tiff": "image/tiff", "npy": "application/x-npy"}

api = FastAPI(title="perfuse", description="Vessel maps of slices and small volumes.")


@api.exception_handler(RequestError)
async def refuse(_request: Request, error: RequestError) -> JSONResponse:
    """A request that cannot be answered: its status and one sentence."""
    return JSONResponse({"detail": error.sentence}, error.status)


@api.exception_handler(RequestValidationError)
async def refuse_query(_request: Request, error: RequestValidationError) -> JSONResponse:
    """A query parameter that is not one of ours, as one sentence."""
    first = error.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}={first.get('input')}: {first['msg']}."}, 422)


@serve.deployment(max_ongoing_requests=8)
@serve.ingress(api)
class Segmenter:
    """One replica: one bundle."""

    def __init__(self, model_uri: str, tracking_uri: str) -> None:
        import torch

        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
        torch.set_num_threads(os.cpu_count() or 1)
        self._model = Model(load_bundle(model_uri))

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answers when the model is loaded."""
        return {"status": "ok"}

    @api.get("/model")
    async def model(self) -> dict[str, Any]:
        """The model that answers: uri, version, digests, contract."""
        return self._model.about()

    @api.post("/segment")
    async def segment(
        self,
        request: Request,
        output: Annotated[Output, Query(description="mask: uint8, 0 or 255. probability: float32, 0 to 1.")] = "mask",
        class_name: Annotated[str, Query(alias="class", description="Which, of a model of several classes.")] = "",
        voxel_size_um: Annotated[str | None, Query(description="V or Z,Y,X; checked against the contract.")] = None,
        low: Annotated[float | None, Query(description="Intensity that becomes 0; with high.")] = None,
        high: Annotated[float | None, Query(description="Intensity that becomes 1; with low.")] = None,
    ) -> Response:
        """A slice [y, x] or small volume [z, y, x], uint8 or uint16, as TIFF or NPY; the answer is of the same kind.

        The file is the body itself, or the one file of a multipart form. Without low and high, intensities are
        normalised by the contract's percentiles of the file's own voxels.
        """
        voxel_size, window = parse_voxel_size(voxel_size_um), parse_window(low, high)
        data = await uploaded(request)

        def work() -> Response:
            image = decode(data)
            answer = self._model.segment(
                image.voxels, output, class_name=class_name, voxel_size_um=voxel_size, window=window
            )
            return Response(
                encode(answer, image.kind), headers=self._headers(class_name), media_type=MEDIA_TYPES[image.kind]
            )

        return await run_in_threadpool(work)

    def _headers(self, class_name: str) -> dict[str, str]:
        bundle = self._model.bundle
        return {
            "X-Perfuse-Model": bundle.uri,
            "X-Perfuse-Bundle-Digest": bundle.digest(),
            "X-Perfuse-Threshold": str(self._model.threshold(class_name)),
        }
