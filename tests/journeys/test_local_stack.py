"""The local stack is real: it refuses, it decides races, it keeps runs, it runs jobs, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

STACK = Path(__file__).parents[2] / "infra" / "local" / "stack.py"


def run_stack(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, STACK, *words], capture_output=True, text=True, timeout=120, check=False, env=os.environ | env
    )


def s3_client(**overrides: str) -> Any:
    import boto3

    return boto3.client("s3", **overrides)


def place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc, parts.path.strip("/")


def test_a_wrong_secret_is_refused(s3_url: str) -> None:
    from botocore.exceptions import ClientError

    bucket, prefix = place(s3_url)
    with pytest.raises(ClientError) as refusal:
        s3_client(aws_secret_access_key="wrong", aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"]).put_object(
            Bucket=bucket, Key=f"{prefix}/x", Body=b""
        )
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_conditional_put_has_one_winner(s3_url: str) -> None:
    from botocore.exceptions import ClientError

    bucket, prefix = place(s3_url)
    client = s3_client()

    def claim(name: int) -> int:
        try:
            client.put_object(Bucket=bucket, Key=f"{prefix}/lock", Body=str(name).encode(), IfNoneMatch="*")
        except ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"]
        return 200

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(claim, range(8)))
    assert codes.count(200) == 1
    assert set(codes) <= {200, 409, 412}
    body = client.get_object(Bucket=bucket, Key=f"{prefix}/lock")["Body"].read()
    assert int(body) == codes.index(200)


@pytest.mark.journey
def test_an_artifact_of_a_run_lies_in_the_object_store(stack_url: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    note = tmp_path / "note.txt"
    note.write_text("capillary")
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.create_experiment(f"stack-{stack_url[-8:]}")
    run = client.create_run(experiment).info.run_id
    client.log_metric(run, "dice", 0.5)
    client.log_artifact(run, str(note))

    assert client.get_run(run).data.metrics == {"dice": 0.5}
    stored = s3_client().get_object(Bucket=place(stack_url)[0], Key=f"mlflow/{experiment}/{run}/artifacts/note.txt")
    assert stored["Body"].read() == b"capillary"


JOB = """
import os, ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=4)
def where():
    import time
    time.sleep(1)
    wanted = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")
    return ray.get_runtime_context().get_node_id(), all(os.environ.get(name) for name in wanted)
seen = ray.get([where.remote() for _ in range(2)])
print("nodes", len({node for node, _ in seen}), "credentials", all(known for _, known in seen))
"""


CLIENT = """
import sys, time
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient()
job = client.submit_job(entrypoint=f"python {sys.argv[1]}")
while not client.get_job_status(job).is_terminal():
    time.sleep(0.5)
print(client.get_job_logs(job), client.get_job_info(job))
"""
"""In a process of its own: Ray reads a token once a process, and would lock later tests out of their own Ray."""


@pytest.mark.journey
def test_a_job_runs_on_both_nodes_and_inherits_the_credentials(stack_url: str, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    words = [sys.executable, "-c", CLIENT, str(script)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout

    assert "nodes 2 credentials True" in told
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in told


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="perfuse-", dir="/tmp") as name:
        yield Path(name)
        run_stack("down", "--dir", name)


def pid_of(folder: Path) -> int:
    return int((folder / "run" / "postgres.pid").read_text().split()[0])


def test_up_twice_changes_nothing_and_a_killed_server_comes_back(postgres: str, folder: Path) -> None:
    assert run_stack("up", "postgres", "--dir", folder).returncode == 0
    first, settings = pid_of(folder), (folder / "stack.env").read_text()
    assert run_stack("up", "postgres", "--dir", folder).returncode == 0
    assert pid_of(folder) == first

    os.kill(first, signal.SIGKILL)
    assert run_stack("status", "postgres", "--dir", folder).returncode == 1
    again = run_stack("up", "postgres", "--dir", folder)
    assert again.returncode == 0, again.stderr
    assert pid_of(folder) != first
    assert (folder / "stack.env").read_text() == settings

    assert run_stack("down", "--dir", folder).returncode == 0
    assert not any(str(folder) in command for command in command_lines())


def command_lines() -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_text(errors="replace"))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_down_finds_what_a_killed_leader_left_behind(folder: Path) -> None:
    """An orphan that carries the mark of the folder is ours; one that carries another's is not."""
    ours, foreign = (
        subprocess.Popen(["sleep", "60"], env={"PERFUSE_STACK_PROCESS": mark}, start_new_session=True)
        for mark in (f"{folder}:ray", f"{folder}x:ray")
    )
    try:
        assert run_stack("down", "--dir", folder).returncode == 0
        assert ours.wait(timeout=5) == -signal.SIGKILL
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_down_finds_an_orphan_that_overwrote_its_environment(folder: Path) -> None:
    leader = subprocess.run(
        ["bash", "-c", "sleep 60 &>/dev/null & echo $$ $!"],
        env={}, cwd=folder, start_new_session=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    session, orphan = leader.stdout.split()
    assert alive(int(orphan))
    (folder / "run").mkdir()
    (folder / "run" / "ray.pid").write_text(f"{session} 1")
    assert run_stack("down", "--dir", folder).returncode == 0
    assert not alive(int(orphan))


def test_secrets_are_readable_by_their_owner_alone(s3: dict[str, str], stack_folder: Path) -> None:
    assert stat.S_IMODE((stack_folder / "stack.env").stat().st_mode) == 0o600
    assert not any(s3["AWS_SECRET_ACCESS_KEY"] in command for command in command_lines())


def test_env_makes_a_shell_a_client(s3: dict[str, str], stack_folder: Path) -> None:
    script = f'eval "$({sys.executable} {STACK} env --dir {stack_folder})"; echo "$AWS_SECRET_ACCESS_KEY"'
    shell = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert shell.stdout.strip() == s3["AWS_SECRET_ACCESS_KEY"]


def test_missing_packages_are_named_with_the_line_that_installs_them(folder: Path) -> None:
    refused = run_stack("up", "s3", "--dir", folder, PATH="/nonexistent")
    assert refused.returncode == 2
    assert "apt-get install -y --no-install-recommends ceph-mon ceph-osd radosgw ceph-common" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_folder_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    refused = run_stack("up", "ray", "--dir", tmp_path / ("x" * 30))
    assert refused.returncode == 2
    assert "--dir" in refused.stderr
