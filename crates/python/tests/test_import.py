"""What `import unisono` loads: NumPy, the extension and parts of the standard library."""

import json
import subprocess
import sys

# In a process of its own: pytest and other tests have loaded much by now.
SCRIPT = """
import json, sys
import numpy
before = set(sys.modules)
import unisono
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded():
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_import_loads_nothing_but_itself_and_the_standard_library():
    packages = {name.partition(".")[0] for name in loaded()}
    assert "unisono" in packages
    # What is optional costs its import where it is used: flwr and ray, scikit-learn, matplotlib, pandas, torch.
    strangers = packages - {"unisono", "numpy"} - set(sys.stdlib_module_names)
    assert not strangers, f"import unisono loads {sorted(strangers)}: import them where they are used"


def test_the_flower_plug_in_is_loaded_when_it_is_asked_for():
    assert not [name for name in loaded() if name.startswith("unisono.flower")]
