"""What a type checker says of wrong calls: methods keep their signatures through `@method`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CALLS = """
import optax
import jaxprune

sgd = optax.sgd(0.1)
jaxprune.gradual_magnitude(sgd, sparcity=0.9, ramp=(0, 9))  # wrong: sparcity
jaxprune.rigl(sgd, sparsity=0.9, stop="late")  # wrong: stop
jaxprune.rigl(sgd, sparsity=0.9)  # wrong: stop
jaxprune.magnitude_attention(sgd, sparsity=0.9, ramp=(0, 9), masked="top")  # wrong: masked
jaxprune.static(sgd, 0.9)  # wrong: positional
jaxprune.n_of_m(sgd, n=2, m=4, unfit="ignore")  # wrong: unfit
jaxprune.prune_and_grow(sgd, sparsity=0.9, stop=900, grow_from="one")  # wrong: grow_from
jaxprune.layer_attention(sgd, sparsity=0.9, ramp=None)  # wrong: learner
jaxprune.gradual_magnitude(None, sparsity=0.9, ramp=(0, 9), where=["kernel"], exclude="head")
jaxprune.rigl(sgd, sparsity=0.9, stop=900, drop_fraction=optax.cosine_decay_schedule(0.3, 900))
jaxprune.prune_and_grow(sgd, sparsity=0.9, stop=900, swap_fraction=0.1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="paths of the environment differ")
def test_a_type_checker_finds_wrong_calls_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(CALLS)
    settings = {
        "typeCheckingMode": "standard",
        "extraPaths": [str(ROOT)],
        "venvPath": str(Path(sys.prefix).parent),
        "venv": Path(sys.prefix).name,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "-p", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    report = json.loads(done.stdout)
    found = {d["range"]["start"]["line"] for d in report["generalDiagnostics"]}
    wanted = {place for place, line in enumerate(CALLS.splitlines()) if "# wrong" in line}
    assert report["summary"]["filesAnalyzed"] == 1
    assert found == wanted, report["generalDiagnostics"]
