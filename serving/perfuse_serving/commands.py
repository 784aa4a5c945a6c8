"""The verb of this room: `perfuse serve`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb `serve`."""

    @app.command()
    def serve(
        model: Annotated[str, typer.Option(help="models:/NAME@champion, models:/NAME/3 or runs:/…")],
        host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all, behind your own gate.")] = (
            "127.0.0.1"
        ),
        port: Annotated[int, typer.Option(help="TCP port.", min=1, max=65535)] = 8000,
    ) -> None:
        """Answer HTTP requests with a model, until Ctrl-C: POST a TIFF or NPY slice or small volume to /segment.

        Example: perfuse serve --model models:/vessels@champion

        Then: curl --data-binary @slice.tif 'http://127.0.0.1:8000/segment?output=mask' -o mask.tif
        """
        from perfuse.registry import load_bundle
        from perfuse_serving.server import check_port, serve_until_interrupted

        check_port(host, port)
        serve_until_interrupted(load_bundle(model).uri, host, port)
