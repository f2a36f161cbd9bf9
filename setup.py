"""The folders ops, search_spaces and study are installed as network_surgery.ops and so on: their own names are taken
by too many people's scripts."""

from setuptools import find_packages, setup

FOLDERS = ("ops", "search_spaces", "study")

setup(
    packages=[f"network_surgery.{name}" for name in find_packages() if name.partition(".")[0] in FOLDERS],
    package_dir={f"network_surgery.{name}": name for name in FOLDERS},
)
