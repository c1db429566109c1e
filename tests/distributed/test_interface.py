"""The network interface for gloo, and two machines: network, process and host name spaces that share the disk."""

import os
import shutil
import subprocess
import sys

import pytest

from l2t_fast.distributed.interface import interface_towards
from tests.distributed.ranks import PATIENCE

# With a process name space around all, so that nothing outlives the test.
UNSHARE = [
    "unshare",
    "--user",
    "--map-root-user",
    "--net",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
]

# Two machines on one wire. Everything is in name spaces of its own, which end with the script.
TWO_MACHINES = """
mount -t tmpfs none /run && ip netns add m0 && ip netns add m1 || exit 77
ip link add v0 netns m0 type veth peer name v1 netns m1 || exit 77
for i in 0 1; do
    ip -n m$i addr add 10.7.0.$((i + 1))/24 dev v$i && ip -n m$i link set v$i up && ip -n m$i link set lo up
done
for i in 0 1; do
    ip netns exec m$i unshare --uts --pid --fork --mount-proc bash -c 'hostname machine'$i'; exec "$@"' machine \\
        "$PYTHON" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank $i --master-addr 10.7.0.1 \\
        --master-port 29555 -m l2t_fast.cli train --method scratch --data.batch_size 256 --device cpu \\
        --out "$OUT" "$@" 2>"$OUT.stderr$i" &
done
if [ -n "$PULLED" ]; then
    while ! grep -q "starts after epoch" "$OUT/log.txt" 2>/dev/null; do sleep 0.1; done
    ip -n m1 link set v1 down
fi
failed=0
for job in $(jobs -p); do wait "$job" || failed=1; done
exit $failed
"""


def run_two_machines(out, *options: str, pulled: bool = False) -> tuple[int, list[str]]:
    """Train on two machines, with the cable pulled once training has begun: (exit code, our sentences of each)."""
    if not all(map(shutil.which, ("unshare", "ip", "bash"))):
        pytest.skip("needs the commands unshare, ip and bash")
    done = subprocess.run(
        [*UNSHARE, "bash", "-c", TWO_MACHINES, "bash", *options],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "OUT": str(out), "PULLED": "1" if pulled else ""}
        | {"L2T_FAST_PATIENCE": "8"},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,  # four processes, which import PyTorch
    )
    if done.returncode == 77 or "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"this system lets no test make name spaces: {done.stderr.strip()}")
    said = [out.with_name(f"{out.name}.stderr{i}").read_text() for i in range(2)]
    return done.returncode, ["".join(line for line in s.splitlines() if line.startswith("error: ")) for s in said]


def test_two_machines_that_do_not_know_their_own_names(tmp_path):
    code, said = run_two_machines(tmp_path / "run", "--epochs", "1")
    assert code == 0, said
    assert "2 ranks" in (tmp_path / "run" / "log.txt").read_text() and (tmp_path / "run" / "result.json").exists()


def test_the_cable_is_pulled(tmp_path):
    code, (first, second) = run_two_machines(tmp_path / "run", "--epochs", "100000", pulled=True)
    assert code != 0
    assert "rank 1 of 2" in first and "on machine1) hangs: no sign of life for 8 s, training stops" in first
    assert "the launcher hangs: its store has not answered for 8 s, training stops" in second
    assert first.endswith("the same command with --resume continues where it stopped")


def test_the_interface_is_the_one_that_reaches_the_address():
    assert interface_towards("127.0.0.1", leaves_machine=False) == "lo"
    assert interface_towards("no-such-machine.invalid", leaves_machine=False) is None


def test_the_loopback_does_not_leave_the_machine():
    assert interface_towards("127.0.0.1", leaves_machine=True) != "lo"
