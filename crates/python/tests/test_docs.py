"""Every public name has a docstring."""

import inspect

import pytest
import unisono

CLASSES = [value for name in unisono.__all__ if inspect.isclass(value := getattr(unisono, name))]


def members(kind):
    """Public methods and properties that the class itself or a base of this package defines."""
    for base in kind.__mro__:
        if not base.__module__.startswith(("unisono", "_unisono")):
            continue
        for name, value in vars(base).items():
            described = callable(value) or isinstance(value, staticmethod | classmethod) or inspect.isdatadescriptor(value)
            if described and not name.startswith("_"):
                yield f"{kind.__name__}.{name}", inspect.getdoc(getattr(kind, name))


def test_every_public_name_is_documented():
    names = {name: getattr(unisono, name) for name in unisono.__all__ if not name.startswith("__")}
    assert [name for name, value in names.items() if not (value.__doc__ or "").strip()] == []


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_public_method_and_property_is_documented(kind):
    assert [name for name, text in members(kind) if not (text or "").strip()] == []


def test_the_members_of_the_extension_are_among_them():
    found = dict(pair for kind in CLASSES for pair in members(kind))
    wanted = {"Quantiser.clip", "Grant.from_bytes", "Release.version", "Roster.epoch", "SigningKey.role", "Client.run"}
    assert wanted <= found.keys() and len(found) > 80


def test_all_errors_are_errors():
    errors = [kind for kind in CLASSES if issubclass(kind, BaseException)]
    assert len(errors) > 10 and all(issubclass(kind, unisono.Error) for kind in errors)
