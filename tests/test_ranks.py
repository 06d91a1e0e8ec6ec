"""Several processes: torchrun with uneven shards, and a state that outlives SIGKILL between any two batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tars import SMALL, keys

from datakit.stream import Loader

RANKED = """
import json, sys
import torch.distributed as dist
from datakit.stream import Loader, evaluation, mae

dist.init_process_group("gloo")
seen = {}
for name, transform, shuffle in (("train", mae(32), True), ("eval", evaluation(32, 40), False)):
    loader = Loader(sys.argv[1], 4, transform=transform, shuffle=shuffle)
    assert (loader.rank, loader.world_size) == (dist.get_rank(), dist.get_world_size())
    mine = []
    for batch in loader:
        total = batch.images.sum()
        dist.all_reduce(total)  # hangs if a rank has fewer batches
        mine.append([key for key, real in zip(batch.keys, batch.mask.tolist()) if real])
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    seen[name] = everyone
assert "torchvision" not in sys.modules  # it keeps the group, whose threads then abort the process as it ends
if dist.get_rank() == 0:
    open(sys.argv[2], "w").write(json.dumps(seen))
dist.destroy_process_group()
"""

KILLED = """
import json, os, sys
from datakit.stream import Loader, mae

loader = Loader(sys.argv[1], 3, transform=mae(32, normalise=None), seed=2)
if os.path.exists(sys.argv[2]):
    loader.load_state_dict(json.load(open(sys.argv[2])))
for batch in loader:
    with open(sys.argv[2] + ".new", "w") as file:
        json.dump(loader.state_dict(), file)
    os.replace(sys.argv[2] + ".new", sys.argv[2])
    print(json.dumps(batch.keys), flush=True)
    sys.stdin.readline()
"""


def test_two_ranks_finish_an_epoch_of_uneven_shards(shards: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "ranked.py", tmp_path / "seen.json"
    script.write_text(RANKED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(script), str(shards), str(out)], check=True, timeout=300, env=env)
    seen = json.loads(out.read_text())
    assert [len(batches) for batches in seen["train"]] == [3, 3]
    assert [len(batches) for batches in seen["eval"]] == [4, 4]
    steps = zip(*seen["train"], strict=True)
    whole = keys(Loader(shards, 1, transform=SMALL))
    assert [key for step in steps for rank in step for key in rank] == whole[:24]
    evaluated = [key for step in zip(*seen["eval"], strict=True) for rank in step for key in rank]
    assert evaluated == [f"s{n:03}" for n in range(31)]


def test_a_state_outlives_a_kill_between_any_two_batches(shards: Path, tmp_path: Path) -> None:
    script, state = tmp_path / "killed.py", tmp_path / "state.json"
    script.write_text(KILLED)
    whole = [batch.keys for batch in Loader(shards, 3, transform=SMALL, seed=2)]
    seen: list[list[str]] = []
    for count in (4, 1, 3, 2):
        command = [sys.executable, str(script), str(shards), str(state)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            for n in range(count):
                if n:
                    child.stdin.write("\n")
                    child.stdin.flush()
                seen.append(json.loads(child.stdout.readline()))
            child.kill()
    assert seen == whole
    assert json.loads(state.read_text())["position"] == 3 * len(seen)
