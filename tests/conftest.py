"""Fixtures that every suite may use."""

from tests.fixtures.backup import night
from tests.fixtures.sandbox import fresh_sandbox, in_sandbox, sandbox, workplace

__all__ = ["fresh_sandbox", "in_sandbox", "night", "sandbox", "workplace"]
