"""The object store: Ceph's S3 gateway with one monitor and one OSD, all on the loopback.

Real S3 semantics are the point: signatures are checked, and `If-None-Match: *` has exactly one winner.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from processes import Daemon, clean_environment, run
from settings import Settings, StackError, free_port
from web import answers

ADDRESS = "AWS_ENDPOINT_URL"
BUCKET = "perfuse"
PACKAGES = {
    "ceph-mon": shutil.which("ceph-mon"),
    "ceph-osd": shutil.which("ceph-osd"),
    "radosgw": shutil.which("radosgw"),
    "ceph-common": shutil.which("ceph"),
}
"""The Debian packages, each with its program where it is installed."""
MODULES = ("s3fs",)

CONFIG = """\
[global]
fsid = {fsid}
mon_host = 127.0.0.1:{mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = {home}/keyring
run_dir = {home}/run
crash_dir = {home}/run
log_file = {home}/run/$name.log
admin_socket = {home}/run/$name.asok
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
mon_data_avail_warn = 1
mon_data_avail_crit = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_crush_chooseleaf_type = 0
osd_crush_update_on_start = false
osd_class_load_list = *
osd_class_default_list = *
osd_memory_target = 939524096
bluestore_block_size = 21474836480
[mon.a]
mon_data = {home}/mon
[osd.0]
osd_data = {home}/osd
[client.rgw]
rgw_data = {home}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{s3_port} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_enable_usage_log = false
rgw_enable_ops_log = false
"""

CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "client.rgw": {"mon": "allow rwx", "osd": "allow rwx"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
}


def daemons(folder: Path) -> list[Daemon]:
    """In the order of starting."""
    return [Daemon(folder, name) for name in ("ceph-mon", "ceph-osd", "radosgw")]


def start(settings: Settings) -> None:
    """Starts the gateway; the first time makes the cluster, a user with fresh keys, and the bucket."""
    mon, osd, gateway = daemons(settings.folder)
    home = settings.folder / "s3"
    new = ADDRESS not in settings.env
    port = settings.port(ADDRESS)
    if new:
        for daemon in (gateway, osd, mon):
            daemon.stop()
        _make_monitor(home, port)
    _start(mon, home, ["-i", "a"], lambda: _monitor_answers(home))
    if new:
        _make_osd(home)
    _start(osd, home, ["-i", "0"], lambda: "1 up" in _ceph(home, "osd", "stat"))
    user = _make_user(home, port) if new else {}
    _start(gateway, home, ["-n", "client.rgw"], partial(answers, f"http://127.0.0.1:{port}"))
    if new:
        _make_bucket(user)
        settings.save(**user)


def wait(settings: Settings) -> None:
    """Returns when the gateway answers."""
    *_, gateway = daemons(settings.folder)
    gateway.wait_until(partial(answers, settings.env[ADDRESS]))


def _start(daemon: Daemon, home: Path, options: list[str], ready: Callable[[], bool]) -> None:
    if daemon.pid() is None:
        daemon.start([daemon.name, "-f", "-c", home / "ceph.conf", *options], clean_environment())
    daemon.wait_until(ready)


def _make_monitor(home: Path, s3_port: int) -> None:
    shutil.rmtree(home, ignore_errors=True)
    for name in ("mon", "osd", "rgw", "run"):
        (home / name).mkdir(parents=True)
    fsid, mon_port = str(uuid.uuid4()), free_port()
    (home / "ceph.conf").write_text(CONFIG.format(home=home, fsid=fsid, mon_port=mon_port, s3_port=s3_port))
    keyring, monmap = home / "keyring", home / "monmap"
    keyring.touch()
    for name, rules in CAPABILITIES.items():
        caps = [word for kind, rule in rules.items() for word in ("--cap", kind, rule)]
        run(["ceph-authtool", keyring, "--gen-key", "-n", name, *caps])
    run(["monmaptool", "--create", "--add", "a", f"127.0.0.1:{mon_port}", "--fsid", fsid, monmap])
    run(["ceph-mon", "-c", home / "ceph.conf", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring])


def _make_osd(home: Path) -> None:
    osd_id = str(uuid.uuid4())
    _ceph(home, "osd", "new", osd_id)
    run(["ceph-osd", "-c", home / "ceph.conf", "-i", "0", "--mkfs", "--osd-uuid", osd_id])
    _ceph(home, "osd", "crush", "add", "osd.0", "1.0", "root=default")


def _make_user(home: Path, port: int) -> dict[str, str]:
    """Creates the S3 user; Ceph draws its keys. Returns the environment that S3 clients read."""
    config = home / "ceph.conf"
    answer = run(
        ["radosgw-admin", "-c", config, "-n", "client.rgw", "user", "create", "--uid=perfuse", "--display-name=perfuse"]
    )
    keys = json.loads(answer)["keys"][0]
    return {
        "AWS_ACCESS_KEY_ID": keys["access_key"],
        "AWS_SECRET_ACCESS_KEY": keys["secret_key"],
        ADDRESS: f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # pyarrow's uploads get HTTP 411 from RGW otherwise
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "PERFUSE_BUCKET_URL": f"s3://{BUCKET}",
    }


def _make_bucket(env: dict[str, str]) -> None:
    from s3fs import S3FileSystem

    store = S3FileSystem(key=env["AWS_ACCESS_KEY_ID"], secret=env["AWS_SECRET_ACCESS_KEY"], endpoint_url=env[ADDRESS])
    store.mkdir(BUCKET)


def _monitor_answers(home: Path) -> bool:
    try:
        _ceph(home, "osd", "stat")
    except StackError:
        return False
    return True


def _ceph(home: Path, *words: str) -> str:
    return run(["ceph", "-c", home / "ceph.conf", "--connect-timeout", "10", *words])
