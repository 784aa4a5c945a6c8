"""YAML that people write: recipes, campaigns, values of settings."""

from typing import Any

import yaml

from perfuse import storage


def parsed(text: str | bytes) -> Any:
    """What YAML says; ValueError where it is none, or where its tags do not fit what they stand at."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (LookupError, TypeError, AttributeError, RecursionError) as error:  # tags such as !!bool, endless nesting
        raise ValueError(f"no YAML that can be read ({type(error).__name__})") from error


def read_mapping(name: str) -> dict[str, Any]:
    """The keys and values of a file at a path or URL; OSError where it cannot be read, ValueError where it holds something else."""
    values = parsed(storage.read_bytes(name))
    if not isinstance(values, dict):
        raise ValueError("keys with values are wanted")
    return values
