"""Ray Serve, from its start to Ctrl-C."""

import logging
import os
import socket
import threading

from perfuse.console import say
from perfuse.errors import PerfuseError
from perfuse.settings import tracking_uri


def check_port(host: str, port: int) -> None:
    """Raise PerfuseError when nothing can listen there: taken, forbidden, or not an address of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise PerfuseError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --port or --host."
        ) from error


def start(model_uri: str, host: str, port: int) -> None:
    """Serve a model; returns when it answers."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from perfuse_serving.app import Segmenter

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    _connect()
    application = Segmenter.bind(model_uri, tracking_uri())  # type: ignore[attr-defined]
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=quiet)
    try:
        serve.run(application, name="perfuse", logging_config=quiet)
    except RuntimeError as error:
        ray.shutdown()
        raise PerfuseError(f"The model {model_uri} could not be served: {error}") from error


def stop() -> None:
    """End what `start` started: on a cluster the application alone, else this process's Ray with all in it."""
    import ray
    from ray import serve

    if os.environ.get("RAY_ADDRESS"):
        serve.shutdown()
    ray.shutdown()


def serve_until_interrupted(model_uri: str, host: str, port: int) -> None:
    """Serve a model until Ctrl-C or SIGTERM."""
    try:
        start(model_uri, host, port)
        say(f"{model_uri} answers at http://{host}:{port}/segment (docs: /docs). Ctrl-C ends it.")
        threading.Event().wait()
    except KeyboardInterrupt:
        say("Stopping.")
    finally:
        stop()


def _connect() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    quiet = {"logging_level": "error", "log_to_driver": False}
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
