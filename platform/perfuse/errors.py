"""Everything perfuse raises on purpose. Each message says what happened, where, what is allowed, and what to do.

The command line prints the message of a `PerfuseError` on stderr and exits with its code, without a traceback.
"""


class PerfuseError(Exception):
    """Something that the user can mend: input, settings, or a server that is away."""

    exit_code = 2


class SourceError(PerfuseError, ValueError):
    """A source that cannot be ingested: empty, a missing slice number, not an image, not a mask."""


class SliceError(SourceError):
    """One slice that cannot be decoded, or differs from its siblings; the message names file and index."""


class ShapeMismatchError(PerfuseError, ValueError):
    """Two volumes that should align but do not."""


class ScanError(PerfuseError, ValueError):
    """A URL that is not a complete scan, or a label that the scan does not hold."""


class ContractError(PerfuseError, ValueError):
    """A scan or request that lies outside what a model's contract allows."""


class RecipeError(PerfuseError, ValueError):
    """An unknown recipe, key or value; the message lists the valid choices."""


class CampaignError(PerfuseError, ValueError):
    """A campaign that cannot run as it is written, or that would let a donor judge what was learnt from it."""


class RegistryError(PerfuseError, LookupError):
    """A model, version or alias that does not exist, or a promotion that the policy refuses."""


class ServerError(PerfuseError, ConnectionError):
    """A server (object store, MLflow, Ray) that does not answer or refuses the credentials."""


class BusyError(PerfuseError, RuntimeError):
    """Another process is writing the same thing."""


class PlanError(PerfuseError, MemoryError):
    """Work that would not fit; the message gives what is needed and what there is."""


class QuarantineError(PerfuseError, RuntimeError):
    """Parts of a work that failed again and again, while the rest of it is done; the message names them."""

    exit_code = 3
