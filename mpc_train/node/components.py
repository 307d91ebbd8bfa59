"""The software that this program consists of, as a CycloneDX 1.6 bill of materials.

Lists the installed distributions that `mpc-train` depends on, directly or not, as the metadata of
the installation say: name, version, licence as its author states it, and who depends on whom. The
hash of a component is that of its RECORD, which lists the hashes of all its files. Optional
dependencies count if they are installed.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Iterator
from importlib.metadata import Distribution

from mpc_train.base.release import version
from mpc_train.errors import ConfigError

PRODUCT = "mpc-train"
BESIDE = ("crypten",)
"""What the product needs and does not list, see pyproject.toml."""
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_NOT_OURS = ("dev",)
"""Extras that no installation of a user has."""


def normal(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(distribution: Distribution) -> Iterator[str]:
    """The names that a distribution depends on; those of extras as well."""
    for line in distribution.requires or ():
        name = _NAME.match(line)
        extra = _EXTRA.search(line)
        if name and not (extra and extra[1] in _NOT_OURS):
            yield normal(name[1])


def installed() -> dict[str, tuple[Distribution, tuple[str, ...]]]:
    """By name: the distributions that the product needs and that are here, and what they need.

    Extras of others are left out, because nobody asked for them. Raises ConfigError where the
    product itself is not installed.
    """
    found: dict[str, tuple[Distribution, tuple[str, ...]]] = {}
    waiting = [PRODUCT]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            one = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name == PRODUCT:
                raise ConfigError(
                    "mpc-train is not installed as a package, so nobody knows what it depends on; "
                    "install it: python -m pip install --editable ."
                ) from None
            continue
        needs = [*required(one), *BESIDE] if name == PRODUCT else list(_plainly(one))
        found[name] = one, tuple(dict.fromkeys(needs))
        waiting += needs
    return {
        name: (one, tuple(each for each in needs if each in found))
        for name, (one, needs) in sorted(found.items())
    }


def _plainly(distribution: Distribution) -> Iterator[str]:
    for line in distribution.requires or ():
        name = _NAME.match(line)
        if name and not _EXTRA.search(line):
            yield normal(name[1])


def bill_of_materials() -> bytes:
    """The bill as JSON. Raises ConfigError if the library that writes it is not installed."""
    try:
        from cyclonedx.model import HashAlgorithm, HashType
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.model.license import DisjunctiveLicense
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError as error:
        raise ConfigError(
            "evidence needs cyclonedx-python-lib, which is not installed: python -m pip install "
            "'mpc-train[evidence]'"
        ) from error
    bom, components = Bom(), {}
    for name, (one, _) in installed().items():
        record = one.read_text("RECORD")
        digest = hashlib.sha256(record.encode()).hexdigest() if record else None
        mine = name == PRODUCT
        stated = _licence(one)
        components[name] = Component(
            name=name,
            version=version() if mine else one.version,
            type=ComponentType.APPLICATION if mine else ComponentType.LIBRARY,
            bom_ref=f"pkg:pypi/{name}",
            purl=PackageURL("pypi", name=name, version=version() if mine else one.version),
            licenses=[DisjunctiveLicense(name=stated)] if stated else None,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else None,
        )
    bom.metadata.component = components[PRODUCT]
    for name, component in components.items():
        if name != PRODUCT:
            bom.components.add(component)
    for name, (_, needs) in installed().items():
        bom.register_dependency(components[name], [components[each] for each in needs])
    return JsonV1Dot6(bom).output_as_string(indent=2).encode() + b"\n"


def _licence(distribution: Distribution) -> str:
    """What its author says; only the first line of a text."""
    metadata = distribution.metadata
    for key in ("License-Expression", "License"):
        # Not metadata[key]: what stands in for a missing key differs between releases.
        text = str(next(iter(metadata.get_all(key) or ()), "")).strip()
        if text and text.upper() != "UNKNOWN":
            return text.splitlines()[0][:200]
    classifiers = [str(each) for each in metadata.get_all("Classifier") or ()]
    licences = [each.split(" :: ")[-1] for each in classifiers if each.startswith("License :: ")]
    return ", ".join(licences)
