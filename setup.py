"""The wheel has the files of data/weights, but not the scripts beside them; see pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithoutScripts(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        # Docker installs before most modules are copied.
        if package == "roilib.pretrained" or not Path(package_dir).is_dir():
            return []
        return super().find_package_modules(package, package_dir)


setup(cmdclass={"build_py": WithoutScripts})
