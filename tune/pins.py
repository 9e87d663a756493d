"""The packages that only work in one combination, checked before they are imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from tune.errors import SetupError

# The two halves of TVM share an ABI that their version ranges do not tell: with a newer ffi, TVM
# crashes without a message.
PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


def check_pins() -> None:
    """SetupError when TVM or its ffi is missing or of another version than the pinned one."""
    for package, wanted in PINS.items():
        found = installed(package) or "not installed"
        if found != wanted:
            raise SetupError(
                f"{package} is {found}; expected {wanted}, which fits the other half of TVM; "
                f"run: pip install {' '.join(f'{p}=={v}' for p, v in PINS.items())}"
            )


def installed(package: str) -> str | None:
    """The version of a package, None when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
