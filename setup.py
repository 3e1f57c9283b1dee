"""The packages to install: every folder of minigpt/, and configs/ as minigpt.configs.

Everything else is in pyproject.toml, where setuptools can find packages or map a folder to one, but not both.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["minigpt", "minigpt.*"], exclude=["*.__pycache__"]),
        "minigpt.configs",
        *(f"minigpt.configs.{folder}" for folder in find_namespace_packages("configs")),
    ],
    package_dir={"minigpt.configs": "configs"},
)
