"""Where the packages of the wheel lie; pyproject.toml has all the rest.

A wheel adds two names to an environment, `conformer` and `kernels`. The scripts and the shipped models lie inside
`conformer` there: a module called `eval` or `train` at the top level would hide those of other packages.
"""

from setuptools import find_packages, setup

MODELS = {  # of models/: what each needs to run; other formats can be exported from it
    "english_small": ["*"],
    "words": ["*"],
    "words_micro": ["*.npz", "*.txt", "*.model", "confidence.json", "config.json", "onnx_int8.*"],
}
SCRIPTS = "conformer.scripts"  # every *.py beside this file; `edge-conformer NAME` runs them

setup(
    packages=[
        *find_packages(include=["conformer*", "kernels*"]),
        SCRIPTS,
        *(f"conformer.models.{name}" for name in MODELS),
    ],
    package_dir={SCRIPTS: ".", **{f"conformer.models.{name}": f"models/{name}" for name in MODELS}},
    package_data={f"conformer.models.{name}": patterns for name, patterns in MODELS.items()},
    include_package_data=False,
)
