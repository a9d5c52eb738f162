"""Lists the packages of the wheel and their folders; pyproject.toml holds all the rest.

A wheel adds two names to an environment, `conformer` and `kernels`. The scripts and the shipped models lie inside
`conformer` there: a module called `eval` or `train` at the top level would hide those of other packages.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

MODELS = {  # of models/: what each needs to run; other formats can be exported from it
    "english_small": ["*"],
    "words": ["*"],
    "words_micro": ["*.npz", "*.txt", "*.model", "confidence.json", "config.json", "onnx_int8.*"],
}
SCRIPTS = "conformer.scripts"  # the *.py beside this file; `edge-conformer NAME` runs them
ONLY_HERE = {"bench", "demo", "evidence", "report", "setup"}  # of them: they need files that the wheel lacks


class BuildPy(build_py):
    """Leaves out the scripts that a wheel cannot run."""

    def find_package_modules(self, package: str, package_dir: str) -> list:
        """Returns (package, module, file) of each module of a package, less the scripts that a wheel cannot run."""
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if package != SCRIPTS or found[1] not in ONLY_HERE]


setup(
    packages=[
        *find_packages(include=["conformer*", "kernels*"]),
        SCRIPTS,
        *(f"conformer.models.{name}" for name in MODELS),
    ],
    package_dir={SCRIPTS: ".", **{f"conformer.models.{name}": f"models/{name}" for name in MODELS}},
    package_data={  # all of it: pyproject.toml would replace this, not add to it
        "kernels": ["*/tuned/*.json"],  # of bench.py kernels --autotune
        **{f"conformer.models.{name}": patterns for name, patterns in MODELS.items()},
    },
    include_package_data=False,
    cmdclass={"build_py": BuildPy},
)
